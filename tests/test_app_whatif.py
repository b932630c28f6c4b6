"""The page What if, driven through the app's entry point and compared with the engine on a model of its own."""

import json
import re

import numpy as np
import pytest
import streamlit as st
from app_driver import figure, numbers, open_page, run, texts_of, unescaped
from lab_checks import strongest_features

from sae_explore import public_mode, resources
from sae_explore.bundles.bundle import Bundle, open_bundle
from sae_explore.bundles.tracer import Tracer
from sae_explore.drawing import spans
from sae_explore.errors import ModelError
from sae_explore.views.whatif_effect import level
from sae_explore.whatif.attribution import attribute
from sae_explore.whatif.edits import Edit, Push, Sampling
from sae_explore.whatif.interventions import Lab
from sae_explore.whatif.patching import align, patched, patched_maximum
from sae_explore.whatif.steering import continuations
from sae_explore.wording import percent

pytest_plugins = ["bundle_fixtures"]

DEAD = 2  # a latent of the bundle "planted" that never fires
TEXT = "The old map shows three rivers and a lake."
OTHER = "The old map shows three roads and a lake."
HOSTILE = "<b onclick=x> [l](javascript:1) `c` $x$ :smile: **b** <script>1</script> end"


@pytest.fixture(scope="module")
def lab(tiny_cache) -> Lab:
    bundle = open_bundle("tiny", cache=tiny_cache)
    return Lab.load(bundle, Tracer.load(bundle))


@pytest.fixture(scope="module")
def feature(lab) -> int:
    """The feature that is strongest on TEXT."""
    return strongest_features(lab, lab.read(TEXT), 1)[0]


@pytest.fixture
def tiny(app_cache) -> Bundle:
    return open_bundle("tiny", cache=app_cache)


def page(feature: int, text: str = TEXT, tool: str = "change", bundle: str = "tiny", **choices):
    at = open_page("whatif", bundle, feature=str(feature), text=text)
    if tool == "change" and not choices:
        return at
    at.session_state["_whatif_tool"] = tool
    for key, value in choices.items():
        at.session_state[f"_whatif_{key}"] = value
    return run(at)


def metrics(at) -> dict[str, str]:
    return {m.label: m.value for m in at.metric}


def picker(at) -> dict:
    (component,) = at.get("bidi_component")
    return json.loads(component.proto.json)


def address(at) -> dict[str, str]:
    found = {key: at.query_params[key] for key in at.query_params}
    return {key: value if isinstance(value, str) else value[-1] for key, value in found.items()}


def expect_effect(at, reading, effect) -> None:
    """The page shows this effect."""
    since = int(effect.changed.argmax())
    shown = metrics(at)
    assert shown["Largest change"] == f"{effect.kl.max():.3f} nats"
    assert shown["Mean change"] == f"{effect.kl[since:].mean():.3f} nats"
    assert shown["By chance"] == f"{effect.control[since:].mean():.3f} nats"
    before, after = (loss[since:-1].mean() for loss in (effect.loss_before, effect.loss_after))
    assert shown["Loss of what follows"] == f"{before:.2f} → {after:.2f}"
    assert picker(at)["steps"] == [spans.step_at(level(float(kl))) for kl in effect.kl]
    best = int(effect.kl.argmax())
    assert picker(at)["selected"] == best
    name = spans.dotted(reading.tokens.texts[best], reading.tokens.bytes[best])
    assert at.subheader[0].value == f"After “{spans.md(name)}”"


# ---- change ----


def test_switching_off_shows_what_the_engine_finds(tiny, lab, feature):
    at = page(feature)
    reading = lab.read(TEXT)
    effect = lab.effect(reading, [Edit(feature, "ablate")])
    expect_effect(at, reading, effect)
    assert address(at) == {"bundle": "tiny", "feature": str(feature), "text": TEXT}
    best = int(effect.kl.argmax())
    for title, shift in (("More likely", effect.up), ("Less likely", effect.down)):
        chart = figure(at, title)
        shown = len(numbers(chart.data[0].x))
        np.testing.assert_allclose(numbers(chart.data[0].x), shift.before[best, :shown], rtol=1e-5)
        np.testing.assert_allclose(numbers(chart.data[1].x), shift.after[best, :shown], rtol=1e-5)
    p, q = (percent(float(np.exp(-loss[best]))) for loss in (effect.loss_before, effect.loss_after))
    assert f"{p} → **{q}**" in texts_of(at)
    assert "MB, once for all visitors" in texts_of(at)
    assert "It took" in texts_of(at)


