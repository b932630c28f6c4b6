"""The pages Feature, Browse, Lens and About, driven through the app's entry point and compared with brute force on the bundle."""

import base64
import re
from html import unescape
from pathlib import Path

import numpy as np
import plotly.io
import pytest
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash

from sae_explore import about, browse, lens, resources, spans
from sae_explore.bundle import Bundle, open_bundle
from sae_explore.diverse import clarity
from sae_explore.tracer import Tracer
from sae_explore.views.lens_page import parse_numbers
from sae_explore.wording import KIND_WORDS

pytest_plugins = ["bundle_fixtures"]
DEAD, DENSE = 0, 10  # of the bundle `planted`
APP = str(Path(__file__).resolve().parents[1] / "streamlit_app.py")
HOSTILE = "<script>x</script> **b** [l](javascript:1) :smile: $x$ `c` <b>"


def open_page(name: str, bundle: str = "tiny", **params: str) -> AppTest:
    at = AppTest.from_file(APP, default_timeout=20)
    at._page_hash = calc_hash(name)  # the pages are functions, and `switch_page` knows files only
    for key, value in {"bundle": bundle, **params}.items():
        at.query_params[key] = value
    return run(at)


def run(at) -> AppTest:
    at = at.run()
    assert not at.exception
    return at


def figure(at: AppTest, alt: str):
    """The chart whose description begins so."""
    found = [chart.proto.spec for chart in at.get("plotly_chart") if chart.proto.alt.startswith(alt)]
    assert len(found) == 1, [chart.proto.alt for chart in at.get("plotly_chart")]
    return plotly.io.from_json(found[0])


def numbers(drawn) -> list:
    """A chart's numbers, which travel as base64."""
    if isinstance(drawn, dict):
        shape = [int(n) for n in str(drawn.get("shape", "-1")).split(",")]
        drawn = np.frombuffer(base64.b64decode(drawn["bdata"]), drawn["dtype"]).reshape(shape)
    return np.asarray(drawn).tolist()


def select_row(at: AppTest, row: int) -> AppTest:
    """Select a row of the table of all features."""
    key = re.search(r"browse_table_\d+", at.dataframe[0].proto.id)[0]
    at.session_state[key] = {"selection": {"rows": [row], "columns": [], "cells": []}}
    return run(at)


def values_of(at: AppTest) -> list[float]:
    """Peak activations of the examples on the page."""
    return [float(v) for block in at.get("html") for v in re.findall(r'<div class="v">([\d.]+)</div>', block.proto.body)]


def texts_of(at: AppTest) -> str:
    """All that is shown as markdown."""
    return "\n".join(e.value for kind in ("markdown", "caption", "title", "header", "subheader", "info", "warning", "error", "success") for e in getattr(at, kind))


@pytest.fixture
def tiny(app_cache) -> Bundle:
    return open_bundle("tiny")


@pytest.fixture
def planted(app_cache) -> Bundle:
    return open_bundle("planted")


@pytest.mark.parametrize("bundle", ["tiny", "planted"])
@pytest.mark.parametrize("page", ["feature", "browse", "lens", "about"])
def test_pages_open_without_a_model(app_cache, page, bundle):
    at = open_page(page, bundle)
    assert at.title[0].value
    assert not at.error
    assert at.query_params["bundle"] in (bundle, [bundle])


# ---- Feature -----------------------------------------------------------------------------------------------------------


