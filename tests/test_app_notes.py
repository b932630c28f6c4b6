"""The pages of a visitor's own words: labels laid over the bundle's, lists made, ordered, linked, taken away and brought in."""

import json
import re

import pytest
from app_driver import open_page, run, texts_of, unescaped
from streamlit.testing.v1 import AppTest

from sae_explore import resources
from sae_explore.bundles.bundle import Bundle, open_bundle
from sae_explore.explore import browse, links
from sae_explore.explore.text_view import labels_of
from sae_explore.notebook import notes
from sae_explore.notebook.notes import Entry, Notes
from sae_explore.notebook.notes_json import to_json
from sae_explore.notebook.notes_store import FileStore
from sae_explore.wording import label_origin

pytest_plugins = ["bundle_fixtures"]
HOSTILE = "<script>x</script> **b** [l](javascript:1) :smile: $x$"


@pytest.fixture
def tiny(own_cache) -> Bundle:
    return open_bundle("tiny")


@pytest.fixture
def store(tiny, tmp_path) -> FileStore:
    return FileStore(tmp_path, "tiny", sae=notes.sae_of(tiny.manifest), d_sae=64)


def button(at: AppTest, label: str):
    return next(b for b in at.button if b.label == label)


def shown_features(at: AppTest) -> list[int]:
    return at.dataframe[0].value["Feature"].tolist()


def select(at: AppTest, row: int) -> AppTest:
    """Select a row of the open list."""
    key = re.search(r"_list-.*", at.dataframe[0].proto.id)[0]
    at.session_state[key] = {"selection": {"rows": [row], "columns": [], "cells": []}}
    return run(at)


# ---- labels over labels ------------------------------------------------------------------------------------------------


def test_own_labels_go_before_all_others_and_leave_the_bundle_alone(tiny):
    own = tiny.with_labels({3: "mine", 5: HOSTILE})
    automatic = [tiny.automatic_label(f) for f in range(64)]
    assert (own.label(3), own.row(3)["label"], own.row(3)["own_label"]) == ("mine", "mine", "mine")
    assert own.row(3)["automatic_label"] == automatic[3]
    assert "your own label" in label_origin(own.row(3))
    assert labels_of(own, [3, 4]) == ["mine ✎", automatic[4]]
    assert tiny.own_labels == {}
    assert [tiny.label(f) for f in range(64)] == automatic
    assert tiny.row(3)["own_label"] is None


def test_a_label_given_by_hand_yields_to_the_visitors_own(tiny):
    tiny.human_labels[3] = tiny.human_labels[4] = "by hand"
    own = tiny.with_labels({3: "mine"})
    assert [own.label(f) for f in (3, 4)] == ["mine", "by hand"]


def test_own_labels_are_found_by_searching_and_the_shared_table_stays_as_it_is(tiny):
    shared = resources.get_frame(tiny)
    before = shared.copy()
    frame = resources.get_frame(tiny.with_labels({3: "Zebra crossing"}))
    found = browse.kept(frame, browse.Filter(query="zebra", hide_dead=False, dense_above=None))
    assert found.nonzero()[0].tolist() == [3]
    assert frame["label"][3] == "Zebra crossing ✎"
    assert frame["search"][3].endswith(before["search"][3])
    assert shared.equals(before)
    assert frame.drop(columns=["label", "search"]).equals(before.drop(columns=["label", "search"]))


@pytest.mark.parametrize("page", ["feature", "browse", "lens", "text"])
def test_pages_show_the_own_label(tiny, store, page):
    shown = next(f for f in range(64) if tiny.row(f)["density"] <= 0.1 and tiny.row(f)["count"] > 10)
    store.change(lambda now: notes.with_label(now, shown, "my very own words", ""))
    at = open_page(page if page != "text" else "", feature=str(shown), features=f"{shown},7")
    tables = "".join(frame.value.to_string() for frame in at.dataframe)
    linked = "".join(str(link.proto.label) for link in at.get("page_link"))
    assert "my very own words" in texts_of(at) + tables + linked


# ---- the editors of a feature ------------------------------------------------------------------------------------------


def editors() -> AppTest:
    """A page with nothing but the editors of feature 5."""

    def script():
        from sae_explore import resources
        from sae_explore.views import notes_widgets, own_notes

        bundle = own_notes.overlaid(resources.get_bundle("tiny"))
        found = own_notes.notes_of(bundle)
        notes_widgets.own_note(found, 5)
        notes_widgets.label_editor(bundle, 5, found.labels.get(5))
        notes_widgets.list_editor(bundle, 5, found)

    return run(AppTest.from_function(script, default_timeout=20))


