"""The numbers of the text page against brute force over the trace, hand-made cases, and the choice of the first texts."""

import csv
import io
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_explore.bundles.bundle import open_bundle
from sae_explore.drawing import figures_text, spans
from sae_explore.errors import InputError
from sae_explore.explore import showcase, text_view
from sae_explore.explore.text_view import Scale
from sae_explore.json_output import trace_json
from sae_explore.types import SparseRows, TextTrace, TokenizedText
from sae_explore.views.text_extras import MAP_TOKENS, stretch

pytest_plugins = ["bundle_fixtures"]
D_SAE = 9


def make_trace(rows: list[dict[int, float]], texts: list[str] | None = None) -> TextTrace:
    """A text whose tokens have these activations."""
    n = len(rows)
    texts = tuple(texts or [f"t{i}" for i in range(n)])
    ordered = [sorted(row.items(), key=lambda item: (-item[1], item[0])) for row in rows]
    flat = [item for row in ordered for item in row]
    sparse = SparseRows(
        np.cumsum([0, *map(len, ordered)]).astype(np.int64),
        np.asarray([f for f, _ in flat], np.uint32),
        np.asarray([v for _, v in flat], np.float32),
    )
    tokens = TokenizedText(np.zeros(n, np.int32), texts, tuple(t.encode() for t in texts), np.zeros(n, bool))
    return TextTrace("b", "h", "u", "".join(texts), tokens, np.asarray([not row for row in rows], bool), sparse)


# Feature 0 is dense, feature 1 never fired on the corpus, the others have maximum 10, 4 and 8.
SCALE = Scale(np.asarray([20, 0, 10, 4, 8, 1, 1, 1, 1], np.float32), np.asarray([True] + [False] * (D_SAE - 1)))
HAND = make_trace([{}, {0: 18, 2: 5, 3: 1}, {0: 10, 3: 3, 1: 7}, {0: 4}, {2: 5, 4: 4}])


def test_ranked_by_hand():
    by_share = text_view.ranked(HAND, SCALE)
    assert by_share.feature.tolist() == [3, 2, 4, 1]
    assert by_share.share[:3].tolist() == [0.75, 0.5, 0.5]
    assert np.isnan(by_share.share[3])
    assert by_share.max.tolist() == [3, 5, 4, 7]
    assert by_share.sum.tolist() == [4, 10, 4, 7]
    assert by_share.count.tolist() == [2, 2, 1, 1]
    assert by_share.position.tolist() == [2, 1, 4, 2]
    assert by_share.hidden == 1
    assert text_view.ranked(HAND, SCALE, by="max").feature.tolist() == [1, 2, 4, 3]
    assert text_view.ranked(HAND, SCALE, by="sum").feature.tolist() == [2, 1, 4, 3]
    assert text_view.ranked(HAND, SCALE, by="max", dense=True).feature.tolist() == [0, 1, 2, 4, 3]


def test_strongest_by_hand():
    found = text_view.strongest(HAND, SCALE)
    assert found.feature.tolist() == [-1, 2, 3, -1, 2]
    assert found.share.tolist() == [0, 0.5, 0.75, 0, 0.5]
    assert found.value.tolist() == [0, 5, 3, 0, 5]
    assert text_view.strongest(HAND, SCALE, dense=True).feature.tolist() == [-1, 0, 3, 0, 2]


def test_token_features_by_hand():
    found = text_view.token_features(HAND, 2, SCALE)
    assert (found.feature.tolist(), found.value.tolist(), found.hidden) == ([3, 1], [3, 7], 1)
    assert text_view.token_features(HAND, 2, SCALE, by="max").feature.tolist() == [1, 3]
    assert text_view.token_features(HAND, 2, SCALE, by="max", dense=True).feature.tolist() == [0, 1, 3]
    assert len(text_view.token_features(HAND, 0, SCALE).feature) == 0


ROWS = st.lists(st.dictionaries(st.integers(0, D_SAE - 1), st.integers(1, 40).map(lambda v: v / 4), max_size=5), max_size=6)
MAXIMA = st.lists(st.sampled_from([0, 1, 2, 4, 5]), min_size=D_SAE, max_size=D_SAE)
DENSE = st.lists(st.booleans(), min_size=D_SAE, max_size=D_SAE)
SURE = st.none() | st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=D_SAE, max_size=D_SAE)


def share_of(value: float, maximum: float) -> float:
    return value / maximum if maximum else -1.0


