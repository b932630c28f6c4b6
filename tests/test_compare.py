"""Comparing two texts, and one text in two bundles: hand-made cases, brute force over all pairings, and what must always hold."""

from dataclasses import fields, replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_explore.errors import InputError
from sae_explore.explore.compare import MAX_CELLS, Comparison, align, compare_traces
from sae_explore.explore.compare_bundles import matches, stretches
from sae_explore.explore.text_view import Scale, ranked, strongest
from sae_explore.types import SparseRows, TextTrace, TokenizedText

D = 6
MAXIMA = np.array([2.0, 4.0, 1.0, 0.0, 8.0, 5.0])  # feature 3 never fired on the corpus
SCALE = Scale(MAXIMA.astype(np.float32), np.zeros(D, bool))


def trace(pieces, rows, *, bundle="one", ignored=None, ids=None) -> TextTrace:
    """A trace by hand: the pieces of a text, and for each a dict of feature to activation."""
    n = len(pieces)
    counts = [len(row) for row in rows]
    ordered = [sorted(row.items(), key=lambda item: (-item[1], item[0])) for row in rows]
    ids = [hash_of(p) for p in pieces] if ids is None else ids
    tokens = TokenizedText(np.asarray(ids, np.int32), tuple(pieces), tuple(p.encode() for p in pieces), np.zeros(n, bool))
    flat = [item for row in ordered for item in row]
    store = SparseRows(
        np.r_[0, np.cumsum(counts)].astype(np.int64) if n else np.zeros(1, np.int64),
        np.asarray([f for f, _ in flat], np.uint32),
        np.asarray([v for _, v in flat], np.float32),
    )
    return TextTrace(bundle, "hook", "units", "".join(pieces), tokens, np.zeros(n, bool) if ignored is None else np.asarray(ignored), store)


def hash_of(piece: str) -> int:
    return int.from_bytes(piece.encode()[:3].ljust(3, b"\0"))


def words(text: str, rows=None) -> TextTrace:
    pieces = [w if i == 0 else f" {w}" for i, w in enumerate(text.split())]
    return trace(pieces, rows or [{} for _ in pieces])


def pairs_of(a: str, b: str) -> list[tuple[int, int]]:
    """The shared words of two texts, by letters."""
    return [tuple(pair) for pair in align(*(np.frombuffer(t.encode(), np.uint8) for t in (a, b))).tolist()]


# ---- alignment ----


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("abcd", "abcd", [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ("abd", "abcd", [(0, 0), (1, 1), (2, 3)]),  # insertion
        ("abcd", "acd", [(0, 0), (2, 1), (3, 2)]),  # deletion
        ("abxcd", "abyycd", [(0, 0), (1, 1), (3, 4), (4, 5)]),  # a replaced word
        ("abc", "xyz", []),
        ("", "abc", []),
        ("abc", "", []),
        ("", "", []),
        ("aaa", "a", None),  # any of three: one pair
        ("xabyab", "ab", [(1, 0), (2, 1)]),  # in one run, never x[a]bya[b]
    ],
)
def test_alignment_of_texts_made_by_hand(a, b, expected):
    found = pairs_of(a, b)
    if expected is None:
        assert len(found) == 1
    elif (a, b) == ("xabyab", "ab"):
        assert found in ([(1, 0), (2, 1)], [(4, 0), (5, 1)])
    else:
        assert found == expected


def runs_of(pairs) -> int:
    return sum(1 for i, (x, y) in enumerate(pairs) if i == 0 or (x - 1, y - 1) != tuple(pairs[i - 1]))


def best_by_brute_force(a: str, b: str) -> tuple[int, int]:
    """(pairs, runs) of the best pairing, over all pairs of subsequences."""
    best = (0, 0)
    for size in range(min(len(a), len(b)), 0, -1):
        found = [
            runs_of(list(zip(x, y, strict=True)))
            for x in combinations(range(len(a)), size)
            for y in combinations(range(len(b)), size)
            if all(a[i] == b[j] for i, j in zip(x, y, strict=True))
        ]
        if found:
            return size, min(found)
    return best


LETTERS = st.text("abc", max_size=7)


@given(LETTERS, LETTERS)
def test_alignment_has_the_most_pairs_in_the_fewest_runs(a, b):
    found = pairs_of(a, b)
    assert (len(found), runs_of(found)) == best_by_brute_force(a, b)


