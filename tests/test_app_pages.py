"""All pages but Text open, whatever a bundle's strings are; the page Feature compared with brute force on the bundle."""

import re
from collections import Counter
from html import escape, unescape

import numpy as np
import pytest
from app_driver import figure, numbers, open_page, run, select_row, texts_of, values_of

from sae_explore import lens, resources, spans
from sae_explore.bundle import Bundle, open_bundle
from sae_explore.scores import SCORES
from sae_explore.tracer import Tracer

pytest_plugins = ["bundle_fixtures"]
DEAD, DENSE = 0, 10  # of the bundle `planted`
HOSTILE = "<script>x</script> **b** [l](javascript:1) :smile: $x$ `c` <b>"


@pytest.fixture
def tiny(app_cache) -> Bundle:
    return open_bundle("tiny")


@pytest.fixture
def planted(app_cache) -> Bundle:
    return open_bundle("planted")


@pytest.mark.parametrize("bundle", ["tiny", "planted"])
@pytest.mark.parametrize("page", ["feature", "browse", "lens", "lists", "quality", "about"])
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


def test_scores_and_what_they_are_about(tiny):
    feature = 5
    row, at = tiny.row(feature), open_page("feature", feature="5")
    block = next(h.proto.body for h in at.get("html") if 'class="sx sc"' in h.proto.body)
    numbers_shown = re.findall(r'<div class="n">([\d.–]+)</div>', block)
    assert numbers_shown == [f"{row[f'score_{name}']:.2f}" for name in SCORES]
    tops = tiny.top_examples(feature, 20)
    peak, count = Counter(e.tokens[e.peak - e.start].strip().casefold() for e in tops).most_common(1)[0]
    assert f"{count / len(tops):.2f}" == numbers_shown[list(SCORES).index("token")]
    assert f'<div class="w">{escape(peak)}</div>' in block
    assert all(score.explained in texts_of(at) for score in SCORES.values())
    assert "built before" not in texts_of(at)


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
    short = next(b.proto.body for b in at.get("html") if "sx ex" in b.proto.body)
    at = run(next(t for t in at.toggle if t.label == "Longer context").set_value(True))
    long = next(b.proto.body for b in at.get("html") if "sx ex" in b.proto.body)
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


@pytest.mark.parametrize(
    ("asked", "said"),
    [("64", "no feature 64"), ("999999999", "no feature 999999999"), ("-1", "no feature number"), ("x<b>", "no feature number")],
)
def test_an_unknown_feature_is_named_and_another_shown(tiny, asked, said):
    at = open_page("feature", feature=asked)
    assert said in at.warning[0].value
    shown = int(at.title[0].value.removeprefix("Feature "))
    assert tiny.row(shown)["count"] > 0
    assert at.query_params["feature"] in (str(shown), [str(shown)])


def own_text_box(at):
    """The text area under "Does my text activate it?"; another one is for the visitor's note."""
    return next(area for area in at.text_area if "activate" in area.placeholder)


def test_own_text_is_coloured_by_the_feature_and_stays(tiny):
    text = "The old map shows 3 rivers.\nNobody knows <b>why</b>."
    trace = Tracer.load(tiny).trace(text)
    hit = trace.hits()[0]
    at = open_page("feature", feature=str(hit.feature))
    own_text_box(at).set_value(text)
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
    own_text_box(at).set_value("a\0" * 50)
    at = run({b.label: b for b in at.button}["Test"].click())
    assert "binary" in at.error[0].value
    own_text_box(at).set_value("  ")
    at = run({b.label: b for b in at.button}["Test"].click())
    assert "no text yet" in texts_of(at)


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


@pytest.mark.parametrize("page", ["feature", "browse", "lens", "lists", "quality", "about"])
def test_no_string_from_outside_becomes_markup(hostile, page):
    at = open_page(page, feature="5")
    if page == "browse":
        at = select_row(at, 0)
    bodies = [b.proto.body for b in at.get("html") if "<style>" not in b.proto.body]
    assert not [b for b in bodies if re.search(r"<(?!/?(?:div|span)\b|i style=\"width: \d+%\">|/i>)", b)]
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