@given(ROWS, MAXIMA, DENSE, SURE, st.sampled_from(text_view.RANKINGS), st.booleans())
def test_ranked_equals_brute_force(rows, maxima, dense, sure, by, show_dense):
    scale = Scale(np.asarray(maxima, np.float32), np.asarray(dense), sure and np.asarray(sure))
    firing = defaultdict(list)
    for position, row in enumerate(rows):
        for feature, value in row.items():
            firing[feature].append((value, -position))
    expected = []
    for feature, hits in firing.items():
        top, at = max(hits)
        expected.append(
            {
                "feature": feature,
                "max": top,
                "sum": sum(v for v, _ in hits),
                "count": len(hits),
                "position": -at,
                "share": share_of(top, maxima[feature]),
            }
        )
    before = sure if sure and by == "share" else [0] * D_SAE
    expected.sort(key=lambda row: (-row[by], -before[row["feature"]], -row["max"], row["feature"]))
    shown = [row for row in expected if show_dense or not dense[row["feature"]]]
    found = text_view.ranked(make_trace(rows), scale, by=by, dense=show_dense)
    assert found.hidden == len(expected) - len(shown)
    for name in ("feature", "max", "sum", "count", "position"):
        assert getattr(found, name).tolist() == [row[name] for row in shown]
    np.testing.assert_allclose(np.nan_to_num(found.share, nan=-1), [row["share"] for row in shown])


@given(ROWS, MAXIMA, DENSE, st.booleans())
def test_strongest_equals_brute_force(rows, maxima, dense, show_dense):
    scale = Scale(np.asarray(maxima, np.float32), np.asarray(dense))
    found = text_view.strongest(make_trace(rows), scale, dense=show_dense)
    for position, row in enumerate(rows):
        usable = [(-value / maxima[f], -value, f) for f, value in row.items() if maxima[f] and (show_dense or not dense[f])]
        share, value, feature = min(usable, default=(0, 0, -1))
        assert (found.feature[position], found.value[position]) == (feature, -value)
        assert found.share[position] == pytest.approx(-share)


def test_a_ranking_that_does_not_exist_is_named():
    with pytest.raises(InputError, match=r"'size'.*share, max, sum"):
        text_view.ranked(HAND, SCALE, by="size")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("x" * (text_view.MAX_TEXT_CHARS + 1), "40,001 characters"),
        ("a\ud800b", "surrogate"),
        ("\0" * 50, "binary"),
    ],
)
def test_texts_that_no_model_need_see(text, said):
    with pytest.raises(InputError, match=said):
        text_view.check_own_text(text)


def test_a_text_of_the_longest_length_is_taken():
    text = "x" * text_view.MAX_TEXT_CHARS
    assert text_view.check_own_text(text) == text


# ---- on a bundle ----


@pytest.fixture(scope="module")
def tiny(tiny_cache):
    return open_bundle("tiny", cache=tiny_cache)


def test_a_stored_text_reaches_a_share_of_1_where_the_corpus_has_its_maximum(tiny):
    scale = text_view.scale_of(tiny)
    best = np.zeros(tiny.d_sae)
    for document in range(tiny.n_documents):
        rows = text_view.ranked(tiny.document_trace(document), scale, dense=True)
        best[rows.feature] = np.maximum(best[rows.feature], rows.share)
    live = tiny.features["count"].to_numpy() > 0
    np.testing.assert_array_equal(best[live], 1.0)
    assert int(scale.dense.sum()) == tiny.manifest["features"]["dense"]


def test_csv_and_json_hold_the_same_numbers(tiny):
    trace = tiny.document_trace(3)
    rows = list(csv.DictReader(io.StringIO(text_view.ranked_csv(trace, tiny, by="max"))))
    data = json.loads(json.dumps(trace_json(trace, tiny, top=1000)))
    assert [(int(r["feature"]), float(r["max"]), float(r["sum"]), int(r["peak_position"]), r["label"]) for r in rows] == [
        (t["feature"], t["max"], t["sum"], t["position"], t["label"]) for t in data["top_features"]
    ]
    for row in rows:
        column = trace.rows.column(int(row["feature"]))
        assert int(row["tokens"]) == (column > 0).sum()
        assert row["peak_token"] == trace.tokens.texts[int(column.argmax())]
        assert float(row["share_of_max"]) == pytest.approx(column.max() / tiny.maxima[int(row["feature"])], abs=1e-4)


