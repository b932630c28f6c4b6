"""The page Feature, driven through the app's entry point and compared with brute force on the bundle."""

import re
from collections import Counter
from html import escape, unescape
from urllib.parse import parse_qs

import numpy as np
import pytest
from app_driver import address, bins_of, drawn, open_page, run, texts_of, unescaped, values_of

from sae_explore import resources
from sae_explore.bundles.tracer import Tracer
from sae_explore.errors import ModelError
from sae_explore.features import lens
from sae_explore.features.scores import SCORES
from sae_explore.files.tensor_file import read_tensors
from sae_explore.public_mode import HIDDEN

pytest_plugins = ["bundle_fixtures"]
DEAD, DENSE = 0, 10  # of the bundle `planted`


def choose(at, label: str, value: str):
    """Choose in the control of this name."""
    return run(next(g for g in at.button_group if g.label == label).set_value(value))


def marked(at) -> list[float]:
    """The values that the histogram of activations marks."""
    return [float(x) for x in re.findall(r">this text ([\d.]+)<", drawn(at, "Histogram of activations"))]


def listed(chart: str) -> tuple[list[float], list[int]]:
    """(logits, token ids) of a chart of lens tokens."""
    found = re.findall(r'class="track" title="[^"]*\nlogit ([-+\d.]+)\ntoken id (\d+)"', chart)
    return [float(logit) for logit, _ in found], [int(token) for _, token in found]


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
    deviation = values.std()
    z = (values - values.mean()) / deviation
    moments = f"standard deviation {deviation:.2f} · skewness {(z**3).mean():+.2f} · excess kurtosis {(z**4).mean() - 3:+.2f}"
    assert f"Mean {values.mean():.2f} · {moments}" in texts_of(at)
    edges = np.linspace(0, values.max(), 41)
    counts = [int(((values > a) & (values <= b)).sum()) for a, b in zip(edges[:-1], [*edges[1:-1], np.inf], strict=True)]
    assert bins_of(drawn(at, "Histogram of activations")) == counts


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
    chart = drawn(open_page("feature", feature=str(feature)), "Share of firings")
    found = re.findall(r'class="track" title="(.+?): ([\d.]+)% of this feature&#x27;s firings, ([\d.]+)% of the corpus"', chart)
    order = [name for name, _, _ in found]
    assert sorted(order) == tiny.categories
    assert [float(share) / 100 for _, share, _ in found] == pytest.approx([float(np.mean(names == c)) for c in order], abs=6e-4)
    assert [float(share) / 100 for _, _, share in found] == pytest.approx([float(np.mean(everywhere == c)) for c in order], abs=6e-4)


@pytest.mark.parametrize("convention", lens.CONVENTIONS)
def test_lens_lists_by_brute_force(tiny, gpt2_model, convention):
    feature = 7
    logits = (np.asarray(tiny.W_dec[feature], np.float32) @ lens.lens_matrix(gpt2_model.unembedding, convention).numpy()).astype(np.float64)
    logits[np.asarray(tiny.vocabulary.special) | (np.diff(tiny.vocabulary.offsets) == 0)] = np.nan
    at = open_page("feature", feature=str(feature))
    choice = next(g for g in at.button_group if g.label == "Convention")
    assert choice.options[0] == tiny.lens_default
    at = run(choice.set_value(convention))
    up, down = drawn(at, "Promotes"), drawn(at, "Suppresses")
    assert listed(up)[0] == pytest.approx(np.sort(logits[np.isfinite(logits)])[::-1][:10], abs=2.5e-3)
    assert listed(down)[0] == pytest.approx(np.sort(logits[np.isfinite(logits)])[:10], abs=2.5e-3)
    for values, ids in (listed(up), listed(down)):
        assert [logits[i] for i in ids] == pytest.approx(values, abs=2.5e-3)
    baseline = tiny.manifest["lens"]["random"]["top_logit"][convention]
    assert f">random {baseline:+.2f}<" in up  # decoder rows have unit norm