@pytest.mark.parametrize(
    ("choices", "edit"),
    [
        ({"mode": "set", "share": 150}, lambda unit: ("set", 1.5 * unit)),
        ({"mode": "scale", "times": 3.0}, lambda unit: ("scale", 3.0)),
    ],
)
def test_setting_and_multiplying_are_in_units_of_the_maximum(tiny, lab, feature, choices, edit):
    reading = lab.read(TEXT)
    expect_effect(page(feature, **choices), reading, lab.effect(reading, [Edit(feature, *edit(float(tiny.maxima[feature])))]))


def test_one_token_is_the_clicked_one_and_at_first_the_strongest(tiny, lab, feature):
    reading = lab.read(TEXT)
    at = page(feature, where="one")
    peak = int(reading.rows.column(feature).argmax())
    expect_effect(at, reading, lab.effect(reading, [Edit(feature, "ablate", positions=(peak,))]))
    at.session_state["_whatif_mode"] = "set"
    at.session_state["_whatif_token"] = (picker(at)["text"], 2)
    at = run(at)
    effect = lab.effect(reading, [Edit(feature, "set", float(tiny.maxima[feature]), positions=(2,))])
    assert metrics(at)["Largest change"] == f"{effect.kl.max():.3f} nats"
    assert picker(at)["selected"] == 2
    assert spans.md(spans.dotted(reading.tokens.texts[2])) in at.subheader[0].value


def test_several_features_are_changed_together(tiny, lab):
    reading = lab.read(TEXT)
    first, *others = strongest_features(lab, reading, 20)
    at = page(first)
    second = next(f for f in others if any(option.startswith(f"{f} ") for option in at.multiselect[0].options))
    at = run(at.multiselect[0].set_value([second]))
    expect_effect(at, reading, lab.effect(reading, [Edit(first, "ablate"), Edit(second, "ablate")]))
    assert address(at) == {"bundle": "tiny", "feature": str(first), "features": str(second), "text": TEXT}
    again = open_page("whatif", **address(at) | {"features": f"{second},{first},64"})
    assert (again.multiselect[0].value, metrics(again)) == ([second], metrics(at))


def test_a_silent_feature_says_so_and_leads_to_a_text_on_which_it_fires(tiny, lab):
    acts = lab.read(TEXT).rows
    silent = next(f for f in range(64) if not acts.column(f).any() and tiny.maxima[f] > 0)
    at = page(silent)
    assert "silent on this text" in at.info[0].value
    assert not at.metric
    (button,) = [b for b in at.button if b.label.startswith("Take the text")]
    at = run(button.click())
    assert address(at) == {"bundle": "tiny", "feature": str(silent), "doc": tiny.top_examples(silent, 1)[0].document_id}
    assert at.metric
    assert "fires on" in texts_of(at)


def test_setting_a_feature_to_what_it_has_changes_nothing_and_says_so(tiny, feature):
    at = page(feature, mode="scale", times=1.0)
    assert "leaves everything as it is" in at.info[0].value
    assert "Nothing changes here" in texts_of(at)


def test_a_feature_that_never_fires_can_be_set(app_cache):
    at = page(DEAD, bundle="planted", mode="set")
    assert "silent" in texts_of(at)
    assert float(metrics(at)["Largest change"].split()[0]) > 0


# ---- which text, which feature ----


def test_without_a_choice_it_opens_a_feature_and_a_text_on_which_it_fires(tiny):
    at = open_page("whatif")
    assert at.metric
    chosen = at.number_input[0].value
    assert address(at) == {"bundle": "tiny", "feature": str(chosen), "doc": tiny.top_examples(chosen, 1)[0].document_id}


def test_another_text_and_another_feature(tiny, lab, feature):
    at = page(feature)
    at.text_area[0].set_value(OTHER)
    at = run(next(b for b in at.button if b.label == "Use this text").click())
    assert address(at)["text"] == OTHER
    assert at.session_state["feature"] == feature
    assert "".join(p[1] for token in picker(at)["tokens"] for p in token).replace("·", " ") == OTHER
    second = strongest_features(lab, lab.read(OTHER), 2)[1]
    at = run(at.number_input[0].set_value(second))
    assert address(at) == {"bundle": "tiny", "feature": str(second), "text": OTHER}
    expect_effect(at, lab.read(OTHER), lab.effect(lab.read(OTHER), [Edit(second, "ablate")]))


def test_of_a_long_text_the_window_around_the_strongest_token_is_read(tiny, lab):
    text = " ".join(tiny.document_text(d) for d in range(3))
    trace = lab.tracer.trace(text)
    hit = next(h for h in trace.hits() if h.position > 100)
    at = page(hit.feature, text[:1500])
    trace = lab.tracer.trace(text[:1500])
    start, stop = lab.window(len(trace.tokens), int(trace.rows.column(hit.feature).argmax()))
    assert stop - start == lab.limit
    assert f"{len(trace.tokens):,} tokens; the model reads tokens {start} to {stop - 1} of it" in texts_of(at)
    reading = lab.read(text[:1500], start, stop)
    expect_effect(at, reading, lab.effect(reading, [Edit(hit.feature, "ablate")]))