def test_facts_and_histogram_by_brute_force(tiny):
    feature = 5
    entries = np.asarray(tiny.store.token_features) == feature
    values = np.asarray(tiny.store.token_values)[entries].astype(np.float64)
    counted = int((~np.asarray(tiny.ignored)).sum())
    at = open_page("feature", feature=str(feature))
    metrics = {m.label: m.value for m in at.metric}
    assert metrics["Firing tokens"] == f"{len(values):,} of {counted:,}"
    assert metrics["Maximum"] == f"{values.max():.2f}"
    assert metrics["Mean when firing"] == f"{values.mean():.2f}"
    every = counted / len(values)
    assert metrics["Fires on"].startswith(f"1 in {every:.1f} tokens" if every < 9.95 else f"1 in {every:,.0f} tokens")
    drawn = figure(at, "Histogram of activations")
    edges = np.linspace(0, values.max(), 41)
    counts = [int(((values > a) & (values <= b)).sum()) for a, b in zip(edges[:-1], [*edges[1:-1], np.inf], strict=True)]
    assert numbers(drawn.data[0].y) == counts


def test_categories_by_brute_force(tiny):
    feature = 5
    tokens = np.searchsorted(tiny.store.token_offsets, np.flatnonzero(np.asarray(tiny.store.token_features) == feature), side="right") - 1
    names = np.asarray(tiny.documents["category"].to_pylist())[[tiny.document_of(int(t)) for t in tokens]]
    everywhere = np.repeat(tiny.documents["category"].to_pylist(), np.diff(tiny.doc_offsets))[~np.asarray(tiny.ignored)]
    drawn = figure(open_page("feature", feature=str(feature)), "Share of firings")
    order = list(drawn.layout.yaxis.ticktext)
    assert sorted(order) == tiny.categories
    assert numbers(drawn.data[0].x) == pytest.approx([float(np.mean(names == c)) for c in order])
    assert numbers(drawn.data[1].x) == pytest.approx([float(np.mean(everywhere == c)) for c in order], abs=1e-6)


@pytest.mark.parametrize("convention", lens.CONVENTIONS)
def test_lens_lists_by_brute_force(tiny, gpt2_model, convention):
    feature = 7
    logits = (np.asarray(tiny.W_dec[feature], np.float32) @ lens.lens_matrix(gpt2_model.unembedding, convention).numpy()).astype(np.float64)
    logits[np.asarray(tiny.vocabulary.special) | (np.diff(tiny.vocabulary.offsets) == 0)] = np.nan
    at = open_page("feature", feature=str(feature))
    choice = next(g for g in at.button_group if g.label == "Convention")
    assert choice.options[0] == tiny.lens_default
    at = run(choice.set_value(convention))
    up = figure(at, "Promotes")
    assert numbers(up.data[0].x) == pytest.approx(np.sort(logits[np.isfinite(logits)])[::-1][:10], abs=2e-3)
    down = figure(at, "Suppresses")
    assert numbers(down.data[0].x) == pytest.approx(np.sort(logits[np.isfinite(logits)])[:10], abs=2e-3)
    for trace in (up.data[0], down.data[0]):
        assert [logits[i] for _, i in trace.customdata] == pytest.approx(numbers(trace.x), abs=2e-3)
    baseline = tiny.manifest["lens"]["random"]["top_logit"][convention]
    assert [line.x0 for line in up.layout.shapes] == pytest.approx([baseline], rel=1e-3)  # decoder rows have unit norm


