"""The visitor's own notes in the app: where they are kept, how a widget changes them, and their labels laid over a bundle's."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from sae_explore import public_mode, resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing.spans import md
from sae_explore.errors import ExploreError
from sae_explore.notebook.notes import Notes, sae_of
from sae_explore.notebook.notes_store import FOLDER, NotesStore, SessionStore
from sae_explore.wording import sentence

_PROBLEM, _DONE = "_notes_problem", "_notes_done"


def store_of(bundle: Bundle) -> NotesStore:
    """The cache folder's file, or the visitor's session where strangers share the server."""
    if not public_mode.allows("keep"):
        return SessionStore(st.session_state, bundle.name, sae=sae_of(bundle.manifest))
    return resources.notes_file(bundle)


def notes_of(bundle: Bundle) -> Notes:
    """The notes on this bundle's SAE. InputError if their file cannot be read."""
    return store_of(bundle).read()


def overlaid(bundle: Bundle) -> Bundle:
    """The bundle with the visitor's labels in front of all others; where the notes cannot be read, as it is (the page Lists says why)."""
    try:
        own = notes_of(bundle).own_labels
    except ExploreError:
        return bundle
    return bundle.with_labels(own) if own else bundle


def change(bundle: Bundle, edit: Callable[[Notes], Notes]) -> Notes | None:
    """Change the notes in a callback: what cannot be done is said on the page (see `show_problem`), and None comes back."""
    try:
        return store_of(bundle).change(edit)
    except ExploreError as error:
        say_problem(public_mode.shown(error))
    except OSError as error:
        say_problem(f"your notes cannot be kept: {error.strerror or error}")
    return None


def say_problem(problem: str) -> None:
    st.session_state[_PROBLEM] = problem


def say_done(done: str) -> None:
    st.session_state[_DONE] = done


def show_problem() -> None:
    """What the last change ran into, or what it did, once."""
    if problem := st.session_state.pop(_PROBLEM, None):
        st.error(md(sentence(problem)), icon=":material/error:")
    if done := st.session_state.pop(_DONE, None):
        st.success(md(sentence(done)), icon=":material/check_circle:")


def where_words(bundle: Bundle) -> str:
    """Where the notes are kept, in a sentence of plain text."""
    if not public_mode.allows("keep"):
        return "Labels and lists live in this browser tab only and are gone when it is closed: take them away as JSON."
    return f"Labels and lists are kept on this machine, in {resources.cache_folder().name}/{FOLDER}/{bundle.name}.json."