@given(st.text("abcd", max_size=40), st.text("abcd", max_size=40))
def test_alignment_is_monotone_pairs_equals_and_mirrors(a, b):
    found = pairs_of(a, b)
    assert all(a[i] == b[j] for i, j in found)
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(found))
    assert [(j, i) for i, j in found] == pairs_of(b, a)
    assert pairs_of(a, a) == [(i, i) for i in range(len(a))]


def test_texts_too_long_to_align_are_refused():
    with pytest.raises(InputError, match=r"texts of 4,097 and 4,096 tokens are too long"):
        align(np.zeros(4_097, np.int32), np.zeros(4_096, np.int32))
    assert MAX_CELLS == 4_096**2
    assert len(align(np.zeros(20_000, np.int32), np.zeros(3, np.int32))) == 3


# ---- two texts ----


def row_of(found: Comparison, feature: int) -> dict:
    (i,) = np.flatnonzero(found.feature == feature).tolist()
    return {f.name: getattr(found, f.name)[i] for f in fields(found) if f.name not in ("pairs", "lone_a", "lone_b")}


def test_a_replaced_word_by_hand():
    a = words("the old bank fell", [{0: 1.0}, {1: 2.0}, {0: 0.5, 4: 4.0}, {}])
    b = words("the new bank fell", [{0: 1.0}, {2: 0.5}, {4: 2.0, 3: 9.0}, {5: 1.0, 0: 1.5}])
    found = compare_traces(a, b, MAXIMA)
    assert found.pairs.tolist() == [[0, 0], [2, 2], [3, 3]]
    assert found.lone_a.tolist() == found.lone_b.tolist() == [False, True, False, False]
    # scores: 0: (1.5 - 1) / 2, 1: -2 / 4, 2: .5 / 1, 3: no maximum, 4: (2 - 4) / 8, 5: 1 / 5; ties by the difference, then the number
    assert found.feature.tolist() == [1, 2, 4, 0, 5, 3]
    np.testing.assert_allclose(found.score, [-0.5, 0.5, -0.25, 0.25, 0.2, np.nan])
    assert found.feature[found.only_a].tolist() == [1]
    assert sorted(found.feature[found.only_b].tolist()) == [2, 3, 5]
    expected = {"max_a": 1.0, "max_b": 1.5, "sum_a": 1.5, "sum_b": 2.5, "peak_a": 0, "peak_b": 3, "pair": 2, "at_a": 0.0, "at_b": 1.5}
    zero = row_of(found, 0)
    assert {name: zero[name] for name in expected} == expected
    assert zero["shared_score"] == 0.75
    assert row_of(found, 1)["pair"] == -1  # it fires on no shared token
    assert row_of(found, 2)["peak_a"] == -1
    np.testing.assert_allclose(found.ratio[found.feature == 0], [1.5])
    np.testing.assert_allclose(found.ratio[found.feature == 4], [0.5])
    assert np.isnan(found.ratio[found.feature == 1]).all()
    assert found.feature[found.by_shared()].tolist() == [0, 4, 5, 3]


def test_identical_texts_do_not_differ():
    a = words("one two two", [{0: 1.0}, {1: 2.0, 3: 1.0}, {1: 1.0}])
    found = compare_traces(a, a, MAXIMA)
    assert found.pairs.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert not found.lone_a.any()
    assert not found.only_a.any()
    assert not found.only_b.any()
    np.testing.assert_array_equal(found.max_a, found.max_b)
    np.testing.assert_array_equal(found.at_a, found.at_b)
    assert not np.nan_to_num(found.score).any()


def test_disjoint_and_silent_texts():
    found = compare_traces(words("one two", [{0: 1.0}, {}]), words("six", [{1: 1.0}]), MAXIMA)
    assert len(found.pairs) == 0
    assert found.lone_a.all()
    assert found.lone_b.all()
    assert found.feature.tolist() == [0, 1]
    assert not len(found.by_shared())
    silent = compare_traces(words("one"), words("six"), MAXIMA)
    assert len(silent) == 0
    assert not len(silent.ratio)
    empty = compare_traces(trace([], []), words("one two", [{0: 1.0}, {}]), MAXIMA)
    assert empty.lone_b.all()
    assert empty.feature[empty.only_b].tolist() == [0]


def test_texts_of_two_bundles_are_refused():
    with pytest.raises(InputError, match="'one' and 'two'"):
        compare_traces(words("a"), replace(words("a"), bundle="two"), MAXIMA)


@st.composite
def traces(draw, bundle: str = "one") -> TextTrace:
    pieces = draw(st.lists(st.sampled_from(["a", " b", " c", "é", "🥇"]), min_size=1, max_size=9))
    values = st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0])
    return trace(pieces, [draw(st.dictionaries(st.integers(0, D - 1), values, max_size=3)) for _ in pieces], bundle=bundle)


