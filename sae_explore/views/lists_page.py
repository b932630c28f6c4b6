"""Lists: the visitor's own lists of features and own labels; to see, order, note and share as a link."""

from __future__ import annotations

from urllib.parse import urlencode

import pandas as pd
import streamlit as st

from sae_explore import resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing.spans import md, plain
from sae_explore.explore import links
from sae_explore.explore.text_view import labels_of
from sae_explore.notebook import notes
from sae_explore.notebook.notes import MAX_LIST_FEATURES, MAX_NAME, MAX_NOTE, Notes, SavedList
from sae_explore.views import addresses, export_buttons, notes_in_out, own_notes
from sae_explore.views.lens_page import parse_numbers
from sae_explore.wording import count_of

_OPEN, _LINKED = "open_list", "linked_list"
_NEW = "_new_list"


def render(bundle: Bundle) -> None:
    """The page."""
    st.title("Lists", anchor=False)
    st.markdown("Features that you want to find again, in your own order and with your own words.")
    own_notes.show_problem()
    found = own_notes.notes_of(bundle)
    linked = _linked(bundle, found)
    if linked is not None:
        _from_link(bundle, linked)
        return
    saved = _choice(bundle, found)
    if saved is None:
        st.info(
            "There is no list yet. Make one with “New list”, or open a feature and choose “Add to a list”.", icon=":material/bookmark_add:"
        )
        addresses.write_link(bundle)
    else:
        addresses.write_link(bundle, **_query(saved))
        _one_list(bundle, saved)
    notes_in_out.labels(bundle, found)
    notes_in_out.in_and_out(bundle, found)


def _query(saved: SavedList) -> dict:
    return {"features": saved.features, "name": saved.name, "note": saved.note, "notes": [entry.note for entry in saved.entries]}


# ---- a list from a link ------------------------------------------------------------------------------------------------


def _linked(bundle: Bundle, found: Notes) -> SavedList | None:
    """The list that the address carries, unless it is one of the visitor's own as it stands."""
    link = st.session_state.get(_LINKED)
    if link is None:
        return None
    asked = notes.from_link(link, bundle.d_sae)
    if missing := len(set(link.features)) - len(asked.entries):
        st.warning(
            f"The link names {count_of(missing, 'feature')} that this bundle does not have; it has features 0 to {bundle.d_sae - 1:,}.",
            icon=":material/link_off:",
        )
    own = found.list_named(asked.name)
    if not asked.entries or (own and own.features == asked.features):
        del st.session_state[_LINKED]
        st.session_state[_OPEN] = asked.name
        return None
    return asked


def _from_link(bundle: Bundle, linked: SavedList) -> None:
    addresses.write_link(bundle, **_query(linked))

    def keep() -> None:
        def edit(now: Notes) -> Notes:
            name, n = linked.name, 2
            while now.list_named(name):
                name, n = f"{linked.name[: MAX_NAME - 5]} ({n})", n + 1
            st.session_state[_OPEN] = name
            return notes.with_list(now, name, note=linked.note, entries=linked.entries)

        if own_notes.change(bundle, edit) is not None:
            del st.session_state[_LINKED]

    st.subheader(md(linked.name), anchor=False)
    st.caption(f"A list of {count_of(len(linked.entries), 'feature')} that came with a link. It is not among yours.")
    if linked.note:
        st.text(linked.note)
    feature = _selected(bundle, linked, "Select a row to open its feature.")
    with st.container(horizontal=True, vertical_alignment="center"):
        if feature is not None:
            addresses.feature_link(bundle, feature, icon=":material/arrow_forward:")
        st.button("Keep it", icon=":material/bookmark_add:", type="primary", on_click=keep)
        st.button("Close", on_click=lambda: st.session_state.pop(_LINKED, None))


# ---- the visitor's lists -----------------------------------------------------------------------------------------------