def test_related_features_by_brute_force(tiny):
    feature = 9
    rows = np.asarray(tiny.W_dec, np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = rows @ rows[feature]
    cosine[feature] = -2
    at = open_page("feature", feature=str(feature))
    nearest, together = (frame.value for frame in at.dataframe)
    assert nearest["Feature"].tolist() == np.argsort(-cosine)[:10].tolist()
    assert nearest["Cosine"].tolist() == pytest.approx(np.sort(cosine)[::-1][:10], abs=1e-3)
    assert nearest["Label"].tolist() == [tiny.label(f) for f in nearest["Feature"]]
    fires = np.zeros((tiny.store.n_tokens, tiny.d_sae), bool)
    fires[np.repeat(np.arange(tiny.store.n_tokens), np.diff(tiny.store.token_offsets)), tiny.store.token_features] = True
    for row in together.itertuples():
        assert row.Together == pytest.approx(100 * fires[fires[:, feature], row.Feature].mean(), abs=0.1)
        assert row.Tokens == (fires[:, feature] & fires[:, row.Feature]).sum()
        assert row.Correlation == pytest.approx(np.corrcoef(fires[:, feature], fires[:, row.Feature])[0, 1], abs=2e-3)


def test_examples_strongest_first_and_all_on_request(tiny):
    at = open_page("feature", feature="5")
    shown = values_of(at)
    assert len(shown) == 10
    assert shown[0] == pytest.approx(float(tiny.maxima[5]), abs=0.01)
    assert shown == sorted(shown, reverse=True)
    at = run(next(t for t in at.toggle if t.label == "All 20").set_value(True))
    assert len(values_of(at)) == 20
    assert values_of(at)[:10] == shown


def test_examples_by_strength_lie_in_their_range(tiny):
    at = open_page("feature", feature="5")
    at = run(at.button_group[0].set_value("By strength"))
    headings = [m.value for m in at.markdown if "of the maximum" in m.value]
    assert len(headings) == 5
    ranges = [tuple(map(float, re.match(r"\*\*([\d.]+) to ([\d.]+)\*\*", h).groups())) for h in headings]
    assert ranges[0][1] == pytest.approx(float(tiny.maxima[5]), abs=0.01)
    values = tiny.store.firings(5)[1].astype(np.float64) / float(tiny.maxima[5])
    for i, heading in zip((4, 3, 2, 1, 0), headings, strict=True):
        count = int(re.search(r"([\d,]+) tokens?\)", heading)[1].replace(",", ""))
        assert count == ((values > i / 5) & (values <= (i + 1) / 5)).sum()
    examples = tiny.interval_examples(5)
    assert sorted(values_of(at)) == pytest.approx(sorted(e.max for e in examples), abs=0.006)


def test_longer_context_shows_more_of_the_same_examples(tiny):
    at = open_page("feature", feature="5")
    short = [b.proto.body for b in at.get("html") if "sx ex" in b.proto.body][0]
    at = run(next(t for t in at.toggle if t.label == "Longer context").set_value(True))
    long = [b.proto.body for b in at.get("html") if "sx ex" in b.proto.body][0]
    assert re.findall(r'<div class="v">([\d.]+)', short) == re.findall(r'<div class="v">([\d.]+)', long)
    assert len(long) > 1.5 * len(short)


def test_walking_from_feature_to_feature(planted):
    at = open_page("feature", "planted", feature="4")
    press = {b.label: b for b in at.button}
    at = run(press["Next"].click())
    assert (at.title[0].value, at.number_input[0].value) == ("Feature 5", 5)
    assert dict(at.query_params) in ({"bundle": "planted", "feature": "5"}, {"bundle": ["planted"], "feature": ["5"]})
    at = run({b.label: b for b in at.button}["Previous"].click())
    assert at.title[0].value == "Feature 4"
    at = run(at.number_input[0].set_value(63))
    assert at.title[0].value == "Feature 63"
    assert {b.label: b.disabled for b in at.button}["Next"]
    for _ in range(5):
        before = at.number_input[0].value
        at = run({b.label: b for b in at.button}["Random"].click())
        assert at.number_input[0].value != before
        assert planted.row(at.number_input[0].value)["count"] > 0


def test_a_row_of_the_table_opens_its_feature(tiny):
    at = open_page("feature", feature="9")
    wanted = int(at.dataframe[0].value["Feature"].iloc[2])
    at.session_state["nearest_9"] = {"selection": {"rows": [2], "columns": [], "cells": []}}
    at = run(at)
    assert at.title[0].value == f"Feature {wanted}"
    assert at.query_params["feature"] in (str(wanted), [str(wanted)])


def test_a_dead_feature_says_so_and_draws_nothing_empty(planted):
    at = open_page("feature", "planted", feature=str(DEAD))
    assert "dead" in at.info[0].value
    assert not at.metric
    assert not values_of(at)
    assert {chart.proto.alt.split(":")[0] for chart in at.get("plotly_chart")} == {"Promotes", "Suppresses"}
    assert len(at.dataframe) == 1  # nearest directions; there is nothing that it fires together with


def test_a_dense_feature_says_so(planted):
    at = open_page("feature", "planted", feature=str(DENSE))
    assert "dense" in at.info[0].value
    assert "1 in 1.0 tokens" in at.metric[0].value


@pytest.mark.parametrize(("asked", "said"), [("64", "no feature 64"), ("999999999", "no feature 999999999"), ("-1", "no feature number"), ("x<b>", "no feature number")])
def test_an_unknown_feature_is_named_and_another_shown(tiny, asked, said):
    at = open_page("feature", feature=asked)
    assert said in at.warning[0].value
    shown = int(at.title[0].value.removeprefix("Feature "))
    assert tiny.row(shown)["count"] > 0
    assert at.query_params["feature"] in (str(shown), [str(shown)])


def test_own_text_is_coloured_by_the_feature_and_stays(tiny):
    text = "The old map shows 3 rivers.\nNobody knows <b>why</b>."
    trace = Tracer.load(tiny).trace(text)
    hit = trace.hits()[0]
    at = open_page("feature", feature=str(hit.feature))
    at.text_area[0].set_value(text)
    at = run({b.label: b for b in at.button}["Test"].click())
    assert f"**{hit.max:.2f}**" in texts_of(at)
    assert f"Fires on {hit.count} of " in texts_of(at)
    body = next(b.proto.body for b in at.get("html") if b.proto.body.startswith('<div class="sx"><span'))
    assert "<b>" not in body
    assert unescape(re.sub(r'<span class="nl">.</span>|<[^>]+>', "", body)).replace("·", " ") == text
    silent = next(f for f in range(tiny.d_sae) if f not in {h.feature for h in trace.hits()})
    at = run(at.number_input[0].set_value(silent))
    assert "Silent on all" in texts_of(at)


def test_an_unreadable_own_text_is_a_sentence(tiny):
    at = open_page("feature", feature="5")
    at.text_area[0].set_value("a\0" * 50)
    at = run({b.label: b for b in at.button}["Test"].click())
    assert "binary" in at.error[0].value
    at.text_area[0].set_value("  ")
    at = run({b.label: b for b in at.button}["Test"].click())
    assert "no text yet" in texts_of(at)


# ---- Browse ------------------------------------------------------------------------------------------------------------


def shown_features(at: AppTest) -> list[int]:
    return at.dataframe[0].value["feature"].tolist() if at.dataframe else []


def test_browse_lists_live_features_that_are_not_dense(planted):
    count, density = planted.features["count"].to_numpy(), planted.features["density"].to_numpy()
    at = open_page("browse", "planted")
    assert sorted(shown_features(at)) == np.flatnonzero((count > 0) & (density <= 0.1)).tolist()
    assert f"**{len(shown_features(at))} of 64 features**" in at.markdown[0].value
    frame = at.dataframe[0].value
    for row in frame.itertuples():
        kept = planted.row(row.feature)
        assert (row.label, row.max, row.confidence) == (kept["label"], kept["max"], kept["confidence"])
        assert row.density == pytest.approx(100 * kept["density"])
        assert row.kind == KIND_WORDS[kept["label_kind"]]
    score = clarity(planted.features, 0.1)[frame["feature"].to_numpy()]
    assert (np.diff(np.nan_to_num(score, nan=-1)) <= 0).all()
    for toggle in at.toggle:
        toggle.set_value(False)
    assert sorted(shown_features(run(at))) == list(range(64))


@pytest.mark.parametrize("query", ["(", ".*", "[", "\\", "a|b", "+", "THE", " t", "7", "no such label", HOSTILE])
def test_search_is_a_plain_piece_of_text(tiny, query):
    wanted = [
        row["feature"] for row in map(tiny.row, range(tiny.d_sae))
        if row["density"] <= 0.1 and (query == str(row["feature"]) or any(query.casefold() in row[k].casefold() for k in ("label", "peak_token", "lens_tokens")))
    ]  # fmt: skip
    at = open_page("browse")
    at = run(at.text_input[0].set_value(query))
    assert sorted(shown_features(at)) == wanted
    assert bool(at.info) == (not wanted)
    assert "<script>" not in texts_of(at).replace(spans.md(HOSTILE), "")


def test_a_number_finds_its_feature_first(tiny):
    asked = next(f for f in range(10, 64) if tiny.row(f)["density"] <= 0.1)
    at = run(open_page("browse").text_input[0].set_value(f" {asked} "))
    assert shown_features(at)[0] == asked


def test_filters_by_brute_force(planted):
    frame = browse.feature_frame(planted)
    assert frame["feature"].tolist() == list(range(64))
    rows = [planted.row(f) for f in range(64)]
    cases = [
        (browse.Filter(hide_dead=False, dense_above=None), lambda r: True),
        (browse.Filter(kinds=frozenset({"mixed", "token"})), lambda r: r["label_kind"] in ("mixed", "token") and r["count"] and r["density"] <= 0.1),
        (browse.Filter(confidence=0.3, dense_above=None), lambda r: r["confidence"] >= 0.3 and r["count"]),
        (browse.Filter(density=(0.01, 0.05)), lambda r: 0.01 <= r["density"] <= 0.05 and r["count"]),
        (browse.Filter(density=(0.01, 0.05), hide_dead=False), lambda r: 0.01 <= r["density"] <= 0.05 or not r["count"]),
        (browse.Filter(query="MIXED"), lambda r: "mixed" in r["label"] and r["count"] and r["density"] <= 0.1),
    ]
    for wanted, holds in cases:
        mask = browse.kept(frame, wanted)
        assert np.flatnonzero(mask).tolist() == [r["feature"] for r in rows if holds(r)], wanted
        assert sorted(browse.ordered(frame, mask)) == np.flatnonzero(mask).tolist()
    order = browse.ordered(frame, np.ones(64, bool))
    assert order[0] == browse.start_feature(frame) == np.nanargmax(clarity(planted.features, 0.1))
    assert not np.isfinite(clarity(planted.features, 0.1)[order[-sum(r["count"] == 0 for r in rows) :]]).any()
    assert browse.ordered(frame, np.ones(64, bool), query="9")[0] == 9


def test_selecting_a_row_shows_its_feature(tiny):
    at = select_row(open_page("browse"), 1)
    feature = shown_features(at)[1]
    assert values_of(at)[0] == pytest.approx(float(tiny.maxima[feature]), abs=0.01)
    assert f"feature={feature}" in str([link.proto for link in at.get("page_link")])


def test_the_density_chart_counts_live_features_and_marks_the_range(planted):
    at = open_page("browse", "planted")
    drawn = figure(at, "Histogram")
    assert sum(numbers(drawn.data[0].y)) == (planted.features["count"].to_numpy() > 0).sum()
    at = run(at.select_slider[0].set_value((1_000, 30)))
    box = next(s for s in figure(at, "Histogram").layout.shapes if s.type == "rect")
    assert box.x1 == pytest.approx(np.log10(1 / 30))
    density = planted.features["density"].to_numpy()
    assert sorted(shown_features(at)) == np.flatnonzero((density >= 1e-3) & (density <= 1 / 30)).tolist()


# ---- Lens --------------------------------------------------------------------------------------------------------------


def test_lens_begins_with_features_that_differ(tiny):
    at = open_page("lens")
    chosen, _ = parse_numbers(at.text_input[0].value, 64)
    assert len(chosen) == 4
    drawn = figure(at, "Decoder cosines")
    rows = np.asarray(tiny.W_dec, np.float64)[chosen]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.allclose(numbers(drawn.data[0].z), rows @ rows.T, atol=1e-4)
    assert np.abs(rows @ rows.T - np.eye(4)).max() < 0.7
    score = clarity(tiny.features, 0.1)
    assert chosen[0] == np.nanargmax(score)


def test_lens_of_chosen_features(tiny, gpt2_model):
    at = run(open_page("lens").text_input[0].set_value("3, 12;3 40"))
    assert at.text_input[0].value == "3, 12, 40"
    assert at.query_params["features"] in ("3,12,40", ["3,12,40"])
    matrix = lens.lens_matrix(gpt2_model.unembedding, "folded").numpy()
    strengths = numbers(figure(at, "Direction strength").data[0].x)
    assert strengths == pytest.approx([float((np.asarray(tiny.W_dec[f]) @ matrix).std()) for f in (3, 12, 40)], rel=1e-3)
    for feature in (3, 12, 40):
        expected = [t.logit for t in tiny.lens_tokens(feature)[0][:10]]
        assert numbers(figure(at, f"Feature {feature} promotes").data[0].x) == pytest.approx(expected)
    ends = {figure(at, f"Feature {f} promotes").layout.xaxis.range[1] for f in (3, 12, 40)}
    assert len(ends) == 1


def test_lens_link_reopens_the_view_and_names_what_is_not_there(tiny):
    at = open_page("lens", features="5,64,7,x")
    assert at.text_input[0].value == "5, 7"
    said = " ".join(w.value for w in at.warning)
    assert "no feature 64" in said
    assert "no feature number" in said


def test_lens_without_features_says_what_to_do(tiny):
    at = run(open_page("lens").text_input[0].set_value(""))
    assert "No feature is chosen" in at.info[0].value
    assert not at.get("plotly_chart")
    at = run({b.label: b for b in at.button}["Diverse features"].click())
    assert len(at.get("plotly_chart")) == 6


def test_numbers_of_features_in_a_text():
    assert parse_numbers("1, 2;3\n2", 64) == ([1, 2, 3], [])
    features, problems = parse_numbers(" ".join(map(str, range(12))), 64)
    assert features == list(range(8))
    assert len(problems) == 1
    assert parse_numbers("64 -1 1e3 ٣", 64)[0] == []
    assert len(parse_numbers("64 -1 1e3 ٣", 64)[1]) == 4


# ---- About -------------------------------------------------------------------------------------------------------------


def test_about_shows_the_figures_of_the_manifest(tiny):
    at = open_page("about")
    metrics = tiny.manifest["metrics"]
    table = at.table[0].value
    shown = {name: spans_off(value) for name, value in zip(map(spans_off, table.index), table["Value"], strict=True)}
    assert shown["Explained variance"] == f"{metrics['explained_variance']:.3f}"
    assert shown["L0"] == f"{metrics['l0']:.1f} of 64"
    assert shown["Loss with the SAE"] == f"{metrics['ce_sae']:.3f}"
    assert shown["Increase of the loss"] == f"{metrics['ce_sae'] - metrics['ce_clean']:+.3f}"
    recovered = (metrics["ce_zero"] - metrics["ce_sae"]) / (metrics["ce_zero"] - metrics["ce_clean"])
    assert shown["Recovered, against zero"] == f"{recovered:.1%}"
    by_category = at.dataframe[0].value.set_index("Category")
    assert by_category.loc["arts", "Increase"] == pytest.approx(metrics["by_category"]["arts"]["ce_sae"] - metrics["by_category"]["arts"]["ce_clean"])
    assert at.success
    l0 = len(tiny.store.token_features) / tiny.manifest["features"]["counted_tokens"]
    assert f"**{l0:.1f}** are active" in texts_of(at)


def spans_off(text: str) -> str:
    """Markdown escapes taken away."""
    return re.sub(r"\\(.)", r"\1", text).replace("\u2060", "").replace("\u00a0", " ")


def test_about_repeats_what_the_build_noticed(planted):
    at = open_page("about", "planted")
    assert [spans_off(w.value).casefold().rstrip(".") for w in at.warning] == [w.casefold().rstrip(".") for w in planted.manifest["warnings"]]
    assert not at.success


def test_the_mixed_example_is_mixed_and_live(tiny):
    frame = browse.feature_frame(tiny)
    feature = about.mixed_feature(frame, 0.1)
    row = tiny.row(feature)
    assert row["label_kind"] == "mixed"
    assert row["density"] <= 0.1
    assert row["confidence"] == min(r["confidence"] for r in map(tiny.row, range(64)) if r["label_kind"] == "mixed" and r["density"] <= 0.1 and r["count"] >= 10)
    assert about.mixed_feature(frame[frame["kind"] != "mixed"], 0.1) is None


def test_figures_that_are_missing_are_said_to_be_missing(tiny):
    manifest = {**tiny.manifest, "metrics": {**tiny.manifest["metrics"], "ce_recovered": float("nan"), "explained_variance_train": None}}
    rows = {row[0]: row[1] for row in about.figure_rows(manifest)}
    assert rows["Recovered, against zero"] == "not defined"
    assert rows["Explained variance, in-sample"] == "not measured"


# ---- strings from outside ----------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(app_cache, monkeypatch):
    """Labels, tokens and categories that would be markup, formulas or links if anything read them so."""
    import pyarrow as pa

    real = Bundle.__init__

    def init(self, folder):
        real(self, folder)
        for name in ("label", "peak_token", "lens_tokens"):
            at = self.features.column_names.index(name)
            self.features = self.features.set_column(at, name, pa.array([f"{HOSTILE} {i}" for i in range(self.d_sae)]))
        renamed = {c: f"{HOSTILE} {c}" for c in self.manifest["corpus"]["categories"]}
        corpus, metrics = self.manifest["corpus"], self.manifest["metrics"]
        corpus["categories"] = list(renamed.values())
        corpus["category_share"] = {renamed[c]: share for c, share in corpus["category_share"].items()}
        metrics["by_category"] = {renamed[c]: row for c, row in metrics["by_category"].items()}
        corpus["sources"][0]["name"] = corpus["sources"][0]["licence"] = self.manifest["model"]["display"] = HOSTILE
        corpus["notes"] = [HOSTILE]
        self.documents = self.documents.set_column(self.documents.column_names.index("category"), "category",
                                                   pa.array([renamed[c] for c in self.documents["category"].to_pylist()]))  # fmt: skip

    monkeypatch.setattr(Bundle, "__init__", init)
    monkeypatch.setattr(Bundle, "token_texts", lambda self, document, start, stop: (HOSTILE,) * (stop - start))
    monkeypatch.setattr("sae_explore.tokens.Vocabulary.text_of", lambda self, token_id: HOSTILE)


@pytest.mark.parametrize("page", ["feature", "browse", "lens", "about"])
def test_no_string_from_outside_becomes_markup(hostile, page):
    at = open_page(page, feature="5")
    if page == "browse":
        at = select_row(at, 0)
    bodies = [b.proto.body for b in at.get("html") if "<style>" not in b.proto.body]
    assert not [b for b in bodies if re.search(r"<(?!/?(?:div|span)\b)", b)]
    for chart in at.get("plotly_chart"):
        assert "<b>" not in chart.proto.spec.replace("<br>", "")
        assert "<script" not in chart.proto.spec
    links = [link.proto.label for link in at.get("page_link")]
    for text in [texts_of(at), *links, *(str(v) for table in at.table for v in [*table.value.index, *table.value.to_numpy().ravel()])]:
        left = text.replace(spans.md(HOSTILE), "")
        assert "<script" not in left
        assert "](javascript" not in left
        assert ":smile:" not in left


def test_the_frame_and_the_choice_are_made_once(tiny):
    bundle = resources.get_bundle("tiny")
    assert resources.get_frame(bundle) is resources.get_frame(bundle)
    assert resources.get_diverse(bundle, 3) == resources.get_diverse(bundle, 4)[:3]
