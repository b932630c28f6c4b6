"""The first impression: what the first page opens with, the features to start with, and labels that were checked by hand."""

import json
import os
import shutil
import threading
from types import SimpleNamespace

import pytest
import streamlit as st
from app_driver import address, open_page, run, texts_of, unescaped

from sae_explore import resources, wording
from sae_explore.bundles.bundle import Bundle, open_bundle
from sae_explore.bundles.curated import FILE
from sae_explore.drawing import spans
from sae_explore.errors import ModelError
from sae_explore.explore import links, text_view
from sae_explore.types import HookPoint
from sae_explore.views import feature_starts

pytest_plugins = ["bundle_fixtures"]
HOSTILE = "<b>**x**</b> [l](javascript:1) `c` $x$ :smile:"


@pytest.fixture
def tiny(app_cache) -> Bundle:
    return open_bundle("tiny", cache=app_cache)


@pytest.fixture
def checked(tiny, tmp_path, monkeypatch) -> Bundle:
    """The only bundle of the app's cache, with features and texts that a person chose: the first text with two of its features."""
    folder = shutil.copytree(tiny.folder, tmp_path / "tiny")
    dense = text_view.scale_of(tiny).dense
    busy = [hit.feature for hit in tiny.document_trace(3).hits() if not dense[hit.feature]]
    chosen = {
        "checked_for": tiny.files.name,
        "features": [
            {"feature": busy[0], "label": "the busy one", "theme": "First", "note": "Look at its peak."},
            {"feature": busy[2], "label": HOSTILE, "theme": "Second * theme"},
            {"feature": busy[1], "label": "another", "theme": "First"},
        ],
        "texts": [
            {"document": tiny.documents["id"][3].as_py(), "title": "Opening", "note": "What it *shows*.", "features": busy[:2]},
            {"document": tiny.documents["id"][8].as_py(), "title": HOSTILE[:40]},
        ],
    }
    (folder / FILE).write_text(json.dumps(chosen))
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path))
    st.cache_data.clear()
    st.cache_resource.clear()
    return open_bundle("tiny", cache=tmp_path)


def component(at, key: str) -> dict:
    """What the page hands to the one component whose data has this key."""
    (found,) = [data for c in at.get("bidi_component") if key in (data := json.loads(c.proto.json))]
    return found


def starts(at) -> list[dict]:
    return component(at, "rows")["rows"]


def options(at, key: str) -> list[str]:
    return [unescaped(option) for option in at.button_group(key=key).options]


# ---- the first page ----


def test_the_page_opens_with_the_first_text_and_its_first_feature(checked):
    at = open_page("", bundle="tiny")
    busy, other = checked.curated.texts[0].features
    assert options(at, "_example") == ["Opening", HOSTILE[:40].strip()]
    assert "What it *shows*." in unescaped(texts_of(at))
    assert options(at, "_colour") == [f"the busy one {wording.CHECKED}", f"another {wording.CHECKED}", "each token's strongest feature"]
    column = checked.document_trace(3).rows.column(busy)
    assert component(at, "tips")["steps"] == [spans.step_of(float(v), float(checked.maxima[busy])) for v in column]
    assert address(at) == {}
    run(at.button_group(key="_colour").set_value(str(other)))
    assert at.session_state["feature"] == other
    again = open_page("", **address(at))
    assert component(again, "tips") == component(at, "tips")


def test_an_example_without_features_shows_each_tokens_strongest(checked):
    at = open_page("", bundle="tiny")
    run(at.button_group(key="_example").set_value(checked.curated.texts[1].id))
    assert "feature" not in at.session_state
    assert at.button_group(key="_colour").value == "all"


def test_a_feature_chosen_on_another_page_opens_a_text_on_which_it_fires(tiny):
    pick = resources.get_picks(tiny)[0]
    silent = [f for f in range(tiny.d_sae) if tiny.row(f)["count"] and not tiny.document_trace(pick.document).rows.column(f).any()]
    strongest = tiny.top_examples(silent[0], 1)[0]
    at = open_page("", bundle="tiny")
    at.session_state["feature"] = silent[0]  # as a row of the table leaves it: the text stays
    assert address(run(at))["doc"] == pick.id
    at.session_state["_page"] = "feature"  # as coming from there leaves it
    at.query_params.clear()
    run(at)
    assert address(at)["doc"] == strongest.document_id
    peak = component(at, "tips")["steps"][strongest.peak]
    assert peak == spans.STEPS
    assert "silent" not in texts_of(at)


def test_an_own_text_starts_without_the_feature_of_the_example_and_keeps_one_chosen_for_it(checked):
    at = open_page("", bundle="tiny")
    for text, feature in (("Some words of my own", None), ("And some more words", 7)):
        at.text_area[0].set_value(text)
        (button,) = [b for b in at.button if b.label == "Analyse"]
        run(button.click())
        assert ("feature" in at.session_state) == (feature is not None)
        at.session_state["feature"] = 7
        run(at)


def test_a_saved_list_is_seen_at_the_next_click(checked):
    at = open_page("", bundle="tiny")
    path = checked.folder / FILE
    path.write_text(path.read_text().replace("the busy one", "a better name"))
    run(at)
    assert options(at, "_colour")[0] == f"a better name {wording.CHECKED}"