@pytest.mark.parametrize(("asked", "said"), [({"feature": "64"}, "no feature 64"), ({"doc": "nowhere"}, "no text “nowhere”")])
def test_what_is_not_there_is_named_and_something_else_shown(tiny, asked, said):
    at = open_page("whatif", **asked)
    assert said in unescaped(at.warning[0].value)
    assert at.metric


@pytest.mark.parametrize(("text", "said"), [(" \n", "empty"), ("a\0" * 50, "binary")])
def test_a_text_that_cannot_be_read_is_a_sentence(tiny, feature, text, said):
    at = page(feature)
    at.text_area[0].set_value(text)
    at = run(next(b for b in at.button if b.label == "Use this text").click())
    assert said in at.error[0].value
    assert not at.metric


@pytest.mark.parametrize("tool", ["change", "borrow", "steer", "explain"])
def test_no_string_from_outside_becomes_markup(tiny, lab, tool):
    found = strongest_features(lab, lab.read(HOSTILE), 1)[0]
    at = page(found, HOSTILE, tool, source=HOSTILE.replace("end", "start"), prompt=HOSTILE)
    if tool == "borrow":
        at.text_area[1].set_value(HOSTILE.replace("end", "start"))
        at = run(next(b for b in at.button if b.label.startswith("Borrow")).click())
    if tool == "steer":
        at = run(next(b for b in at.button if b.label == "Write").click())
    bodies = [b.proto.body for b in at.get("html") if "<style>" not in b.proto.body]
    assert not [b for b in bodies if re.search(r"<(?!/?(?:div|span)\b)", b)]
    assert "<script" not in texts_of(at).replace(spans.md(HOSTILE), "")
    for chart in at.get("plotly_chart"):
        assert "<b" not in chart.proto.spec.replace("<br>", "")


# ---- borrow ----


@pytest.mark.parametrize("how", ["places", "strongest"])
def test_borrowing_shows_what_the_engine_finds(tiny, lab, how):
    source, target = lab.read(OTHER), lab.read(TEXT)
    found = next(f for f in strongest_features(lab, source, 12) if source.rows.column(f).max() - target.rows.column(f).max() > 0.1)
    at = page(found, TEXT, "borrow")
    assert not at.metric
    at.text_area[1].set_value(OTHER)
    at = run(next(b for b in at.button if b.label.startswith("Borrow")).click())
    if how == "strongest":
        at.session_state["_whatif_how"] = "strongest"
        at = run(at)
    column = target.rows.column(found)
    peak = int(column.argmax()) if column.any() else len(target) - 1
    pairs = align(source.tokens.ids, target.tokens.ids)
    edit = patched(source, found, pairs) if how == "places" else patched_maximum(source, found, [peak])
    expect_effect(at, target, lab.effect(target, [edit]))


# ---- steer ----


def written(at) -> list[str]:
    """Both texts on the page."""
    bodies = [b.proto.body for b in at.get("html") if b.proto.body.startswith('<div class="sx prose">')]
    return [re.sub(r"<[^>]+>", "", body) for body in bodies]


def test_steering_streams_what_the_engine_writes_and_keeps_it(tiny, lab, feature):
    at = page(feature, TEXT, "steer", prompt="The old map", strength=3.0, temperature=0.9, new=10, seed=7, on_prompt=False)
    assert written(at) == []
    at = run(next(b for b in at.button if b.label == "Write").click())
    push = Push(feature, 3.0 * float(tiny.maxima[feature]))
    steps = list(continuations(lab, "The old map", [push], sampling=Sampling(0.9, 0.95, 7), new_tokens=10, on_prompt=False))
    expected = ["The old map" + "".join(texts) for texts in zip(*((s.plain, s.steered) for s in steps), strict=True)]
    assert written(at) == [re.sub(r"<[^>]+>", "", spans.prose_html(t, "")) for t in expected]
    assert "10 steps of both texts" in texts_of(at)
    assert "Stop" not in [b.label for b in at.button]
    length = 3.0 * float(tiny.maxima[feature]) * np.linalg.norm(tiny.W_dec[feature].astype(np.float32)) / tiny.manifest["median_norm"]
    assert f"At strength 3 the push is {percent(length)} as long" in texts_of(at)
    again = run(at)
    assert written(again) == written(at)


def test_a_beginning_that_cannot_be_read_is_a_sentence(tiny, feature):
    at = page(feature, TEXT, "steer", prompt="   ")
    at = run(next(b for b in at.button if b.label == "Write").click())
    assert "empty" in at.error[0].value
    assert written(run(at)) == []


# ---- explain ----