@given(traces(), traces())
def test_every_number_against_brute_force(a, b):
    found = compare_traces(a, b, MAXIMA)
    columns = {f: (a.rows.column(f), b.rows.column(f)) for f in range(D)}
    assert sorted(found.feature.tolist()) == [f for f, (x, y) in columns.items() if x.any() or y.any()]
    for i, f in enumerate(found.feature.tolist()):
        x, y = columns[f]
        assert (found.max_a[i], found.max_b[i]) == (x.max(), y.max())
        np.testing.assert_allclose((found.sum_a[i], found.sum_b[i]), (x.sum(), y.sum()))
        assert found.peak_a[i] == (x.argmax() if x.any() else -1)
        assert found.peak_b[i] == (y.argmax() if y.any() else -1)
        np.testing.assert_allclose(found.score[i], (y.max() - x.max()) / MAXIMA[f] if MAXIMA[f] else np.nan)
        on = [k for k, (p, q) in enumerate(found.pairs.tolist()) if x[p] or y[q]]
        if not on:
            assert (found.pair[i], found.at_a[i], found.at_b[i]) == (-1, 0, 0)
            continue
        gaps = [abs(y[q] - x[p]) for p, q in found.pairs[on].tolist()]
        best = on[int(np.argmax(gaps))]
        p, q = found.pairs[best].tolist()
        assert (found.pair[i], found.at_a[i], found.at_b[i]) == (best, x[p], y[q])
    scores = [(np.isnan(s), -abs(s) if s == s else 0.0) for s in found.score.tolist()]
    assert scores == sorted(scores)


MIRRORED = {"lone_a": "lone_b", "max_a": "max_b", "sum_a": "sum_b", "peak_a": "peak_b", "at_a": "at_b"}


@given(traces(), traces())
def test_exchanging_the_texts_mirrors_the_answer(a, b):
    there, back = compare_traces(a, b, MAXIMA), compare_traces(b, a, MAXIMA)
    np.testing.assert_array_equal(there.pairs, back.pairs[:, ::-1])
    np.testing.assert_array_equal(there.feature, back.feature)
    np.testing.assert_array_equal(there.pair, back.pair)
    for name, other in MIRRORED.items():
        np.testing.assert_array_equal(getattr(there, name), getattr(back, other))
        np.testing.assert_array_equal(getattr(there, other), getattr(back, name))
    np.testing.assert_array_equal(there.score, -back.score)
    np.testing.assert_array_equal(there.by_shared(), back.by_shared())


# ---- two bundles ----


def cut(a: TextTrace, b: TextTrace):
    return stretches(a, b, strongest(a, SCALE), strongest(b, SCALE))


def match(a: TextTrace, b: TextTrace, **options):
    return matches(a, b, ranked(a, SCALE), ranked(b, SCALE), **options)


def test_stretches_end_where_tokens_of_both_end():
    a = trace(["un", "happy", " cat"], [{0: 1.0}, {1: 4.0}, {}])
    b = trace(["unhap", "py", " c", "at"], [{2: 0.5}, {4: 2.0}, {}, {5: 5.0}], bundle="two")
    found = cut(a, b)
    assert [a.text[x:y] for x, y in zip(found.start, found.stop, strict=True)] == ["unhappy", " cat"]
    assert found.feature_a.tolist() == [1, -1]
    assert found.share_a.tolist() == [1.0, 0.0]
    assert found.feature_b.tolist() == [2, 5]  # shares of .5 against .25, and 1
    assert found.value_b.tolist() == [0.5, 5.0]


def test_parts_of_a_character_count_for_it():
    a = trace(["x", "", "", "🥇", "!"], [{}, {0: 1.0}, {1: 4.0}, {}, {2: 1.0}])
    b = trace(["x🥇", "!"], [{0: 2.0}, {2: 1.0}], bundle="two")
    found = cut(a, b)
    assert found.stop.tolist() == [2, 3]
    assert found.feature_a.tolist() == [1, 2]
    best = match(a, b)
    assert best.unit == "character"
    # over "x", "🥇", "!": feature 1 of A is (0, 4, 0), feature 0 of B (2, 2, 0): cosine 1 / sqrt(2)
    assert best.a.of(1) == 0
    np.testing.assert_allclose(best.a.cosine[best.a.feature == 1], [2**-0.5], rtol=1e-6)