def test_the_logits_of_the_vocabulary_by_brute_force(tiny, gpt2_model):
    feature = 7
    logits = np.asarray(tiny.W_dec[feature], np.float32) @ lens.lens_matrix(gpt2_model.unembedding, "folded").numpy()
    chart = drawn(open_page("feature", feature=str(feature)), "Histogram of folded logits")
    expected = np.histogram(logits, np.linspace(logits.min(), logits.max(), 41))[0]
    assert np.abs(np.asarray(bins_of(chart)) - expected).sum() <= 4  # a logit on an edge may fall on either side
    edges = np.linspace(logits.min(), logits.max(), 41)
    assert [float(x) for x in re.findall(r"tokens between ([-+\d.]+) and", chart)] == pytest.approx(edges[:-1], abs=6e-3)
    baseline = tiny.manifest["lens"]["random"]["top_logit"]["folded"]
    end = 1.03 * float(max(abs(logits).max(), baseline))
    left, right = (float(x) / 100 for x in re.findall(r'class="line " style="left:([\d.]+)%"', chart))
    assert [left * 2 * end - end, right * 2 * end - end] == pytest.approx([-baseline, baseline], abs=1e-3 * end)


@pytest.mark.parametrize("side", ["decoder", "encoder"])
def test_nearest_directions_by_brute_force(tiny, side):
    feature = 9
    weights = read_tensors(tiny.files / "sae" / "sae_weights.safetensors")
    rows = np.asarray(weights["W_dec"] if side == "decoder" else weights["W_enc"].T, np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = rows @ rows[feature]
    cosine[feature] = -2
    at = choose(open_page("feature", feature=str(feature)), "Compare by", side)
    nearest = at.dataframe[0].value
    assert nearest["Feature"].tolist() == np.argsort(-cosine)[:10].tolist()
    assert nearest["Cosine"].tolist() == pytest.approx(np.sort(cosine)[::-1][:10], abs=1e-3)
    assert nearest["Label"].tolist() == [tiny.label(f) for f in nearest["Feature"]]


@pytest.mark.parametrize("feature", [5, 9, 33])
def test_what_fires_together_by_brute_force_over_the_whole_dictionary(tiny, feature):
    fires = np.zeros((tiny.store.n_tokens, tiny.d_sae), bool)
    fires[np.repeat(np.arange(tiny.store.n_tokens), np.diff(tiny.store.token_offsets)), tiny.store.token_features] = True
    fires = fires[~np.asarray(tiny.ignored)]
    both = (fires[:, feature, None] & fires).sum(0)
    with np.errstate(invalid="ignore"):
        phi = np.nan_to_num(np.corrcoef(fires.T)[feature], nan=-1)
    phi[feature] = -1
    listed = [f for f in np.argsort(-phi, kind="stable")[:10] if phi[f] > 0 and both[f]]
    table = open_page("feature", feature=str(feature)).dataframe[1].value
    assert table["Feature"].tolist() == listed
    assert table["Together"].tolist() == pytest.approx(100 * both[listed] / fires[:, feature].sum(), abs=0.06)
    assert table["Correlation"].tolist() == pytest.approx(phi[listed], abs=1e-3)
    assert table["Tokens"].tolist() == both[listed].tolist()


def test_examples_strongest_first_and_all_on_request(tiny):
    at = choose(open_page("feature", feature="5"), "Which examples", "Strongest")
    shown = values_of(at)
    assert len(shown) == 10
    assert shown[0] == pytest.approx(float(tiny.maxima[5]), abs=0.01)
    assert shown == sorted(shown, reverse=True)
    at = run(next(t for t in at.toggle if t.label == "All 20").set_value(True))
    assert len(values_of(at)) == 20
    assert values_of(at)[:10] == shown


def test_examples_by_strength_lie_in_their_range(tiny):
    at = choose(open_page("feature", feature="5"), "Which examples", "By strength")
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


def test_the_overview_shows_strong_and_weak_examples(tiny):
    """The five strongest, then one of each weaker fifth, that is not among them."""
    at = open_page("feature", feature="5")
    shown = values_of(at)
    assert shown[:5] == [round(e.max, 2) for e in tiny.top_examples(5, 5)]
    fifths = [int(np.ceil(5 * value / float(tiny.maxima[5]) - 1e-3)) for value in shown[5:]]
    there = {e.interval + 1 for e in tiny.interval_examples(5)}
    assert len(there) > 3
    assert fifths == sorted(there - {5}, reverse=True)
    assert not set(shown[:5]) & set(shown[5:])


def test_whole_texts_and_line_breaks_are_choices(tiny):
    lists = lambda at: [b.proto.body for b in at.get("html") if "sx ex" in b.proto.body]  # noqa: E731
    at = open_page("feature", feature="5")
    short = lists(at)[0]
    at = run(next(t for t in at.toggle if t.label == "Whole texts").set_value(True))
    whole = lists(at)[0]
    assert re.findall(r'<div class="v">([\d.]+)', short) == re.findall(r'<div class="v">([\d.]+)', whole)
    for row, example in zip(whole.split('<div class="x">')[1:], tiny.top_examples(5, 5), strict=True):
        assert row.count('<span class="t') == len(tiny.document_tokens(example.document))
        assert "… <" not in row
    assert "\n<" not in whole
    at = run(next(t for t in at.toggle if t.label == "Line breaks").set_value(True))
    texts = "".join(tiny.document_text(e.document) for e in tiny.top_examples(5, 5))
    assert lists(at)[0].count('<span class="nl">↵</span>\n') == texts.count("\n")


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


@pytest.mark.parametrize("side", ["decoder", "encoder"])
def test_a_row_of_the_table_opens_its_feature(tiny, side):
    at = choose(open_page("feature", feature="9"), "Compare by", side)
    wanted = int(at.dataframe[0].value["Feature"].iloc[2])
    at.session_state["nearest_0" if side == "decoder" else "nearest_encoder_0"] = {"selection": {"rows": [2], "columns": [], "cells": []}}
    at = run(at)
    assert at.title[0].value == f"Feature {wanted}"
    assert at.query_params["feature"] in (str(wanted), [str(wanted)])
    tables = [table.proto.id for table in at.dataframe]
    at = run(next(b for b in at.button if b.label == "Next").click())
    assert at.title[0].value == f"Feature {wanted + 1}"  # the selection stayed behind
    assert [table.proto.id for table in at.dataframe] == tables  # the browser keeps the tables and draws other rows


def test_a_dead_feature_says_so_and_draws_nothing_empty(planted):
    at = open_page("feature", "planted", feature=str(DEAD))
    assert "dead" in at.info[0].value
    assert not at.metric
    assert not values_of(at)
    charts = [name for block in at.get("html") for name in re.findall(r'role="figure" aria-label="(\w+)', block.proto.body)]
    assert charts == ["Promotes", "Suppresses", "Histogram"]
    assert drawn(at, "Histogram of folded logits")
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
    assert unescape(re.sub(r'<span class="nl">[^·]</span>|<[^>]+>', "", body)).replace("·", " ") == text
    assert marked(at) == pytest.approx([hit.max], abs=0.005)
    assert f"On your text: {hit.max:.2f} at most" in unescaped(texts_of(at))
    silent = next(f for f in range(tiny.d_sae) if f not in {h.feature for h in trace.hits()})
    at = run(at.number_input[0].set_value(silent))
    assert "Silent on all" in texts_of(at)
    if tiny.maxima[silent]:
        assert marked(at) == []
        assert "On your text: silent." in texts_of(at)


def test_an_unreadable_own_text_is_a_sentence(tiny):
    at = open_page("feature", feature="5")
    own_text_box(at).set_value("a\0" * 50)
    at = run({b.label: b for b in at.button}["Test"].click())
    assert "binary" in at.error[0].value
    own_text_box(at).set_value("  ")
    at = run({b.label: b for b in at.button}["Test"].click())
    assert "no text yet" in texts_of(at)


def test_what_goes_wrong_with_an_own_text_names_no_path_to_strangers(tiny, monkeypatch):
    def fail(bundle, text):
        raise ModelError("/srv/models/secret is damaged")

    monkeypatch.setenv("SAE_EXPLORE_PUBLIC", "1")
    monkeypatch.setattr(resources, "get_trace", fail)
    at = open_page("feature", feature="5")
    own_text_box(at).set_value("A text.")
    at = run({b.label: b for b in at.button}["Test"].click())
    assert HIDDEN in unescaped(at.error[0].value).lower()
    assert "secret" not in texts_of(at)


# ---- the text that one comes from --------------------------------------------------------------------------------------


def test_the_text_that_one_comes_from_is_marked(tiny, gpt2_model):
    """A stored text needs no model; the token after its peak is marked among the logits once one is in memory."""
    example = tiny.top_examples(5, 8)[7]
    column = tiny.document_trace(example.document).rows.column(5)
    at = open_page("feature", feature="5")
    assert marked(at) == []
    at.session_state["document"] = example.document_id
    at = run(at)
    assert marked(at) == pytest.approx([float(column.max())], abs=6e-3)
    share = float(column.max()) / float(tiny.maxima[5])
    assert f"On the text {example.document_id}: {column.max():.2f} at most" in unescaped(texts_of(at))
    assert f"{100 * share:.0f} % of its maximum" in unescaped(texts_of(at))
    job = resources.tracer_job(resources.get_bundle("tiny"))
    job.start()
    job.wait(60)
    at = run(at)
    peak, tokens = int(column.argmax()), tiny.document_tokens(example.document)
    chart = drawn(at, "Histogram of folded logits")
    if peak + 1 == len(tokens):
        pytest.skip("the peak of this example is the last token of its text")
    logits = np.asarray(tiny.W_dec[5], np.float32) @ lens.lens_matrix(gpt2_model.unembedding, "folded").numpy()
    logit = float(logits[tokens.ids[peak + 1]])
    end = 1.03 * float(max(abs(logits).max(), tiny.manifest["lens"]["random"]["top_logit"]["folded"]))
    (mark,) = re.findall(r'class="line here" style="left:([\d.]+)%"', chart)
    assert float(mark) / 100 * 2 * end - end == pytest.approx(logit, abs=1e-3 * end)


# ---- ways on -----------------------------------------------------------------------------------------------------------


def test_each_example_leads_to_its_text(tiny):
    at = open_page("feature", feature="5")
    found = [unescape(href) for b in at.get("html") for href in re.findall(r'<a class="go" href="([^"]*)"', b.proto.body)]
    assert len(found) == len(values_of(at))
    asked = parse_qs(found[2].removeprefix("./?"))
    wanted = tiny.top_examples(5, 3)[2].document_id
    assert asked == {"bundle": ["tiny"], "feature": ["5"], "doc": [wanted]}
    text = open_page("", **{key: values[0] for key, values in asked.items()})
    assert address(text) == {"bundle": "tiny", "feature": "5", "doc": wanted}


@pytest.mark.parametrize("reported", ["./?bundle=tiny&feature=5&doc=nowhere", "javascript:1", "", None, {"a": 1}, "./?doc=%00&feature=x"])
def test_a_click_that_leads_nowhere_changes_nothing(tiny, reported):
    from sae_explore.views import example_links

    link = example_links.link_of(tiny, reported)
    assert link is None


def test_a_click_is_read_as_the_link_that_it_is(tiny):
    from sae_explore.views import example_links

    example = tiny.top_examples(5, 1)[0]
    link = example_links.link_of(tiny, example_links.address(tiny, 5)(example))
    assert (link.document, link.feature) == (example.document_id, 5)


def test_a_published_sae_leads_to_neuronpedia(tiny, monkeypatch):
    monkeypatch.setattr("sae_explore.views.feature_page.feature_url", lambda sae, feature: f"https://www.neuronpedia.org/x/{feature}")
    links = {link.proto.label: link.proto for link in open_page("feature", feature="5").get("page_link")}
    assert links["On Neuronpedia"].page == "https://www.neuronpedia.org/x/5"
    assert links["On Neuronpedia"].external


def test_a_feature_of_an_sae_trained_here_does_not(tiny):
    assert "On Neuronpedia" not in [link.proto.label for link in open_page("feature", feature="5").get("page_link")]