def test_first_texts_are_distinct_named_by_category_and_always_the_same(tiny):
    picks = showcase.pick_documents(tiny, 6)
    assert picks == showcase.pick_documents(tiny, 6)
    assert len({p.title for p in picks}) == len(picks) == 6
    for pick in picks:
        assert tiny.find_document(pick.id) == pick.document
        assert pick.title == tiny.documents["category"][pick.document].as_py().capitalize()
    assert [p.title for p in picks[1:]] == sorted(p.title for p in picks[1:])


def test_the_best_text_has_the_highest_score(tiny):
    labels = tiny.features["label"].to_pylist()
    worth = showcase.worth_of_features(tiny)
    lengths = np.diff(tiny.doc_offsets)
    low, high = showcase.LENGTH
    scores = {}
    for document in np.flatnonzero((lengths >= low) & (lengths <= high)):
        best = defaultdict(float)
        for hit in tiny.document_trace(int(document)).hits():
            share = hit.max / tiny.maxima[hit.feature]
            if share >= 0.5:
                best[labels[hit.feature]] = max(best[labels[hit.feature]], share * worth[hit.feature])
        scores[int(document)] = sum(sorted(best.values(), reverse=True)[: showcase._FEATURES])
    assert scores[showcase.pick_documents(tiny)[0].document] == pytest.approx(max(scores.values()))


def test_where_categories_are_few_texts_are_named_by_how_they_begin(tiny, monkeypatch):
    column = tiny.documents.column_names.index("category")
    same = tiny.documents.set_column(column, "category", [["all"] * tiny.n_documents])
    monkeypatch.setattr(tiny, "documents", same)
    picks = showcase.pick_documents(tiny, 4)
    assert len(picks) == 4
    for pick in picks:
        assert " ".join(tiny.document_text(pick.document).split()).startswith(pick.title.rstrip("…"))


# ---- the map ----


def test_the_map_draws_strengths_values_and_names():
    trace = make_trace([{2: 5.0}, {}, {3: 1.0}], ["<b>", "&", "\n"])
    values = np.stack([trace.rows.column(2), trace.rows.column(3)])
    shares = values / np.asarray([[10.0], [4.0]])
    names = [spans.dotted(t) for t in trace.tokens.texts]
    figure = figures_text.token_feature_heatmap(names, [2, 3], ["<i>x</i>", "plain"], values, shares, trace.ignored, start=40)
    (heat,) = figure.data
    assert list(heat.x) == [40, 41, 42]
    expected = [[spans.strength(0.5, 1), np.nan, np.nan], [np.nan, np.nan, spans.strength(0.25, 1)]]
    np.testing.assert_allclose(np.asarray(heat.z, float), expected)
    assert list(figure.layout.xaxis.ticktext) == ["&lt;b&gt;", "&amp;", "↵"]
    assert [a.text for a in figure.layout.annotations] == ["<b>2</b>  &lt;i&gt;x&lt;/i&gt;", "<b>3</b>  plain"]
    assert heat.text[0][0] == "<b>2</b>  &lt;i&gt;x&lt;/i&gt;<br>token 40: &lt;b&gt;<br>5.00, 50% of its maximum"
    assert [(s.x0, s.x1) for s in figure.layout.shapes] == [(40.5, 41.5)]


def test_a_long_map_has_no_names_under_it():
    n = figures_text.MOST_TICKS + 1
    figure = figures_text.token_feature_heatmap(["a"] * n, [1], ["l"], np.ones((1, n)), np.ones((1, n)), np.zeros(n, bool))
    assert figure.layout.xaxis.ticktext is None


@pytest.mark.parametrize(
    ("n", "centre", "expected"),
    [(50, 49, (0, 50)), (500, 0, (0, 160)), (500, 250, (170, 330)), (500, 499, (340, 500)), (160, 90, (0, 160))],
)
def test_the_stretch_of_a_long_text(n, centre, expected):
    part = stretch(n, centre)
    assert (part.start, part.stop) == expected
    assert part.start <= centre < part.stop <= part.start + MAP_TOKENS


def test_the_numbers_of_a_text_need_no_torch():
    """In a process of its own: this one has torch."""
    modules = "sae_explore.explore.text_view, sae_explore.explore.showcase, sae_explore.drawing.spans, sae_explore.drawing.figures_text"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1])
