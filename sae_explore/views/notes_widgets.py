"""Small editors for a feature: the visitor's own label and note, and a place in one of their lists."""

from __future__ import annotations

import streamlit as st

from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing.spans import md
from sae_explore.notebook import notes
from sae_explore.notebook.notes import MAX_LABEL, MAX_NOTE, Notes, OwnLabel
from sae_explore.views import own_notes
from sae_explore.wording import count_of


def own_note(found: Notes, feature: int) -> None:
    """What the last change ran into, and the visitor's note on the feature, if there is one."""
    own_notes.show_problem()
    own = found.labels.get(feature)
    if own and own.note:
        with st.container(border=True, gap="xsmall"):
            st.caption("Your note")
            st.text(own.note)


def label_editor(bundle: Bundle, feature: int, own: OwnLabel | None) -> None:
    """A label and a note of one's own, behind a button."""
    label_key, note_key = f"_own_label-{bundle.name}-{feature}", f"_own_note-{bundle.name}-{feature}"

    def save() -> None:
        label, note = st.session_state[label_key] or "", st.session_state[note_key] or ""
        own_notes.change(bundle, lambda found: notes.with_label(found, feature, label, note))

    def remove() -> None:
        own_notes.change(bundle, lambda found: notes.with_label(found, feature, "", ""))
        for key in (label_key, note_key):
            st.session_state.pop(key, None)

    with (
        st.popover("Your label" if own else "Label it yourself", icon=":material/edit:"),
        st.form(f"_own-{bundle.name}-{feature}", border=False),
    ):
        st.text_input(
            "Label",
            own.label if own else "",
            max_chars=MAX_LABEL,
            key=label_key,
            placeholder="what this feature stands for",
            help="Shown in place of the automatic label, to you.",
        )
        st.text_area(
            "Note", own.note if own else "", max_chars=MAX_NOTE, key=note_key, placeholder="what you saw, what you doubt", height=110
        )
        with st.container(horizontal=True):
            st.form_submit_button("Save", type="primary", on_click=save)
            if own:
                st.form_submit_button("Remove", icon=":material/delete:", on_click=remove)
        st.caption(md(own_notes.where_words(bundle)))


def list_editor(bundle: Bundle, feature: int, found: Notes) -> None:
    """Add the feature to a list, an old or a new one, behind a button."""
    names = [saved.name for saved in found.lists]
    holding = [saved.name for saved in found.lists if feature in saved.features]
    choice, note_key = f"_list_of-{bundle.name}-{feature}", f"_list_note-{bundle.name}-{feature}"

    def add() -> None:
        name, note = st.session_state[choice], st.session_state[note_key] or ""
        if not name:
            own_notes.say_problem("the feature was not added: choose a list, or type the name of a new one")
            return

        if own_notes.change(bundle, lambda now: notes.added(now, name, feature, note)) is not None:
            st.session_state.pop(note_key, None)

    with st.popover("Add to a list", icon=":material/bookmark_add:"):
        if holding:
            st.caption(f"In {count_of(len(holding), 'list')} now: " + ", ".join(md(name) for name in holding))
        with st.form(f"_add-{bundle.name}-{feature}", border=False):
            st.selectbox(
                "List",
                names,
                index=0 if names else None,
                key=choice,
                accept_new_options=True,
                placeholder="type the name of a new list",
                help="Choose one of your lists, or type a new name.",
            )
            st.text_input("Note on this feature, if you like", max_chars=MAX_NOTE, key=note_key)
            st.form_submit_button("Add", type="primary", on_click=add)