def test_a_label_and_a_note_are_written_changed_and_removed(tiny, store):
    at = editors()
    at.text_input[0].set_value("days of the week")
    at.text_area[0].set_value("saw it\non Monday")
    at = run(button(at, "Save").click())
    assert store.read().labels[5].label == "days of the week"
    assert at.text[0].value == "saw it\non Monday"
    at.text_input[0].set_value("months")
    at = run(button(at, "Save").click())
    assert store.read().own_labels == {5: "months"}
    at = run(button(at, "Remove").click())
    assert store.read() == Notes()
    assert at.text_input[0].value == ""
    assert not at.text


def test_a_feature_is_added_to_a_list(tiny, store):
    store.change(lambda now: notes.with_list(now, "Old", entries=[Entry(1)]))
    at = editors()
    assert at.selectbox[0].options == ["Old"]
    at = run(button(at, "Add").click())
    assert store.read().list_named("Old").features == [1, 5]
    assert "Old" in texts_of(at)


def test_without_a_list_the_page_says_what_to_do(tiny, store):
    at = run(button(editors(), "Add").click())
    assert "choose a list, or type the name" in unescaped(at.error[0].value)
    assert store.read() == Notes()


# ---- Lists -------------------------------------------------------------------------------------------------------------


def test_without_lists_the_page_says_how_to_make_one(tiny, store):
    at = open_page("lists")
    assert "There is no list yet" in at.info[0].value
    assert "None yet" in texts_of(at)
    at.text_input(key="_new_list_name").set_value("First")
    at.text_input(key="_new_list_numbers").set_value("7, 3 64")
    at = run(button(at, "Make it").click())
    assert "There is no feature 64" in unescaped(at.error[0].value)
    assert store.read().list_named("First").features == [7, 3]
    assert shown_features(at) == [7, 3]


def test_a_list_is_ordered_noted_and_shortened(tiny, store):
    store.change(lambda now: notes.with_list(now, "L", note="what for", entries=[Entry(9), Entry(2), Entry(4)]))
    at = open_page("lists")
    assert shown_features(at) == [9, 2, 4]
    assert at.text[0].value == "what for"
    at = select(at, 2)
    at = run(button(at, "Up").click())
    assert shown_features(at) == store.read().list_named("L").features == [9, 4, 2]
    assert not button(at, "Up").disabled  # the row that was moved is still the selected one
    at = run(button(at, "Up").click())
    assert shown_features(at) == [4, 9, 2]
    assert button(at, "Up").disabled
    note = next(box for box in at.text_input if box.label == "Note on feature 4 in this list")
    at = run(note.set_value("of four"))
    assert store.read().list_named("L").entries[0] == Entry(4, "of four")
    assert at.dataframe[0].value["Note"].tolist() == ["of four", "", ""]
    at = run(button(at, "Remove").click())
    assert shown_features(at) == [9, 2]
    adding = next(box for box in at.text_input if box.label == "Add features")
    at = run(adding.set_value("60 9"))
    assert shown_features(at) == [9, 2, 60]
    at = run(button(at, "Delete it").click())
    assert store.read() == Notes()
    assert "There is no list yet" in at.info[0].value


def test_a_list_is_renamed_and_another_one_opened(tiny, store):
    store.change(lambda now: notes.with_list(notes.with_list(now, "A", entries=[Entry(1)]), "B", entries=[Entry(2)]))
    at = open_page("lists")
    assert shown_features(at) == [2]
    at = run(at.selectbox[0].set_value("A"))
    assert shown_features(at) == [1]
    at.text_input(key="_rename-tiny-A").set_value("Better")
    at.text_area(key="_renote-tiny-A").set_value("noted")
    at = run(button(at, "Save").click())
    assert [s.name for s in store.read().lists] == ["Better", "B"]
    assert at.selectbox[0].value == "Better"
    at.text_input(key="_rename-tiny-Better").set_value("B")
    at = run(button(at, "Save").click())
    assert "there is a list “B” already" in unescaped(at.error[0].value).casefold().replace("“b”", "“B”")
    assert [s.name for s in store.read().lists] == ["Better", "B"]