def _choice(bundle: Bundle, found: Notes) -> SavedList | None:
    """Which list is open, and a button for a new one."""
    names = [saved.name for saved in found.lists]
    if st.session_state.get(_OPEN) not in names:
        st.session_state[_OPEN] = names[-1] if names else None

    def chosen() -> None:
        st.session_state[_OPEN] = st.session_state["_list_choice"]

    with st.container(horizontal=True, vertical_alignment="bottom"):
        if names:
            st.session_state["_list_choice"] = st.session_state[_OPEN]
            st.selectbox("List", names, key="_list_choice", on_change=chosen, width=320)
        with st.popover("New list", icon=":material/add:"):
            _new(bundle)
    return found.list_named(st.session_state[_OPEN]) if names else None


def _new(bundle: Bundle) -> None:
    def make() -> None:
        name, numbers = st.session_state[f"{_NEW}_name"] or "", st.session_state[f"{_NEW}_numbers"] or ""
        features, problems = parse_numbers(numbers, bundle.d_sae, most=MAX_LIST_FEATURES)
        entries = [notes.Entry(feature) for feature in features]
        if own_notes.change(bundle, lambda now: notes.with_list(now, name, entries=entries)) is not None:
            st.session_state[_OPEN] = notes.one_line(name, "the name of a list", MAX_NAME)
            for key in ("name", "numbers"):
                st.session_state[f"{_NEW}_{key}"] = ""
        if problems:
            own_notes.say_problem(" ".join(problems))

    with st.form(_NEW, border=False):
        st.text_input("Name", max_chars=MAX_NAME, key=f"{_NEW}_name")
        st.text_input("Features, if you know some", key=f"{_NEW}_numbers", placeholder="numbers, as in 12, 340, 7")
        st.form_submit_button("Make it", type="primary", on_click=make)


def _one_list(bundle: Bundle, saved: SavedList) -> None:
    if saved.note:
        st.text(saved.note)
    feature = _selected(bundle, saved, "Select a row to open, move, note or remove its feature.")
    if feature is not None:
        _of_selected(bundle, saved, feature)
    _add(bundle, saved)
    with st.container(horizontal=True, vertical_alignment="center"):
        _rename(bundle, saved)
        _delete(bundle, saved)
        export_buttons.list_buttons(bundle, saved)
        if saved.entries:
            query = links.query_of(bundle=bundle.name, features=saved.features[:8])
            st.page_link(addresses.page_named("lens"), label="Side by side in Lens", icon=":material/search_insights:", query_params=query)
    if saved.entries:
        _link(bundle, saved)


def _table_key(bundle: Bundle, saved: SavedList) -> str:
    return f"_list-{bundle.name}-{saved.name}-{','.join(map(str, saved.features))}"


def _selected(bundle: Bundle, saved: SavedList, hint: str) -> int | None:
    """The list as a table; returns the feature of the selected row."""
    features = saved.features
    if not features:
        st.caption("This list is empty. Add features below, or from their own pages.")
        return None
    rows = resources.get_frame(bundle).loc[features, ["density", "max"]]
    table = pd.DataFrame(
        {
            "Feature": features,
            "Label": [plain(label) for label in labels_of(bundle, features)],
            "Note": [plain(entry.note.replace("\n", " ")) for entry in saved.entries],
            "Fires on": 100 * rows["density"].to_numpy(),
            "Max": rows["max"].to_numpy(),
        }
    )
    if not any(table["Note"]):
        del table["Note"]
    event = st.dataframe(
        table,
        hide_index=True,
        key=_table_key(bundle, saved),
        on_select="rerun",
        selection_mode="single-row",
        column_config={
            "Feature": st.column_config.NumberColumn(format="%d", width=65),
            "Fires on": st.column_config.NumberColumn(format="%.3f %%", width=80, help="Share of tokens on which the feature fires."),
            "Max": st.column_config.NumberColumn(format="%.2f", width=65, help="Strongest activation on this bundle's texts."),
        },
        height="content" if len(table) <= 15 else 560,
        alt=f"Features of the list {saved.name}",
    )
    picked = event["selection"]["rows"]
    if not picked or picked[0] >= len(features):
        st.caption(hint)
        return None
    return features[picked[0]]


