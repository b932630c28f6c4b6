"""Every way to find features, against slow loops over tiny bundles, and with numbers worked out by hand."""

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_explore.bundles.bundle import Bundle, open_bundle
from sae_explore.errors import InputError
from sae_explore.explore import find
from sae_explore.explore.find_tokens import TokenTexts
from sae_explore.models.tokens import Vocabulary
from sae_explore.types import SparseRows

pytest_plugins = ["bundle_fixtures"]
D_SAE = 64


@pytest.fixture(scope="module")
def tiny(tiny_cache) -> Bundle:
    return open_bundle("tiny", cache=tiny_cache)


@pytest.fixture(scope="module")
def planted(tiny_cache) -> Bundle:
    return open_bundle("planted", cache=tiny_cache)


@pytest.fixture(scope="module")
def texts(tiny) -> TokenTexts:
    return TokenTexts(tiny.vocabulary)


def slow_fit(bundle: Bundle, rows: list[tuple[np.ndarray, np.ndarray]]) -> dict[int, tuple[float, float, int]]:
    """feature -> (fit, strength, tokens on which it fires), from (features, values) of each token."""
    total = int((~bundle.ignored).sum())
    found = {}
    for feature in range(bundle.d_sae):
        column = [float(values[features == feature].sum()) for features, values in rows]
        if not any(column):
            continue
        count = int((np.asarray(bundle.store.token_features) == feature).sum())
        maximum = float(bundle.maxima[feature]) or max(column)
        strength = sum(min(1.0, value / maximum) for value in column) / len(column)
        found[feature] = (strength * math.log2((total + 1) / (count + 1)), strength, sum(value > 0 for value in column))
    return found


def check_order(found: find.Found, scores: dict[int, float]) -> None:
    """Each feature once, by falling score."""
    assert sorted(found.feature.tolist()) == sorted(scores)
    listed = [scores[f] for f in found.feature.tolist()]
    assert all(a >= b - 1e-9 for a, b in pairwise(listed))


# ---- a phrase ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "planted"])
@pytest.mark.parametrize("document", [0, 7, 31])
def test_what_fires_on_a_text(name, document, request):
    bundle = request.getfixturevalue(name)
    trace = bundle.document_trace(document)
    found = find.by_trace(bundle, trace)
    rows = [trace.rows.row(i) for i in range(len(trace.rows)) if not trace.ignored[i]]
    expected = slow_fit(bundle, rows)
    check_order(found, {f: fit for f, (fit, _, _) in expected.items()})
    for i, feature in enumerate(found.feature.tolist()):
        fit, strength, tokens = expected[feature]
        assert found.columns["fit"][i] == pytest.approx(fit)
        assert found.columns["strength"][i] == pytest.approx(strength)
        assert found.columns["tokens"][i] == tokens
        assert found.columns["position"][i] == int(trace.rows.column(feature).argmax())


def worked_out(count, maxima, counted: int) -> SimpleNamespace:
    """As much of a bundle as the score needs."""
    features = {"count": SimpleNamespace(to_numpy=lambda: np.asarray(count))}
    return SimpleNamespace(
        features=features,
        maxima=np.asarray(maxima, np.float32),
        d_sae=len(count),
        manifest={"features": {"counted_tokens": counted}},
    )


