"""Links to the texts of examples, followed within the app.

Streamlit's own HTML opens a link in a new session, so a small script catches plain clicks on the links of `spans.examples_html` and
reports them; opened in a new tab, or without the script, they are links like any other.
"""

from __future__ import annotations

from urllib.parse import parse_qs, urlencode, urlsplit

import streamlit as st

from sae_explore.bundles.bundle import Bundle
from sae_explore.explore import links
from sae_explore.types import Example
from sae_explore.views import addresses

_KEY = "_example_links"
_JS = """
export default function (component) {
  const { parentElement, setTriggerValue } = component;
  const main = document.querySelector('[data-testid="stMain"]');
  if (!main) return;
  const follow = (event) => {
    const link = event.target.closest?.("a.go");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    main.scrollTo({ top: 0 });
    setTriggerValue("go", link.getAttribute("href"));
  };
  main.addEventListener("click", follow);
  return () => main.removeEventListener("click", follow);
}
"""
_component = st.components.v2.component("sae_example_links", html="<div></div>", js=_JS)


def address(bundle: Bundle, feature: int):
    """For `spans.examples_html`: where the Text page shows an example's text, coloured by the feature."""

    def of(example: Example) -> str:
        return f"./?{urlencode(links.query_of(bundle=bundle.name, feature=feature, document=example.document_id))}"

    return of


def follow_if_clicked() -> None:
    """At the top of a page: go where a click led."""
    if page := st.session_state.pop("_go_to", None):
        st.switch_page(addresses.page_named(page))


def catcher(bundle: Bundle) -> None:
    """At the end of a page: what catches the clicks."""

    def clicked() -> None:
        if link := link_of(bundle, st.session_state[_KEY].get("go")):
            st.session_state["document"], st.session_state["text"] = link.document, None
            st.session_state["feature"], st.session_state["_go_to"] = link.feature, "text"

    _component(key=_KEY, on_go_change=clicked)


def link_of(bundle: Bundle, href: object) -> links.Link | None:
    """What the browser reports, if it is the address of a text that the bundle holds."""
    if not isinstance(href, str):
        return None
    link = links.read_link({key: values[0] for key, values in parse_qs(urlsplit(href).query).items()}, [bundle.name])
    return link if link.document is not None and bundle.find_document(link.document) is not None else None
