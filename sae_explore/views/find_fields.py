"""How Browse searches, and for what: a choice, and the field that belongs to it. A link or a button sets them."""

from __future__ import annotations

import streamlit as st

from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing.spans import md
from sae_explore.errors import ExploreError
from sae_explore.explore.find_links import BY, MAX_QUERY, NO_SEARCH, Search
from sae_explore.notebook.notes import Notes
from sae_explore.views import find_filters, own_notes

_LINKED = "linked_search"
_NAMES = {
    "label": "Label",
    "phrase": "Phrase",
    "token": "Token",
    "lens": "Lens token",
    "category": "Category",
    "similar": "Similar",
    "list": "List",
}
BY_HELP = (
    "**Label**: words of labels, peak tokens and promoted tokens, or a number. **Phrase**: what fires on your own words and not in general; "
    "the model reads them. **Token**: what fires on a token in the stored texts. **Lens token**: what promotes or suppresses a token. "
    "**Category**: what fires in one kind of text. **Similar**: what points the same way as a feature. **List**: your own lists."
)
_TEXT = {
    "label": ("Words or a number", "a label, a token or a number", "Finds this piece of text, in upper or lower case, in labels, peak tokens "
              "and promoted tokens."),
    "phrase": ("Phrase", "some words, then Enter", "Ranks features by how much they fire on these words and not in general. A few words tell "
               "more than one: the first word of a text has features of its own in every model."),
    "token": ("Token", "one token, then Enter", "A token is a word, a part of one, or a sign. Upper and lower case and a leading space are put "
              "aside. · stands for a space, ↵ for a line break."),
    "lens": ("Token", "one token, then Enter", "Finds features with this token among those that the logit lens says they promote or suppress "
             "most. Upper and lower case and a leading space are put aside."),
}  # fmt: skip
_SIDES = ("Promoted", "Suppressed")
_STAY = {"persist_state": "session"}


def put(search: Search) -> None:
    """Set the controls to a search."""
    state = st.session_state
    state["browse_by"], state["browse_side"] = search.by, _SIDES[search.suppressed]
    state["browse_query"] = search.query if search.by in _TEXT else ""
    for by in ("category", "similar", "list"):
        state.pop(f"browse_{by}", None)
    if search.by not in _TEXT and search.query:
        state[f"browse_{search.by}"] = search.query
    find_filters.put(search)


def take_link() -> None:
    """Take over the search that the address asks for."""
    if (search := st.session_state.pop(_LINKED, None)) is not None:
        put(search)


def open_similar(feature: int) -> None:
    """Search for features like this one, with the filters that are set."""
    st.session_state["browse_by"], st.session_state["browse_similar"] = "similar", str(feature)


def field(bundle: Bundle) -> Search:
    """Draw the choice and its field; returns the search, without filters."""
    if st.session_state.get("browse_by") not in BY:
        st.session_state["browse_by"] = NO_SEARCH.by
    left, right = st.columns([11, 9], gap="medium")
    with left:
        by = st.segmented_control("Find by", BY, format_func=_NAMES.get, required=True, key="browse_by", help=BY_HELP, wrap=True, **_STAY)
    with right:
        if by in _TEXT:
            return _text(by)
        return Search(by, {"category": _category, "similar": _similar, "list": _list}[by](bundle))


def _text(by: str) -> Search:
    label, placeholder, said = _TEXT[by]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        query = st.text_input(
            label,
            key="browse_query",
            placeholder=placeholder,
            live=by == "label",
            type="search",
            max_chars=MAX_QUERY,
            help=said,
            **_STAY,
        )
        suppressed = by == "lens" and _side() == _SIDES[1]
    return Search(by, query or "", suppressed=suppressed)


def _side() -> str:
    if st.session_state.get("browse_side") not in _SIDES:
        st.session_state["browse_side"] = _SIDES[0]
    return st.segmented_control("Side", _SIDES, required=True, key="browse_side", label_visibility="collapsed", **_STAY)


def _category(bundle: Bundle) -> str:
    said = "Ranks features by how many times more often they fire in these texts than elsewhere."
    return _choice("Category", "browse_category", bundle.categories, "choose a kind of text", said)


def _list(bundle: Bundle) -> str:
    try:
        names = [saved.name for saved in own_notes.notes_of(bundle).lists]
    except ExploreError:
        names = []  # the page Lists says what is wrong with them
    return _choice(
        "List", "browse_list", names, "choose a list" if names else "there is no list yet", "Your own lists, from the page Lists."
    )


def _choice(label: str, key: str, options: list[str], placeholder: str, said: str) -> str:
    """One of the options, or nothing. What a link asks for and is not there is named."""
    asked = st.session_state.get(key)
    if asked is not None and asked not in options:
        del st.session_state[key]
        st.caption(f":material/link_off: There is no {label.lower()} “{md(asked[:60])}” here.")
    return st.selectbox(label, options, index=None, key=key, placeholder=placeholder, help=said, **_STAY) or ""


def _similar(bundle: Bundle) -> str:
    if "browse_similar" not in st.session_state and "feature" in st.session_state:
        st.session_state["browse_similar"] = str(st.session_state["feature"])
    said = f"Lists features whose decoder rows point most nearly the same way, over all {bundle.d_sae:,} of them."
    return st.text_input(
        "Feature number", key="browse_similar", placeholder=f"0 to {bundle.d_sae - 1:,}, then Enter", type="search", help=said, **_STAY
    ).strip()


def list_named(bundle: Bundle, name: str):
    """The visitor's list of this name, or None."""
    try:
        found: Notes = own_notes.notes_of(bundle)
    except ExploreError:
        return None
    return found.list_named(name)
