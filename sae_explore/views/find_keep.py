"""Keep what a search found as one of the visitor's lists."""

from __future__ import annotations

import numpy as np
import streamlit as st

from sae_explore.bundles.bundle import Bundle
from sae_explore.errors import ExploreError
from sae_explore.notebook import notes
from sae_explore.notebook.notes import MAX_LIST_FEATURES, Notes
from sae_explore.views import own_notes
from sae_explore.wording import count_of

_NAME, _MANY = "_keep_name", "_keep_many"


def with_kept(now: Notes, name: str, features: list[int], *, note: str) -> Notes:
    """The notes with these features at the end of the list of this name, which is made, with the note, if there is none."""
    name = notes.one_line(name, "the name of a list", notes.MAX_NAME, empty=False)
    made = now if now.list_named(name) else notes.with_list(now, name, note=note[: notes.MAX_NOTE])
    return notes.with_features(made, name, features)


def keep_as_list(bundle: Bundle, rows: np.ndarray, *, note: str) -> None:
    """A button for the first features of the table, in its first order; `note` says in a new list where they come from."""
    try:
        names = [saved.name for saved in own_notes.notes_of(bundle).lists]
    except ExploreError:  # the page Lists says what is wrong
        return
    most = min(len(rows), MAX_LIST_FEATURES)

    def keep() -> None:
        name, many = st.session_state[_NAME], int(st.session_state[_MANY])
        if not name:
            own_notes.say_problem("nothing was kept: choose a list, or type the name of a new one")
            return
        if own_notes.change(bundle, lambda now: with_kept(now, name, rows[:many].tolist(), note=note)) is not None:
            own_notes.say_done(f"the first {count_of(many, 'feature')} are in the list “{name}”")

    if st.session_state.get(_MANY, 1) > most:
        st.session_state[_MANY] = most
    with st.popover("Keep as a list", icon=":material/bookmark_add:"), st.form("_keep", border=False):
        st.selectbox(
            "List",
            names,
            index=None,
            key=_NAME,
            accept_new_options=True,
            placeholder="type the name of a new list",
            help="Choose one of your lists, or type a new name.",
        )
        st.number_input(f"How many, from the top (at most {most})", 1, most, min(20, most), key=_MANY)
        st.form_submit_button("Keep", type="primary", on_click=keep)
