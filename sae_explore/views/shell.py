"""The frame around every page: navigation, style, which bundle is open, and the sidebar."""

from __future__ import annotations

import streamlit as st

from sae_explore import public_mode, resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import figures_html, spans
from sae_explore.errors import ExploreError
from sae_explore.views import addresses, own_notes, shared_note, sidebar
from sae_explore.wording import sentence

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
    addresses.read_link(chosen.url_path)
    chosen.run()


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
            st.page_link(addresses.page_named("build"), label="Build one here", icon=":material/construction:")
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