def test_the_score_by_hand(tiny):
    """Four tokens, one ignored. 1,023 tokens in the corpus and one firing each: density 2 / 1,024, which is 9 bits."""
    bundle = worked_out([1, 1, 0, 1_023], [2.0, 4.0, 0.0, 1.0], 1_023)
    rows = SparseRows(
        np.array([0, 0, 2, 4, 6]), np.array([0, 3, 1, 0, 2, 3], np.uint32), np.array([2.0, 1.0, 1.0, 5.0, 0.5, 1.0], np.float32)
    )
    trace = replace(tiny.document_trace(0), ignored=np.array([True, False, False, False]), rows=rows)
    found = find.by_trace(bundle, trace)
    assert found.feature.tolist() == [0, 2, 1, 3]
    # 0: at its maximum and above it on two of three tokens; 2: never fired before, 10 bits; 1: a quarter once; 3: fires everywhere
    assert found.columns["strength"] == pytest.approx([2 / 3, 1 / 3, 1 / 12, 2 / 3])
    assert found.columns["fit"] == pytest.approx([9 * 2 / 3, 10 / 3, 9 / 12, 0])
    assert found.columns["position"].tolist() == [2, 3, 2, 1]
    nothing = find.by_trace(bundle, replace(trace, rows=SparseRows(np.zeros(5, np.int64), rows.features[:0], rows.values[:0])))
    assert len(nothing) == 0


# ---- a token -----------------------------------------------------------------------------------------------------------


def occurring(bundle: Bundle, n: int) -> list[int]:
    """Token ids of the corpus, from common to rare."""
    counts = np.bincount(bundle.ids[~bundle.ignored], minlength=len(bundle.vocabulary))
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    return order[np.linspace(0, len(order) - 1, n).astype(int)].tolist()


@pytest.mark.parametrize("name", ["tiny", "planted"])
def test_what_fires_on_a_token(name, request):
    bundle = request.getfixturevalue(name)
    one, two, *others = occurring(bundle, 6)
    for ids in ([one], [two, others[0]], [others[-1]]):
        seen = find.by_token(bundle, np.array(ids))
        places = [t for t in range(bundle.store.n_tokens) if int(bundle.ids[t]) in ids and not bundle.ignored[t]]
        rows = [bundle.store.rows(t, t + 1).row(0) for t in places]
        expected = slow_fit(bundle, rows)
        check_order(seen.found, {f: fit for f, (fit, _, _) in expected.items()})
        assert seen.looked_at == len(places) == seen.counts.sum()
        assert seen.counts.tolist() == [sum(int(bundle.ids[t]) == i for t in places) for i in ids]
        for i, feature in enumerate(seen.found.feature.tolist()):
            fit, strength, tokens = expected[feature]
            assert seen.found.columns["fit"][i] == pytest.approx(fit)
            assert seen.found.columns["strength"][i] == pytest.approx(strength)
            assert seen.found.columns["on"][i] == pytest.approx(tokens / len(places))
            assert seen.found.columns["of"][i] == pytest.approx(tokens / int(bundle.features["count"][feature].as_py()))


def test_a_frequent_token_is_looked_at_in_a_sample(tiny):
    (common,) = occurring(tiny, 1)
    whole, some = find.by_token(tiny, [common]), find.by_token(tiny, [common], most=20)
    assert some.looked_at == 20 < whole.looked_at
    assert some.counts.tolist() == whole.counts.tolist()
    assert set(some.found.feature) <= set(whole.found.feature)
    again, other = find.by_token(tiny, [common], most=20), find.by_token(tiny, [common], most=20, seed=1)
    assert np.array_equal(some.found.columns["fit"], again.found.columns["fit"])
    assert not np.array_equal(some.found.columns["fit"], other.found.columns["fit"])
    mean = np.mean([find.by_token(tiny, [common], most=20, seed=s).found.columns["on"][0] for s in range(8)])
    assert mean == pytest.approx(whole.found.columns["on"][0], abs=0.2)
    assert (some.found.columns["of"] <= 1).all()


def test_a_token_that_does_not_occur_finds_nothing(tiny):
    absent = int(np.flatnonzero(np.bincount(tiny.ids, minlength=len(tiny.vocabulary)) == 0)[-1])
    seen = find.by_token(tiny, [absent])
    assert (len(seen.found), seen.looked_at, seen.counts.tolist()) == (0, 0, [0])
    assert len(find.by_token(tiny, []).found) == 0