def _of_selected(bundle: Bundle, saved: SavedList, feature: int) -> None:
    """What can be done with the selected feature."""
    at, note_key = saved.features.index(feature), f"_entry_note-{bundle.name}-{saved.name}-{feature}"

    def move(by: int) -> None:
        made = own_notes.change(bundle, lambda now: notes.moved(now, saved.name, feature, by))
        if made is not None and (other := made.list_named(saved.name)):
            st.session_state[_table_key(bundle, other)] = {
                "selection": {"rows": [other.features.index(feature)], "columns": [], "cells": []}
            }

    def remove() -> None:
        own_notes.change(bundle, lambda now: notes.without_feature(now, saved.name, feature))

    def note() -> None:
        said = st.session_state[note_key] or ""
        own_notes.change(bundle, lambda now: notes.with_entry_note(now, saved.name, feature, said))

    with st.container(border=True, gap="small"):
        with st.container(horizontal=True, vertical_alignment="center"):
            addresses.feature_link(bundle, feature, icon=":material/arrow_forward:")
            st.button("Up", icon=":material/arrow_upward:", disabled=at == 0, on_click=move, args=(-1,))
            st.button("Down", icon=":material/arrow_downward:", disabled=at == len(saved.entries) - 1, on_click=move, args=(1,))
            st.button("Remove", icon=":material/bookmark_remove:", on_click=remove)
        st.text_input(f"Note on feature {feature} in this list", saved.entries[at].note, max_chars=MAX_NOTE, key=note_key, on_change=note)


def _add(bundle: Bundle, saved: SavedList) -> None:
    key = f"_add_numbers-{bundle.name}-{saved.name}"

    def add() -> None:
        features, problems = parse_numbers(st.session_state[key] or "", bundle.d_sae, most=MAX_LIST_FEATURES)
        if features:
            own_notes.change(bundle, lambda now: notes.with_features(now, saved.name, features))
        if problems:
            own_notes.say_problem(" ".join(problems))
        st.session_state[key] = ""

    st.text_input("Add features", key=key, on_change=add, placeholder="numbers, as in 12, 340, 7", width=320)


def _rename(bundle: Bundle, saved: SavedList) -> None:
    name_key, note_key = f"_rename-{bundle.name}-{saved.name}", f"_renote-{bundle.name}-{saved.name}"

    def rename() -> None:
        name, note = st.session_state[name_key] or "", st.session_state[note_key] or ""
        if own_notes.change(bundle, lambda now: notes.renamed(now, saved.name, name, note)) is not None:
            st.session_state[_OPEN] = notes.one_line(name, "the name of a list", MAX_NAME)

    with st.popover("Name and note", icon=":material/edit:"), st.form(f"_rename_form-{saved.name}", border=False):
        st.text_input("Name", saved.name, max_chars=MAX_NAME, key=name_key)
        st.text_area("Note on the list", saved.note, max_chars=MAX_NOTE, key=note_key, height=110)
        st.form_submit_button("Save", type="primary", on_click=rename)


def _delete(bundle: Bundle, saved: SavedList) -> None:
    def delete() -> None:
        own_notes.change(bundle, lambda now: notes.without_list(now, saved.name))

    with st.popover("Delete", icon=":material/delete:"):
        st.markdown(f"Delete the list “{md(saved.name)}” with {count_of(len(saved.entries), 'feature')}?")
        st.button("Delete it", type="primary", on_click=delete)


def _link(bundle: Bundle, saved: SavedList) -> None:
    """The whole list in a link."""
    query = _query(saved)
    travels = links.fits_link(query["note"], *query["notes"])
    address = (st.context.url or "lists").split("?")[0]
    st.caption(
        "A link to this list, with its name"
        + (", its features and all notes:" if travels else " and features; the notes are too long for a link and travel as JSON:")
    )
    st.code(f"{address}?{urlencode(links.query_of(bundle=bundle.name, **query))}", language=None, wrap_lines=True)