def query(at: AppTest) -> dict[str, str]:
    return {key: value[-1] if isinstance(value, list) else value for key, value in at.query_params.items()}


def test_a_whole_list_travels_in_a_link(tiny, store, tmp_path):
    entries = [Entry(9, "of nine"), Entry(2)]
    store.change(lambda now: notes.with_list(now, "L & M", note="what for", entries=entries))
    at = open_page("lists")
    address = query(at)
    assert address == links.query_of(bundle="tiny", features=[9, 2], name="L & M", note="what for", notes=["of nine", ""])
    assert "features=9%2C2&list=L+%26+M" in at.code[0].value
    again = open_page("lists", **address)
    assert shown_features(again) == [9, 2]
    assert not [b for b in again.button if b.label == "Keep it"]  # it is the visitor's own
    store.path.unlink()
    other = open_page("lists", **address)
    assert shown_features(other) == [9, 2]
    assert other.subheader[0].value == r"L \& M"
    assert query(other) == address
    other = run(button(other, "Keep it").click())
    assert store.read().lists[0].entries == tuple(entries)
    assert store.read().lists[0].note == "what for"
    assert not [b for b in other.button if b.label == "Keep it"]


def test_a_linked_list_never_replaces_one_of_the_same_name(tiny, store):
    store.change(lambda now: notes.with_list(now, "L", entries=[Entry(1)]))
    at = open_page("lists", features="5,6,64", list="L")
    assert shown_features(at) == [5, 6]
    assert "1 feature that this bundle does not have" in at.warning[0].value
    run(button(at, "Keep it").click())
    assert [(s.name, s.features) for s in store.read().lists] == [("L", [1]), ("L (2)", [5, 6])]


def test_hostile_names_labels_and_notes_stay_text(tiny, store):
    store.change(lambda now: notes.with_list(now, HOSTILE[:60], note=HOSTILE, entries=[Entry(5, HOSTILE)]))
    store.change(lambda now: notes.with_label(now, 5, HOSTILE, HOSTILE))
    at = open_page("lists")
    marked = "".join(e.value for kind in ("markdown", "caption", "subheader", "info") for e in getattr(at, kind))
    assert "<script>" not in marked
    assert "**b**" not in marked
    linked = open_page("lists", features="7", list="**b**<b>")
    assert "**b**" not in "".join(e.value for e in linked.subheader)
    assert at.dataframe[1].value["Label"].tolist() == [HOSTILE]


def test_notes_are_brought_in_and_wrong_files_refused(tiny, store):
    store.change(lambda now: notes.with_label(now, 1, "mine", ""))
    theirs = notes.with_list(notes.with_label(Notes(), 2, "theirs", ""), "L", entries=[Entry(3)])
    data = json.dumps(to_json(theirs, bundle="elsewhere", sae=store.sae)).encode()
    at = open_page("lists")
    at = run(at.file_uploader[0].upload("notes.json", data, "application/json"))
    assert unescaped(at.success[0].value) == "Brought in: 1 new label, 1 new list."
    assert store.read().own_labels == {1: "mine", 2: "theirs"}
    assert shown_features(at) == [3]
    at = run(at.file_uploader[0].upload("notes.json", data, "application/json"))
    assert "nothing that was not here already" in unescaped(at.success[0].value)
    before = store.path.read_bytes()
    at = run(at.file_uploader[0].upload("notes.json", b'{"labels": [{"feature": 99}]}', "application/json"))
    assert "99 is no feature" in unescaped(at.error[0].value)
    assert store.path.read_bytes() == before


def test_a_damaged_file_is_named_on_this_page_and_no_other_page_suffers(tiny, store):
    store.path.parent.mkdir()
    store.path.write_text("no json")
    assert "labels/tiny.json cannot be read" in unescaped(open_page("lists").error[0].value)
    assert not open_page("browse").error
    assert store.path.read_text() == "no json"


def test_strangers_keep_their_notes_in_the_session(tiny, store, monkeypatch):
    monkeypatch.setenv("SAE_EXPLORE_PUBLIC", "1")
    at = open_page("lists")
    assert "this browser tab only" in texts_of(at)
    at.text_input(key="_new_list_name").set_value("Mine")
    at.text_input(key="_new_list_numbers").set_value("7")
    at = run(button(at, "Make it").click())
    assert shown_features(at) == [7]
    assert not store.path.parent.exists()
    assert "There is no list yet" in open_page("lists").info[0].value
