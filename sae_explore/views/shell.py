"""The frame around every page: navigation, style, which bundle is open, the sidebar, and links in and out."""

from __future__ import annotations

import time

import streamlit as st

from sae_explore import figures_html, links, public_mode, resources, spans
from sae_explore.bundle import Bundle
from sae_explore.errors import ExploreError
from sae_explore.views import own_notes, shared_note, sidebar
from sae_explore.wording import sentence

_SETTLING = 0.8  # seconds after which the browser has surely heard of a new address

# Streamlit's wide layout leaves little for the page at 1280 pixels, and lines too long to read on large screens.
_FRAME = """
[data-testid="stMainBlockContainer"] { padding: 3rem 2.4rem 4rem; max-width: 1480px; }
@media (max-width: 640px) {
  [data-testid="stMainBlockContainer"] { padding: 3.2rem 1rem 4rem; }
  [data-testid="stHorizontalBlock"] { row-gap: 1rem; }  /* what stood side by side stands below each other, no further apart than the rest */
  .st-key-about_sources td:first-child p { overflow-wrap: anywhere !important; }  /* long names of files */
}
[data-testid="stNavSectionHeader"] { font-size: 0.8rem; opacity: 0.75; }
.st-key-_feature_number button { display: none; }  /* Previous and Next stand beside the box */
/* White letters on the orange of the dark theme could hardly be read. */
button[data-testid^="stBaseButton-primary"] { color: light-dark(#FFFFFF, #15171B); }
"""

_SECTIONS = {  # of the sidebar
    "Explore": ("text", "feature", "browse", "map", "lens"),
    "Experiment": ("whatif", "compare"),
    "Yours": ("lists", "build"),
    "Background": ("quality", "about"),
}


def pages() -> dict[str, st.Page]:
    """The pages by name; their functions are imported when they run, so that one page does not pay for another."""

    def page(name: str, title: str, icon: str, *, default: bool = False, needs_bundle: bool = True):
        def run() -> None:
            module = __import__(f"sae_explore.views.{name}_page", fromlist=["render"])
            _with_bundle(module.render, needed=needs_bundle)

        return st.Page(run, title=title, icon=icon, url_path="" if default else name, default=default)

    found = {
        "text": page("text", "Text", ":material/edit_note:", default=True),
        "feature": page("feature", "Feature", ":material/radio_button_checked:"),
        "browse": page("browse", "Browse", ":material/table_rows:"),
        "map": page("map", "Map", ":material/scatter_plot:"),
        "lens": page("lens", "Lens", ":material/search_insights:"),
        "whatif": page("whatif", "What if", ":material/experiment:"),
        "compare": page("compare", "Compare", ":material/compare:"),
        "lists": page("lists", "Lists", ":material/bookmarks:"),
        "quality": page("quality", "Quality", ":material/monitoring:"),
        "build": page("build", "Build", ":material/construction:", needs_bundle=False),
        "about": page("about", "About", ":material/info:"),
    }
    if not resources.builds_allowed():
        del found["build"]
    return found


def run() -> None:
    """Draw the app."""
    found = pages()
    st.session_state["_pages"] = found
    sections = {title: [found[name] for name in names if name in found] for title, names in _SECTIONS.items()}
    chosen = st.navigation(sections, position="sidebar", expanded=True)
    st.html(f"<style>{_FRAME}{spans.STYLE}{figures_html.STYLE}</style>")
    shared_note.wait_if_needed()
    _read_link(chosen.url_path)
    chosen.run()


def _read_link(page: str) -> None:
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
        for key in ("bundle", *sidebar.CHOICES):
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


def _with_bundle(render, *, needed: bool = True) -> None:
    """Open the chosen bundle, draw the sidebar and the page; a damaged bundle is a message, and the others go on.

    A page for which no bundle is `needed` is drawn in any case, with None where there is none.
    """
    names = resources.bundle_names()
    problems = st.session_state.pop("_problems", ())
    if problems:
        st.space(8)  # a box, unlike a title, has no room above it, and the app's menu bar would cover its edge
    for problem in problems:
        st.warning(spans.md(problem), icon=":material/link_off:")
    if not names:
        sidebar.empty()
        if not needed:
            _draw(render, None)
            return
        st.title("No bundle yet")
        if not resources.builds_allowed():
            st.info("There is nothing to show here yet.", icon=":material/inventory_2:")
        else:
            folder = spans.md(f"{resources.cache_folder().name}/")
            st.info(f"There is no bundle in {folder}. Build one: `python -m sae_explore build gpt2`", icon=":material/inventory_2:")
            st.page_link(page_named("build"), label="Build one here", icon=":material/construction:")
        return
    name = st.session_state.get("bundle")
    if name not in names:
        name = names[0]
    st.session_state["bundle"] = name
    try:
        bundle = resources.get_bundle(name)
    except ExploreError as error:
        sidebar.choose(names, name)
        sidebar.foot()
        st.error(spans.md(sentence(public_mode.shown(error))), icon=":material/broken_image:")
        if not needed:
            _draw(render, None)
        return
    sidebar.choose(names, name)
    sidebar.describe(bundle)
    if bundle.curated.problem and not public_mode.is_public():
        st.warning(spans.md(sentence(bundle.curated.problem)), icon=":material/edit_off:")
    _draw(render, own_notes.overlaid(bundle))
    resources.warm(bundle)


def _draw(render, bundle: Bundle | None) -> None:
    try:
        render(bundle)
    except ExploreError as error:
        st.error(spans.md(sentence(public_mode.shown(error))), icon=":material/error:")