@pytest.mark.parametrize("foil", ["", "river"])
def test_explaining_shows_what_the_engine_finds(tiny, lab, feature, foil):
    reading = lab.read(TEXT)
    at = page(feature, TEXT, "explain", foil=foil)
    position = int(reading.rows.column(feature).argmax())
    other = int(lab.tracer.model.tokenize(f" {foil}").ids[0]) if foil else None
    found = attribute(lab, reading, position, foil=other)
    table = at.dataframe[0].value
    assert table["feature"].tolist() == found.features[: len(table)].tolist()
    for column in ("estimate", "here", "direct", "ablation"):
        np.testing.assert_allclose(table[column].fillna(0), np.nan_to_num(getattr(found, column)[: len(table)]), atol=6e-4)
    assert f"({percent(found.probability)}), its logit {abs(found.value):.2f}" in texts_of(at)
    assert picker(at)["selected"] == position
    at.session_state["_whatif_token"] = (picker(at)["text"], 1)
    at = run(at)
    assert at.dataframe[0].value["feature"].tolist() == attribute(lab, reading, 1, foil=other).features.tolist()[:16]


def test_a_row_of_the_table_chooses_its_feature_and_the_table_stays(tiny, feature, monkeypatch):
    at = page(feature, TEXT, "explain")
    table, drawn = at.dataframe[0].value, []

    def draw(frame, **options):
        """As if the third row had been clicked before the first run of the page that follows."""
        if not drawn:
            st.session_state[options["key"]] = {"selection": {"rows": [2], "columns": [], "cells": []}}
            options["on_select"]()
        drawn.append(options["key"])
        return real(frame, **options)

    real = st.dataframe
    monkeypatch.setattr(st, "dataframe", draw)
    at = run(run(at))
    wanted = int(table["feature"].iloc[2])
    assert at.number_input[0].value == wanted
    assert address(at)["feature"] == str(wanted)
    assert at.dataframe[0].value.equals(table)


# ---- the model ----


def test_the_whole_model_is_loaded_on_this_page_only(tiny, feature, monkeypatch):
    loaded = []

    def load(folder):
        loaded.append(folder)
        raise ModelError("no room for it")

    with monkeypatch.context() as patch:
        patch.setattr("sae_explore.models.model.load_full_model", load)
        for name in ("", "feature", "lens", "browse"):
            open_page(name, feature=str(feature), text=TEXT)
        assert loaded == []
        at = page(feature)
        assert len(loaded) == 1
        assert "no room for it" in at.error[0].value
    at = run(next(b for b in at.button if b.label == "Try again").click())
    assert at.metric


def test_the_same_question_is_answered_from_the_cache(tiny, feature, monkeypatch):
    at = page(feature)
    monkeypatch.setattr(Lab, "effect", lambda *_: pytest.fail("computed again"))
    at.session_state["_whatif_token"] = (picker(at)["text"], 3)
    at = run(at)
    assert picker(at)["selected"] == 3
    assert resources.get_lab(tiny) is resources.get_lab(tiny)


def test_colours_rise_with_the_divergence():
    levels = [level(kl) for kl in (0.0, 1e-6, 0.002, 0.01, 0.1, 1.0, 9.0)]
    assert levels[:2] == [0.0, 0.0]
    assert 0 < levels[2] < levels[3] < levels[4] < levels[5] == levels[6] == 1.0


# ---- visitors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tool", "cost"), [("change", 3), ("explain", 4)])
def test_what_a_visitor_has_the_model_do_is_counted(tiny, lab, feature, monkeypatch, tool, cost):
    """A text, its reading and a run cost 1 each, an explanation 2."""
    monkeypatch.setenv("SAE_EXPLORE_PUBLIC", "1")
    monkeypatch.setattr(public_mode, "_everybody", public_mode.Bucket(100, 1.0))
    for burst in range(1, cost + 1):
        st.cache_data.clear()
        st.cache_resource.clear()
        at = open_page("whatif", "tiny")
        for key, value in (("feature", feature), ("text", TEXT), ("_whatif_tool", tool)):
            at.session_state[key] = value
        at.session_state["_allowance"] = public_mode.Bucket(burst, 3_600.0)
        at = run(at)
        refused = "please wait" in texts_of(at).lower()
        assert refused == (burst < cost), burst


def test_what_a_visitor_has_the_model_write_is_counted(tiny, lab, feature, monkeypatch):
    monkeypatch.setenv("SAE_EXPLORE_PUBLIC", "1")
    monkeypatch.setattr(public_mode, "_everybody", public_mode.Bucket(100, 1.0))
    at = page(feature, tool="steer")
    at.session_state["_allowance"] = empty = public_mode.Bucket(1, 3_600.0)
    empty.take()
    (write,) = [b for b in at.button if b.label == "Write"]
    assert "please wait" in texts_of(run(write.click())).lower()
