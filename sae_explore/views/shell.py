"""The frame around every page: navigation, style, which bundle is open, the sidebar, and links in and out."""

from __future__ import annotations

import time

import streamlit as st

from sae_explore import links, resources, spans
from sae_explore.bundle import Bundle
from sae_explore.errors import ExploreError
from sae_explore.views import sidebar

_SETTLING = 0.8  # seconds after which the browser has surely heard of a new address

# Streamlit's wide layout leaves little for the page at 1280 pixels, and lines too long to read on large screens.
_FRAME = """
[data-testid="stMainBlockContainer"] { padding: 3rem 2.4rem 4rem; max-width: 1480px; }
@media (max-width: 640px) { [data-testid="stMainBlockContainer"] { padding: 3.2rem 1rem 4rem; } }
"""


def pages() -> dict[str, st.Page]:
    """The pages by name; their functions are imported when they run, so that one page does not pay for another."""

    def page(name: str, title: str, icon: str, *, default: bool = False):
        def run() -> None:
            module = __import__(f"sae_explore.views.{name}_page", fromlist=["render"])
            _with_bundle(module.render)

        return st.Page(run, title=title, icon=icon, url_path="" if default else name, default=default)

    return {
        "text": page("text", "Text", ":material/edit_note:", default=True),
        "feature": page("feature", "Feature", ":material/radio_button_checked:"),
        "browse": page("browse", "Browse", ":material/table_rows:"),
        "lens": page("lens", "Lens", ":material/search_insights:"),
        "about": page("about", "About", ":material/info:"),
    }


def run() -> None:
    """Draw the app."""
    found = pages()
    st.session_state["_pages"] = found
    chosen = st.navigation(list(found.values()), position="sidebar")
    st.html(f"<style>{_FRAME}{spans.STYLE}</style>")
    _read_link(chosen.url_path)
    chosen.run()


def _read_link(page: str) -> None:
    """Take over what the address asks for, once per address: a visitor's later choices are not undone by it.

    The browser's Back brings an earlier address to the same page. So does a click made before the browser has heard of the
    newest address; that one must change nothing.
    """
    state = st.session_state
    params = {key: st.query_params[key] for key in ("bundle", "feature", "features", "text", "doc") if key in st.query_params}
    same_page = state.get("_page") == page
    state["_page"] = page
    if params in (state.get("_written", {}), state.get("_read")) or not (params or same_page):
        return
    if same_page and params in state.get("_earlier", ()) and time.monotonic() - state["_written_at"] < _SETTLING:
        return
    state["_read"] = params
    link = links.read_link(params, resources.bundle_names())
    state["_problems"] = link.problems
    if not params or link.bundle not in (None, state.get("bundle")):  # another bundle, or the bare address: nothing chosen
        for key in ("bundle", *sidebar.CHOICES):
            state.pop(key, None)
    if link.bundle:
        state["bundle"] = link.bundle
    if link.feature is not None:
        state["feature"] = link.feature
    elif link.text is not None or link.document is not None:
        state.pop("feature", None)
    if link.features:
        state["lens_features"] = list(link.features)
    if link.text is not None:
        state["text"], state["document"] = link.text, None
    if link.document is not None:
        state["document"], state["text"] = link.document, None


def write_link(bundle: Bundle, *, bare: bool = False, **view) -> None:
    """Make the address reopen this view: `feature`, `features`, `text`, `document` as in `links.query_of`.

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


def _with_bundle(render) -> None:
    """Open the chosen bundle, draw the sidebar and the page; a damaged bundle is a message, and the others go on."""
    names = resources.bundle_names()
    for problem in st.session_state.pop("_problems", ()):
        st.warning(spans.md(problem), icon=":material/link_off:")
    if not names:
        sidebar.empty()
        st.title("No bundle yet")
        folder = spans.md(f"{resources.cache_folder().name}/")
        st.info(f"There is no bundle in {folder}. Build one: `python -m sae_explore build gpt2`", icon=":material/inventory_2:")
        return
    name = st.session_state.get("bundle")
    if name not in names:
        name = names[0]
    st.session_state["bundle"] = name
    try:
        bundle = resources.get_bundle(name)
    except ExploreError as error:
        sidebar.choose(names, name)
        st.error(spans.md(str(error)), icon=":material/broken_image:")
        return
    sidebar.choose(names, name)
    sidebar.describe(bundle)
    try:
        render(bundle)
    except ExploreError as error:
        st.error(spans.md(str(error)), icon=":material/error:")
    resources.warm(bundle)