# ---- the lens, categories, directions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", find.SIDES)
@pytest.mark.parametrize("convention", [None, "raw", "cosine"])
def test_what_promotes_a_token(tiny, side, convention):
    lists = [tiny.lens_tokens(f, convention)[side == "negative"] for f in range(D_SAE)]
    for ids in ([lists[3][0].id], [lists[5][4].id, lists[9][1].id], [lists[0][-1].id]):
        found = find.by_lens(tiny, np.array(ids), side=side, convention=convention)
        first = {
            f: next(i for i, t in enumerate(listed) if t.id in ids) for f, listed in enumerate(lists) if {t.id for t in listed} & {*ids}
        }
        expected = sorted(first, key=lambda f: (first[f], -abs(lists[f][first[f]].logit), f))
        assert found.feature.tolist() == expected
        assert found.columns["place"].tolist() == [first[f] + 1 for f in expected]
        assert found.columns["logit"] == pytest.approx([lists[f][first[f]].logit for f in expected])
        assert found.columns["id"].tolist() == [lists[f][first[f]].id for f in expected]
    with pytest.raises(InputError, match="sideways"):
        find.by_lens(tiny, [1], side="sideways")
    with pytest.raises(InputError, match="nope"):
        find.by_lens(tiny, [1], convention="nope")


def test_what_fires_in_a_category(planted):
    lengths = np.diff(planted.doc_offsets).tolist()
    category_of = [c for c, n in zip(planted.documents["category"].to_pylist(), lengths, strict=True) for _ in range(n)]
    for category in planted.categories:
        share = planted.category_share()[category]
        expected = {}
        for feature in range(D_SAE):
            tokens, _ = planted.store.firings(feature)
            inside = sum(category_of[t] == category for t in tokens.tolist())
            times = (inside + 20 * share) / (len(tokens) + 20) / share
            if inside and times > 1:
                expected[feature] = (times, inside / len(tokens))
        found = find.by_category(planted, category)
        check_order(found, {f: times for f, (times, _) in expected.items()})
        assert found.columns["times"] == pytest.approx([expected[f][0] for f in found.feature.tolist()])
        assert found.columns["share"] == pytest.approx([expected[f][1] for f in found.feature.tolist()])
    with pytest.raises(InputError, match="no category"):
        find.by_category(planted, "nope")


def test_a_rare_feature_does_not_look_like_a_rule():
    """Three firings, all in a category that holds a tenth of the tokens, against 80 of 100."""
    bundle = worked_out([3, 100, 100], [1, 1, 1], 1_000)
    bundle.categories, bundle.category_share = ["a", "b"], lambda: {"a": 0.1, "b": 0.9}
    bundle.arrays = {"categories": np.array([[3, 0], [80, 20], [9, 91]])}
    found = find.by_category(bundle, "a")
    assert found.feature.tolist() == [1, 0]
    assert found.columns["times"] == pytest.approx([82 / 120 / 0.1, 5 / 23 / 0.1])
    assert found.columns["share"] == pytest.approx([0.8, 1.0])