def test_pieces_that_a_bundle_ignores_are_named_and_left_out():
    a = trace(["a", " b"], [{}, {0: 1.0}], ignored=[True, False])
    b = trace(["a", " b"], [{1: 4.0}, {}], bundle="two")
    assert cut(a, b).ignored.tolist() == [True, False]
    found = match(a, b)
    assert found.a.of(0) is None  # its only rival fires on the token that A ignores
    assert found.alike == 0


@given(traces(), st.integers(1, 3))
def test_a_reading_matches_itself(a, most):
    found = match(a, replace(a, bundle="two"), most=most)
    assert found.unit == "token"
    assert len(found.a) <= most
    np.testing.assert_allclose(found.a.cosine, 1.0, rtol=1e-6)
    if len(found.a):
        assert found.alike == pytest.approx(1.0)


@st.composite
def two_readings(draw) -> tuple[TextTrace, TextTrace]:
    """One text, cut in two ways."""
    text = "".join(draw(st.lists(st.sampled_from(["a", " b", "é", "🥇"]), min_size=1, max_size=8)))
    found = []
    for bundle in ("one", "two"):
        cuts = sorted({0, len(text), *draw(st.lists(st.integers(0, len(text)), max_size=6))})
        pieces = [text[x:y] for x, y in pairwise(cuts)]
        values = st.sampled_from([0.25, 0.5, 1.0, 2.0])
        rows = [draw(st.dictionaries(st.integers(0, D - 1), values, max_size=3)) for _ in pieces]
        found.append(trace(pieces, rows, bundle=bundle, ignored=[draw(st.booleans()) for _ in pieces]))
    return found[0], found[1]


def by_character(a: TextTrace, feature: int) -> np.ndarray:
    widths = [len(t) for t in a.tokens.texts]
    return np.repeat(a.rows.column(feature).astype(np.float64), widths)


@given(two_readings())
def test_matches_against_brute_force(readings):
    a, b = readings
    found, pieces = match(a, b), cut(a, b)
    counted = ~(np.repeat(a.ignored, [len(t) for t in a.tokens.texts]) | np.repeat(b.ignored, [len(t) for t in b.tokens.texts]))
    same = a.tokens.texts == b.tokens.texts
    assert found.unit == ("token" if same else "character")

    def cosine(f: int, g: int) -> float:
        if same:
            keep = ~(a.ignored | b.ignored)
            x, y = a.rows.column(f)[keep].astype(np.float64), b.rows.column(g)[keep].astype(np.float64)
        else:
            x, y = by_character(a, f)[counted], by_character(b, g)[counted]
        return x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-300)

    for i, f in enumerate(found.a.feature.tolist()):
        every = [cosine(f, g) for g in found.b.feature.tolist()]
        np.testing.assert_allclose(found.a.cosine[i], max(every, default=0.0), atol=1e-6)
        if every:
            g = int(found.a.other[i])
            np.testing.assert_allclose(cosine(f, g), max(every), atol=1e-6)
            x, y = by_character(a, f), by_character(b, g)
            both = [x[s:e].any() and y[s:e].any() for s, e in zip(pieces.start, pieces.stop, strict=True)]
            assert found.a.together[i] == sum(both)


@given(two_readings())
def test_stretches_cover_the_text_and_exchanging_the_bundles_mirrors(readings):
    a, b = readings
    there, back = cut(a, b), cut(b, a)
    assert there.start[0] == 0
    assert there.stop[-1] == len(a.text)
    assert there.start[1:].tolist() == there.stop[:-1].tolist()
    assert there.feature_a.tolist() == back.feature_b.tolist()
    assert there.share_b.tolist() == back.share_a.tolist()
    first, second = match(a, b), match(b, a)
    np.testing.assert_array_equal(first.a.feature, second.b.feature)
    np.testing.assert_allclose(first.a.cosine, second.b.cosine, atol=1e-6)
    np.testing.assert_allclose([first.alike, first.chance], [second.alike, second.chance], atol=1e-6)


def test_two_texts_are_no_text_in_two_bundles():
    with pytest.raises(InputError, match="of 1 and 2 characters"):
        cut(trace(["a"], [{}]), trace(["ab"], [{}], bundle="two"))
    with pytest.raises(InputError, match="one text"):
        match(trace(["a"], [{}]), trace(["ab"], [{}], bundle="two"))


def test_nothing_to_match():
    found = match(trace(["a"], [{}]), trace(["a"], [{}], bundle="two"))
    assert (len(found.a), len(found.b)) == (0, 0)
    assert np.isnan(found.alike)
    one_sided = match(trace(["a"], [{0: 1.0}]), trace(["a"], [{}], bundle="two"))
    assert one_sided.a.of(0) is None