# ---- features to start with ----


def test_features_stand_under_their_themes_with_their_strongest_example(checked):
    at = open_page("", bundle="tiny")
    assert options(at, "_theme-tiny") == ["First", "Second * theme"]
    first, second = starts(at)
    assert (first["label"], first["note"], first["checked"]) == ("the busy one", "Look at its peak.", True)
    assert second["label"] == "another"
    example = checked.top_examples(first["feature"], 1, before=feature_starts.BEFORE, after=feature_starts.AFTER)[0]
    assert first["peak"] == example.peak - example.start
    assert first["steps"][first["peak"]] == spans.STEPS
    assert len(first["tokens"]) == len(example.tokens)
    assert "\n" not in "".join(string for pieces in first["tokens"] for _, string in pieces)
    run(at.button_group(key="_theme-tiny").set_value("Second * theme"))
    (row,) = starts(at)
    assert row["label"] == HOSTILE


def test_the_links_of_a_feature_open_its_page_and_its_text(checked):
    row = starts(open_page("", bundle="tiny"))[0]
    page, _, query = row["page"].partition("?")
    assert page == "feature"
    assert links.read_link(dict(p.split("=") for p in query.split("&")), ["tiny"]).feature == row["feature"]
    at = open_page("", bundle="tiny", feature=str(row["feature"]), doc=row["document"])
    assert component(at, "tips")["steps"][checked.top_examples(row["feature"], 1)[0].peak] == spans.STEPS


def test_a_clicked_name_opens_the_features_page(checked):
    at = open_page("", bundle="tiny")
    at.session_state["feature"], at.session_state["_go_to"] = 7, "feature"  # as the component's callback leaves it
    run(at)
    assert at.title[0].value == "Feature 7"


def test_an_own_bundle_offers_its_clearest_features(tiny):
    at = open_page("", bundle="tiny")
    expected = resources.get_starts(tiny)
    assert options(at, "_theme-tiny") == list(dict.fromkeys(s.theme for s in expected))
    assert [row["feature"] for row in starts(at)] == [s.feature for s in expected if s.theme == expected[0].theme]
    assert not any(row["checked"] for row in starts(at))


# ---- a label checked by hand, everywhere ----


def test_a_label_checked_by_hand_is_shown_with_its_mark_on_each_page(checked):
    busy = checked.curated.texts[0].features[0]
    automatic = checked.automatic_label(busy)
    shown = f"the busy one {wording.CHECKED}"
    origin = f"checked by hand; automatic: “{spans.plain(automatic)}”"
    text = open_page("", bundle="tiny")
    table = text.dataframe[0].value.set_index("feature")
    assert table.loc[busy, "label"] == shown
    assert shown in unescaped(texts_of(text))
    assert origin in unescaped(texts_of(text))
    page = open_page("feature", bundle="tiny", feature=str(busy))
    assert unescaped(page.header[0].value) == shown
    assert origin in unescaped(texts_of(page))
    assert "Look at its peak." in unescaped(texts_of(page))


def test_hostile_names_are_shown_as_they_are(checked):
    at = open_page("feature", bundle="tiny", feature=str(checked.curated.features[1].feature))
    assert at.header[0].value == spans.md(f"{HOSTILE} {wording.CHECKED}")
    for option in open_page("", bundle="tiny").button_group(key="_example").options:
        assert "<b>" not in option
        assert "](" not in option


@pytest.mark.parametrize(
    ("shared", "loader", "options"),
    [
        ("_shared_model", "_model", {"hook": HookPoint.parse("blocks.1.hook_resid_post"), "name": "m", "revision": ""}),
        ("_shared_full", "_full", {}),
    ],
)
def test_two_visitors_at_once_have_one_model_loaded(monkeypatch, tmp_path, shared, loader, options):
    """The second one asks while the first one's is being loaded."""
    inside, most, seconds = [], [], []

    def load(*_args) -> None:
        inside.append(1)
        most.append(len(inside))
        if not seconds:
            seconds.append(threading.Thread(target=getattr(resources, shared), args=(tmp_path,), kwargs=options))
            seconds[0].start()
            seconds[0].join(0.3)  # it waits for the first one
        inside.pop()

    monkeypatch.setattr(resources, loader, load)
    getattr(resources, shared)(tmp_path, **options)
    seconds[0].join(60)
    assert most == [1, 1]


@pytest.mark.parametrize("file", ["manifest.json", FILE])
def test_a_bundle_that_was_replaced_or_checked_anew_is_opened_again(checked, file):
    path, before = checked.folder / file, resources.get_bundle("tiny")
    assert resources.get_bundle("tiny") is before
    at = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(at, at))
    assert resources.get_bundle("tiny") is not before


def test_a_model_that_has_left_memory_is_said_to_have(tiny, monkeypatch):
    monkeypatch.setattr(resources, "lab_job", lambda _bundle: SimpleNamespace(tracer=None))
    with pytest.raises(ModelError, match="not in memory any more; open the page again"):
        resources.get_lab(tiny)