@pytest.mark.parametrize("feature", [0, 13, 63])
def test_what_points_the_same_way(tiny, feature, monkeypatch):
    rows = np.asarray(tiny.W_dec, np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit[feature]
    expected = [f for f in np.argsort(-cosines, kind="stable").tolist() if f != feature]
    monkeypatch.setattr(find, "_CHUNK", 10)  # so that there are several, the last one shorter
    found = find.similar(tiny, feature)
    assert found.feature.tolist() == expected
    assert found.columns["cosine"] == pytest.approx(cosines[expected], abs=1e-5)
    few = find.similar(tiny, feature, top=5)
    assert few.feature.tolist() == expected[:5]
    assert few.feature[:5].tolist() == [f for f, _ in tiny.neighbours(feature)][:5]
    with pytest.raises(InputError, match="no feature 64"):
        find.similar(tiny, 64)


def test_only_keeps_the_columns_in_step():
    found = find.Found(np.array([5, 3, 9]), {"fit": np.array([3.0, 2.0, 1.0])})
    kept = found.only(np.array([True, False, True]))
    assert (kept.feature.tolist(), kept.columns["fit"].tolist()) == ([5, 9], [3.0, 1.0])


# ---- tokens as people type them ----------------------------------------------------------------------------------------


def folded(text: str) -> str:
    return (text[1:] if text[:1] == " " else text).casefold()


def slow_matching(vocabulary: Vocabulary, typed: str) -> list[int]:
    drawn = typed.replace("↵", "\n").replace("␍", "\r").replace("⇥", "\t")
    spaces = " " * len(drawn) if drawn.strip("·") == "" else " " + drawn[1:] if drawn[:1] == "·" else drawn
    meant = {folded(typed), folded(drawn), folded(spaces)} if typed else set()
    texts = [(i, vocabulary.text_of(i)) for i in range(len(vocabulary))]
    return [i for i, text in texts if text and not vocabulary.special[i] and folded(text) in meant]


def test_tokens_are_found_as_they_are_typed_or_drawn(tiny, texts):
    vocabulary = tiny.vocabulary
    for token in range(0, len(vocabulary), 23):
        text = vocabulary.text_of(token)
        for typed in (text, text.swapcase(), f" {text}", text.replace(" ", "·").replace("\n", "↵")):
            assert texts.matching(typed).tolist() == slow_matching(vocabulary, typed)
        assert (token in texts.matching(text)) == (bool(text) and not vocabulary.special[token])
    assert {vocabulary.text_of(i).strip().lower() for i in texts.matching("·The")} == {"the"}


@pytest.fixture(scope="module")
def small() -> TokenTexts:
    pieces = [
        b"cat",
        b" cat",
        b"Cat",
        b"cats",
        b" ",
        b"\n",
        b"<s>",
        b"",
        "ß".encode(),
        b"ss",
        b"\xe2\x80",
        "·".encode(),
        b"  ",
        b"un",
        b" .*",
    ]
    special = np.array([piece == b"<s>" for piece in pieces])
    return TokenTexts(Vocabulary(np.frombuffer(b"".join(pieces), np.uint8), np.cumsum([0, *map(len, pieces)]), special))


@pytest.mark.parametrize(
    ("typed", "ids"),
    [
        ("cat", [0, 1, 2]), (" CAT", [0, 1, 2]), ("·cat", [0, 1, 2]), ("ca", []), ("", []), (" ", [4]), ("·", [4, 11]), ("··", [12]),
        ("↵", [5]), ("\n", [5]), ("<s>", []), ("SS", [8, 9]), ("<0xE2><0x80>", [10]), (".*", [14]), ("\ud800", []), ("cat ", []),
    ],
)  # fmt: skip
def test_small_vocabulary(small, typed, ids):
    assert small.matching(typed).tolist() == ids


def test_what_is_no_token_leads_to_tokens_near_it(small):
    counts = np.array([3, 9, 0, 4, 50, 9, 9, 9, 1, 2, 1, 1, 1, 7, 1])
    assert small.holding("at", counts).tolist() == [1, 3, 0]  # the commonest first; what does not occur is left out
    assert small.holding("at", counts, most=1).tolist() == [1]
    assert small.holding("unbelievable", counts).tolist() == [13]
    for nothing in ("", " ", "zzz", "\ud800"):
        assert small.holding(nothing, counts).tolist() == []


ODD = st.sampled_from(["(", ".*", "[a", "\\", "😀", "👩‍🚀", "שלום", "\u202e", "<b>x</b>", "&amp;", "$x$", "\0", "%", "' OR 1=1", "é" * 500])


@given(st.text() | ODD | st.characters())
def test_any_string_is_looked_up(texts, tiny, typed):
    counts = np.bincount(tiny.ids, minlength=len(tiny.vocabulary))
    assert texts.matching(typed).tolist() == slow_matching(tiny.vocabulary, typed)
    assert all(counts[texts.holding(typed, counts)] > 0)
