"""The page Map: what it shows of a bundle with a map and of one without, and what a click in the browser means."""

import json
import shutil

import numpy as np
import pytest
import streamlit as st
from app_driver import address, figure, numbers, open_page, run, texts_of, unescaped

from sae_explore.bundles.bundle import open_bundle
from sae_explore.drawing import map_colours
from sae_explore.explore import text_view
from sae_explore.files.bundle_files import MAP_FILE, complete_manifest
from sae_explore.views import map_page

pytest_plugins = ["bundle_fixtures"]
ALT = "Map of 64 features"


@pytest.fixture(autouse=True)
def _app(app_cache):
    yield
    st.cache_data.clear()
    st.cache_resource.clear()


@pytest.fixture
def bundle(app_cache):
    return open_bundle("planted", cache=app_cache)


def drawn(at, *, fully: bool = False) -> list[int]:
    """The features on the map; with `fully` those that do not step back."""
    clouds = [t for t in figure(at, ALT).data if t.customdata is not None and not (fully and t.marker.opacity < 1)]
    return sorted(f for trace in clouds for f in numbers(trace.customdata))


def ring(at, name: str) -> np.ndarray | None:
    """Places (n, 2) that a mark of this name in the legend stands at; None if there is none."""
    found = [np.stack([numbers(trace.x), numbers(trace.y)], axis=1) for trace in figure(at, ALT).data if trace.name == name]
    return found[0] if found else None


def test_the_map_shows_every_feature_in_each_colour(bundle):
    at = open_page("map", "planted")
    assert at.title[0].value == "Map"
    assert "decoder directions" in texts_of(at)
    for choice in map_colours.choices(bundle):
        at.selectbox(key="map_colour").set_value(choice)
        assert drawn(run(at)) == list(range(64))
    assert address(at) == {"bundle": "planted"}


def test_a_link_opens_a_feature_and_rings_it(bundle):
    at = open_page("map", "planted", feature="12")
    np.testing.assert_allclose(ring(at, "feature 12"), bundle.map_xy[[12]], atol=1e-3)
    assert bundle.label(12) in unescaped(texts_of(at))
    assert address(at) == {"bundle": "planted", "feature": "12"}
    assert "There is no feature 999" in texts_of(open_page("map", "planted", feature="999"))


def test_a_search_lists_what_it_finds_and_lets_the_rest_step_back(bundle):
    at = open_page("map", "planted")
    at.text_input(key="map_query").set_value("12")
    run(at)
    table = at.dataframe[0].value
    assert table["feature"].iloc[0] == "feature?bundle=planted&feature=12"
    assert f"**{len(table)} feature" in texts_of(at)
    assert drawn(at, fully=True) == sorted(int(link.split("=")[-1]) for link in table["feature"])
    at.text_input(key="map_query").set_value("no such label ✗")
    run(at)
    assert "0 features" in texts_of(at)
    assert len(at.dataframe) == 0


def test_what_fires_on_the_current_text_is_marked(bundle):
    at = open_page("map", "planted", doc=bundle.documents["id"][3].as_py())
    strongest = text_view.ranked(bundle.document_trace(3), text_view.scale_of(bundle)).feature[:30]
    np.testing.assert_allclose(ring(at, "fires on the current text"), bundle.map_xy[strongest], atol=1e-3)
    at.toggle(key="map_mark").set_value(False)
    assert ring(run(at), "fires on the current text") is None


def test_a_lasso_lists_its_features_until_it_is_cleared(bundle):
    at = open_page("map", "planted")
    at.session_state["map_picked"] = ("planted", (9, 4))
    run(at)
    assert [link.split("=")[-1] for link in at.dataframe[0].value["feature"]] == ["9", "4"]
    assert "are selected on the map" in texts_of(at)
    next(b for b in at.button if b.label == "Clear the selection").click()
    run(at)
    assert len(at.dataframe) == 0


def test_a_bundle_without_a_map_says_how_to_make_one(bundle, tmp_path, monkeypatch):
    shutil.copytree(bundle.folder, tmp_path / "planted")
    files = tmp_path / "planted" / bundle.files.name
    (files / MAP_FILE).unlink()
    (tmp_path / "planted" / "manifest.json").write_text(json.dumps(complete_manifest(files, bundle.manifest)))
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path))
    at = open_page("map", "planted", feature="12")
    assert "no map yet" in texts_of(at)
    assert at.code[0].value == "pip install openTSNE\npython -m sae_explore map planted"
    assert not at.get("plotly_chart")
    monkeypatch.setenv("SAE_EXPLORE_PUBLIC", "1")
    at = open_page("map", "planted")
    assert "This bundle has no map." in texts_of(at)
    assert not at.code


# ---- clicks ------------------------------------------------------------------------------------------------------------


def points(*features: int) -> dict:
    return {"points": [{"customdata": f} for f in features]}


def test_clicks_choose_and_lassos_collect(bundle):
    state = {}
    map_page.take_click(state, {**points(7), "box": [], "lasso": []}, bundle)
    assert state["feature"] == 7
    map_page.take_click(state, {**points(3, 5), "box": [], "lasso": [{}]}, bundle)
    assert (state["feature"], state["map_picked"]) == (7, ("planted", (3, 5)))
    map_page.take_click(state, {**points(2**40), "box": [], "lasso": []}, bundle)  # no feature: as a click beside all points
    assert state["feature"] == 7
    assert "map_picked" not in state


def test_the_map_stays_while_only_it_is_clicked(bundle):
    """Or a click would throw the visitor out of the stretch that is looked at."""
    state = {"feature": 12}
    first = map_page.still_drawn(state, ("look",), 12, ())
    state[map_page._key(first)] = {}
    map_page.take_click(state, {**points(7), "box": [], "lasso": []}, bundle)
    assert map_page.still_drawn(state, ("look",), 7, ()) is first
    assert map_page.still_drawn(state, ("look",), 7, ()) is first  # any other rerun
    map_page.take_click(state, {**points(1, 2), "box": [{}], "lasso": []}, bundle)
    assert map_page.still_drawn(state, ("look",), 7, (1, 2)) is first
    other = map_page.still_drawn(state, ("look",), 30, (1, 2))  # chosen elsewhere
    assert other[1:3] == (30, (1, 2))
    assert map_page._key(other) != map_page._key(first)
    state[map_page._key(other)] = {}
    coloured = map_page.still_drawn(state, ("another",), 30, (1, 2))
    assert coloured.turn == other.turn + 1
    assert map_page.still_drawn(state, ("another",), 30, (1, 2)).turn == coloured.turn + 1  # the page was left: its chart's state has gone
