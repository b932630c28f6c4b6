"""The text page, driven through the app's entry point and compared with brute force over the traces."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest
from app_driver import address
from streamlit.testing.v1 import AppTest

from sae_explore import resources, wording
from sae_explore.bundles.bundle import Bundle, open_bundle
from sae_explore.bundles.tracer import Tracer
from sae_explore.drawing import spans
from sae_explore.errors import SourceError
from sae_explore.explore import text_view
from sae_explore.models.tokens import MAX_TEXT_TOKENS
from sae_explore.strength import band_of

pytest_plugins = ["bundle_fixtures"]
ROOT = Path(__file__).resolve().parents[1]
APP = str(ROOT / "streamlit_app.py")
HOSTILE = "<b onclick=x> [l](javascript:1) `c` $x$ :smile: **b** \u202e & é\n\tend"


@pytest.fixture
def tiny(app_cache) -> Bundle:
    return open_bundle("tiny", cache=app_cache)


def open_page(**params: str) -> AppTest:
    at = AppTest.from_file(APP, default_timeout=20)
    for key, value in params.items():
        at.query_params[key] = value
    return run(at)


def run(at: AppTest) -> AppTest:
    at = at.run()
    assert not at.exception
    return at


def picker(at: AppTest) -> dict:
    """What the page hands to the component that draws the tokens."""
    (found,) = [data for component in at.get("bidi_component") if "tips" in (data := json.loads(component.proto.json))]
    return found


def colour_by(at: AppTest, option: str) -> AppTest:
    """Choose a feature's number, or `all`: each token's strongest."""
    return run(at.button_group(key="_colour").set_value(option))


def shown_text(at: AppTest) -> str:
    """The captions that say which text it is, and how long."""
    return " ".join(c.value for c in at.caption)


def analyse(at: AppTest, text: str) -> AppTest:
    at.text_area[0].set_value(text)
    (button,) = [b for b in at.button if b.label == "Analyse"]
    return run(button.click())


def words(at: AppTest) -> str:
    return "\n".join(m.value for m in at.markdown)


# ---- which text ----


def test_a_first_visit_shows_the_best_stored_text_and_its_feature_under_the_bare_address(tiny):
    at = open_page(bundle="tiny")
    pick = resources.get_picks(tiny)[0]
    trace = tiny.document_trace(pick.document)
    column = trace.rows.column(pick.features[0])
    assert column.max() >= tiny.maxima[pick.features[0]] / 2
    assert picker(at)["steps"] == [spans.step_of(float(v), float(tiny.maxima[pick.features[0]])) for v in column]
    assert at.button_group(key="_colour").value == str(pick.features[0])
    assert picker(at)["tokens"] == [
        [list(p) for p in spans.pieces(t, b)] for t, b in zip(trace.tokens.texts, trace.tokens.bytes, strict=True)
    ]
    assert spans.md(pick.id) in shown_text(at)
    assert wording.count_of(len(trace.tokens), "token") in shown_text(at)
    assert not at.warning
    assert not at.error
    bare = open_page()  # the first bundle there is: its own text needs no address
    assert address(bare) == {}
    assert len(picker(bare)["tokens"])
    everything = colour_by(bare, "all")
    assert "feature" not in everything.session_state
    assert address(everything).keys() == {"bundle", "doc"}
    assert picker(open_page(**address(everything)))["steps"] == picker(everything)["steps"]


def test_a_first_visit_needs_no_torch(tiny_cache):
    code = (
        "import sys; from streamlit.testing.v1 import AppTest; from sae_explore import resources\n"
        "resources.warm = lambda bundle: None\n"
        f"at = AppTest.from_file({APP!r}, default_timeout=20).run(); assert not at.exception and at.dataframe\n"
        "at.session_state['feature'] = 5; at.run(); assert not at.exception\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'imported'"
    )
    env = {**os.environ, "SAE_EXPLORE_CACHE": str(tiny_cache)}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_example_is_a_click_and_stays_in_the_address(tiny):
    at = open_page(bundle="tiny")
    pick = resources.get_picks(tiny)[2]
    pills = at.button_group(key="_example")
    assert pills.options[2] == spans.md(pick.title)
    run(pills.set_value(pick.id))
    assert address(at) == {"bundle": "tiny", "feature": str(pick.features[0]), "doc": pick.id}
    again = open_page(**address(at))
    assert picker(again) == picker(at)
    assert again.button_group(key="_example").value == pick.id


def test_an_own_text_equals_the_stored_one_that_it_copies(tiny):
    pick = min(resources.get_picks(tiny), key=lambda p: len(tiny.document_text(p.document)))
    stored = open_page(bundle="tiny", doc=pick.id)
    at = analyse(open_page(bundle="tiny"), tiny.document_text(pick.document))
    assert "Your text" in shown_text(at)
    own, kept = (page.dataframe[0].value.set_index("feature").sort_index() for page in (at, stored))
    assert own.index.tolist() == kept.index.tolist()
    assert own["tokens"].tolist() == kept["tokens"].tolist()
    for column in ("max", "sum", "share"):
        np.testing.assert_allclose(own[column], kept[column], rtol=2e-3)  # the store is fp16
    assert picker(at)["tokens"] == picker(stored)["tokens"]


def test_the_link_of_an_own_text_opens_the_same_view(tiny):
    at = analyse(open_page(bundle="tiny"), HOSTILE)
    at.session_state["feature"] = int(at.dataframe[0].value["feature"][1])
    run(at)
    assert address(at)["text"] == HOSTILE
    again = open_page(**address(at))
    assert picker(again) == picker(at)
    assert again.text_area[0].value == HOSTILE
    assert again.dataframe[0].value.equals(at.dataframe[0].value)


def test_a_long_text_says_that_it_does_not_travel(tiny):
    at = analyse(open_page(bundle="tiny"), "one two three " * 120)
    assert "does not travel" in shown_text(at)
    assert address(at) == {"bundle": "tiny"}
    run(at)
    assert "Your text" in shown_text(at)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "is empty"), (" \n ", "is empty"), ("x" * 1_000_000, "1,000,000 characters"), ("\0" * 64, "binary"), ("a\ud800", "surrogate")],
)
def test_what_cannot_be_read_is_one_sentence_and_the_view_stays(tiny, monkeypatch, text, said):
    monkeypatch.setattr(resources, "get_trace", lambda *_: pytest.fail("must not be read"))
    at = open_page(bundle="tiny")
    before = picker(at)
    if "\ud800" in text:  # no browser sends it, and neither does the test harness
        at.session_state["text"] = text
        run(at)
    else:
        analyse(at, text)
        assert picker(at) == before
    (error,) = at.error
    assert said in error.value.replace("\\", "")
    assert error.value.replace("\\", "").endswith(".")


def test_too_many_tokens_are_refused_with_the_limit(tiny):
    at = analyse(open_page(bundle="tiny"), "é ☃ " * 3_000)
    (error,) = at.error
    assert f"the limit here is {MAX_TEXT_TOKENS:,}" in error.value.replace("\\", "")
    assert not [c for c in at.get("bidi_component") if "tips" in json.loads(c.proto.json)]


def test_a_model_that_cannot_be_had_is_said_and_can_be_tried_again(tiny, monkeypatch):
    def refuse(*_args, **_options):
        raise SourceError("the package *x* could not be downloaded")

    load = Tracer.load
    monkeypatch.setattr(Tracer, "load", refuse)
    at = analyse(open_page(bundle="tiny"), "some words")
    (error,) = at.error
    assert "could not be loaded: the package \\*x\\* could not be downloaded" in error.value
    monkeypatch.setattr(Tracer, "load", load)
    (again,) = [b for b in at.button if b.label == "Try again"]
    run(again.click())
    assert not at.error
    assert "Your text" in shown_text(at)


# ---- links that do not fit ----


def test_a_link_to_what_is_not_there_is_explained(tiny):
    at = open_page(bundle="nope", doc="no/such", feature="999999")
    said = [w.value.replace("\\", "") for w in at.warning]
    assert any("nope" in w for w in said)
    assert any("no/such" in w for w in said)
    assert any("there is no feature 999999" in w for w in said)
    assert at.dataframe
    assert address(at) == {}  # what a first visit shows
    assert not run(at).warning


def test_a_bad_feature_number_and_a_long_text_in_a_link_are_explained(tiny):
    at = open_page(bundle="tiny", feature="-3", text="y" * 2_000)
    assert len(at.warning) == 2
    assert "Stored text" in shown_text(at)


def test_another_link_in_the_same_session_is_followed(tiny):
    first, second = (p.id for p in resources.get_picks(tiny)[:2])
    at = open_page(bundle="tiny", doc=first, feature="5")
    at.query_params.clear()
    at.query_params["bundle"], at.query_params["doc"] = "tiny", second
    run(at)
    assert spans.md(second) in shown_text(at)
    assert "feature" not in at.session_state


# ---- what fires ----


@pytest.mark.parametrize("by", text_view.RANKINGS)
@pytest.mark.parametrize("dense", [False, True])
def test_the_table_equals_brute_force(tiny, by, dense):
    at = open_page(bundle="tiny")
    run(at.button_group(key="_rank").set_value(by))
    if dense:
        run(at.toggle(key="_dense").set_value(True))
    trace = tiny.document_trace(resources.get_picks(tiny)[0].document)
    densities = tiny.features["density"].to_pylist()
    limit = tiny.manifest["features"]["dense_above"]
    expected, hidden = [], 0
    for feature in range(tiny.d_sae):
        column = trace.rows.column(feature).astype(float)
        if not column.any():
            continue
        if densities[feature] > limit and not dense:
            hidden += 1
            continue
        peak = int(column.argmax())
        expected.append({"feature": feature, "label": spans.plain(tiny.label(feature)),
                         "confidence": tiny.row(feature)["confidence"], "share": 100 * column.max() / tiny.maxima[feature],
                         "max": column.max(), "sum": column.sum(), "tokens": int((column > 0).sum()),
                         "peak": spans.dotted(trace.tokens.texts[peak], trace.tokens.bytes[peak])})  # fmt: skip
    expected.sort(key=lambda row: (-row[by], -row["max"], row["feature"]))
    table = at.dataframe[0].value
    assert list(table.columns) == list(expected[0])
    for name in ("feature", "label", "tokens", "peak"):
        assert table[name].tolist() == [row[name] for row in expected]
    for name in ("confidence", "share", "max", "sum"):
        np.testing.assert_allclose(table[name], [row[name] for row in expected], rtol=1e-5)
    assert at.toggle(key="_dense").label == ("Show dense features" if dense else f"Show dense features ({hidden} hidden)")
    assert f"{wording.count_of(len(expected), 'feature')} of 64" in shown_text(at)


def test_tokens_are_coloured_by_their_strongest_feature(tiny):
    trace = tiny.document_trace(resources.get_picks(tiny)[0].document)
    densities, limit = tiny.features["density"].to_pylist(), tiny.manifest["features"]["dense_above"]
    drawn = picker(colour_by(open_page(bundle="tiny"), "all"))
    for i in range(len(trace.tokens)):
        features, values = trace.rows.row(i)
        best = max((v / tiny.maxima[f] for f, v in zip(features, values, strict=True) if densities[f] <= limit), default=0)
        assert drawn["steps"][i] == spans.step_at(float(best) ** 2)
        if best:
            assert f"{wording.percent(float(best))} of its maximum" in drawn["tips"][i]


def test_a_chosen_feature_recolours_the_text_and_opens_its_card(tiny):
    at = open_page(bundle="tiny")
    feature = int(at.dataframe[0].value["feature"][2])
    at.session_state["feature"] = feature
    run(at)
    trace = tiny.document_trace(resources.get_picks(tiny)[0].document)
    column, top = trace.rows.column(feature), float(tiny.maxima[feature])
    assert picker(at)["steps"] == [spans.step_of(float(v), top) for v in column]
    assert address(at) == {"bundle": "tiny", "feature": str(feature), "doc": resources.get_picks(tiny)[0].id}
    key = re.search(r"rows-tiny-\d+-share-False", at.dataframe[0].proto.id)[0]
    assert at.session_state[key]["selection"]["rows"] == [2]
    peak = int(column.argmax())
    token = spans.md(spans.dotted(trace.tokens.texts[peak]))
    share = float(column.max()) / top
    assert f"On this text: **{column.max():.2f}** on “{token}”, {wording.percent(share)} of its maximum: **{band_of(share)}**" in words(at)
    assert f"Maximum **{top:.2f}**" in words(at)
    assert spans.md(tiny.label(feature)) in [s.value for s in at.subheader]
    (link,) = [p for p in at.get("page_link") if "this feature" in p.proto.label]
    assert f"feature={feature}" in str(link.proto)
    colour_by(at, "all")
    assert "feature" not in at.session_state
    assert "feature" not in address(at)


def test_a_feature_that_is_silent_here_is_said_to_be(tiny):
    at = open_page(bundle="planted", feature="0")  # it never fires
    assert "Feature 0 is **silent** on this text" in words(at)
    assert "On this text: **silent**" in words(at)
    assert picker(at)["steps"] == picker(colour_by(open_page(bundle="planted"), "all"))["steps"]
    assert 0 not in at.dataframe[0].value["feature"].tolist()


def test_links_take_the_text_along(tiny):
    """To What if with the feature whose card is shown, and to Compare."""

    def ways(at: AppTest) -> dict[str, dict]:
        found = {link.proto.page: parse_qs(link.proto.query_string) for link in at.get("page_link")}
        return {page: found[page] for page in ("whatif", "compare")}

    at = open_page(bundle="tiny", feature="5")
    document = address(at)["doc"]
    assert ways(at) == {
        "whatif": {"bundle": ["tiny"], "feature": ["5"], "doc": [document]},
        "compare": {"bundle": ["tiny"], "doc": [document]},
    }
    at = colour_by(analyse(at, "The old map & 3 rivers."), "all")
    best = int(at.dataframe[0].value["feature"].iloc[0])
    text = {"bundle": ["tiny"], "text": ["The old map & 3 rivers."]}
    assert ways(at) == {"whatif": text | {"feature": [str(best)]}, "compare": text}


def test_a_clicked_token_lists_its_features(tiny):
    pick = resources.get_picks(tiny)[0]
    at = open_page(bundle="tiny", doc=pick.id)
    at.session_state["_token"] = (f"tiny-{pick.document}", 7)
    run(at)
    trace, scale = tiny.document_trace(pick.document), text_view.scale_of(tiny)
    features, values = trace.rows.row(7)
    rows = sorted((-v / scale.maxima[f], f, v) for f, v in zip(features.tolist(), values.tolist(), strict=True) if not scale.dense[f])
    (table,) = [d.value for d in at.dataframe]
    assert table["feature"].tolist() == [f for _, f, _ in rows]
    np.testing.assert_allclose(table["value"], [v for _, _, v in rows])
    np.testing.assert_allclose(table["share"], [-100 * s for s, _, _ in rows], rtol=1e-6)
    assert picker(at)["selected"] == 7
    (whole,) = [b for b in at.button if b.label == "Whole text"]
    run(whole.click())
    assert picker(at)["selected"] is None


def test_a_token_of_another_text_is_not_chosen(tiny):
    at = open_page(bundle="tiny")
    at.session_state["_token"] = ("tiny-12345", 0)
    assert picker(run(at))["selected"] is None


def test_ignored_tokens_are_counted_and_explained(tiny, monkeypatch):
    pick = resources.get_picks(tiny)[0]
    trace = tiny.document_trace(pick.document)
    ignored = trace.ignored.copy()
    ignored[[0, 3]] = True
    monkeypatch.setattr(Bundle, "document_trace", lambda *_: type(trace)(**{**vars(trace), "ignored": ignored}))
    at = open_page(bundle="tiny", doc=pick.id)
    assert "Grey and ignored: 2 attention sinks" in shown_text(at)
    drawn = picker(at)
    assert [i for i, flag in enumerate(drawn["ignored"]) if flag] == [0, 3]
    assert (drawn["steps"][3], "ignored" in drawn["tips"][3]) == (0, True)
    at.session_state["_token"] = (f"tiny-{pick.document}", 3)
    run(at)
    assert "attention sink" in at.info[0].value


def test_the_map_costs_nothing_until_it_is_opened(tiny):
    at = open_page(bundle="tiny")
    assert not at.get("plotly_chart")
    at.session_state["_map"] = True
    run(at)
    (chart,) = at.get("plotly_chart")
    assert chart.proto.alt.startswith("Heatmap of")


def test_hostile_text_reaches_markdown_only_escaped(tiny):
    at = analyse(open_page(bundle="tiny"), HOSTILE)
    digest = picker(at)["text"]
    for position in range(len(picker(at)["tokens"])):
        at.session_state["_token"] = (digest, position)
        run(at)
        for element in (*at.markdown, *at.caption, *at.subheader):
            said = element.value.replace("**", "").replace("](#start-with-a-feature)", "")  # the page's own link
            assert not re.search(r"(?<!\\)[`$<]|(?<!\\)\]\(", said), said
        for element in at.get("html"):
            assert not re.search(r"<(?!/?(div|span|style)\b)", element.proto.body)
