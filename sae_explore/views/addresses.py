"""Links in and out: what an address asks for, the address that reopens what is on the screen, and links between pages."""

from __future__ import annotations

import time

import streamlit as st

from sae_explore import resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.explore import links

_SETTLING = 0.8  # seconds after which the browser has surely heard of a new address
CHOICES = (
    "feature",
    "text",
    "document",
    "lens_features",
    "linked_list",
    "also_features",
    "compare_link",
    "compare_a",
    "compare_b",
    "compare_bundle",
)  # what a session has chosen in a bundle


def read_link(page: str) -> None:
    """Take over what the address asks for, once per address: a visitor's later choices are not undone by it.

    The browser's Back brings an earlier address to the same page. So does a click made before the browser has heard of the
    newest address; that one must change nothing.
    """
    state = st.session_state
    params = {key: st.query_params[key] for key in links.KEYS if key in st.query_params}
    same_page = state.get("_page") == page
    state["_page"], state["_arrived"] = page, not (same_page or params)  # arrived: from another page, by its name in the sidebar
    if params in (state.get("_written", {}), state.get("_read")) or not (params or same_page):
        return
    if same_page and params in state.get("_earlier", ()) and time.monotonic() - state["_written_at"] < _SETTLING:
        return
    state["_read"] = params
    link = links.read_link(params, resources.bundle_names())
    state["_problems"] = link.problems
    if not params or link.bundle not in (None, state.get("bundle")):  # another bundle, or the bare address: nothing chosen
        for key in ("bundle", *CHOICES):
            state.pop(key, None)
    if link.bundle:
        state["bundle"] = link.bundle
    if link.feature is not None:
        state["feature"] = link.feature
    elif link.text is not None or link.document is not None:
        state.pop("feature", None)
    if link.features and page == "lists":
        state["linked_list"] = link
    elif link.features and page == "whatif":
        state["also_features"] = list(link.features)
    elif link.features:
        state["lens_features"] = list(link.features)
    if page == "browse":
        state["linked_search"] = link.search
    if page == "compare":  # its texts are its own
        state["compare_link"] = link
        return
    if link.text is not None:
        state["text"], state["document"] = link.text, None
    if link.document is not None:
        state["document"], state["text"] = link.document, None


def write_link(bundle: Bundle, *, bare: bool = False, **view) -> None:
    """Make the address reopen this view: `feature`, `features`, `text`, `document` and so on, as in `links.query_of`.

    `bare`: the page shows this by itself, so that on the first bundle the bare address will do.
    """
    state = st.session_state
    query = {} if bare and bundle.name == resources.bundle_names()[0] else links.query_of(bundle=bundle.name, **view)
    if dict(st.query_params) != query:
        st.query_params.from_dict(query)
    if query != state.get("_written", {}):
        state["_earlier"] = [*state.get("_earlier", ()), state.get("_written", {})][-20:]
        state["_written_at"] = time.monotonic()
    state["_written"] = query
    state.pop("_read", None)  # a link followed before may be followed again


def page_named(name: str):
    """For `st.page_link` and `st.switch_page`."""
    return st.session_state["_pages"][name]


def feature_link(bundle: Bundle, feature: int, label: str | None = None, **options) -> None:
    """A link to a feature's page, which also opens in a new tab."""
    query = links.query_of(bundle=bundle.name, feature=feature)
    st.page_link(page_named("feature"), label=label or f"Feature {feature}", query_params=query, **options)
