"""Features to begin with, theme by theme: a small component, because Streamlit's own HTML opens links in a new session.

Names and examples are real links, so that they open in a new tab too; a plain click stays in the app. As in `token_picker`, every
text is set through `textContent`.
"""

from __future__ import annotations

from urllib.parse import urlencode

import streamlit as st

from sae_explore import resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import spans
from sae_explore.explore import links
from sae_explore.explore.showcase import Start
from sae_explore.views.token_picker import PIECES_JS
from sae_explore.wording import CHECKED, CHECKED_HELP

ANCHOR = "start-with-a-feature"
BEFORE, AFTER = 8, 6  # tokens of an example around its peak

_CSS = """
:host { display: block; }
.list { container-type: inline-size; font-family: var(--st-font); color: var(--st-text-color); }
.row { display: grid; grid-template-columns: minmax(0, 17rem) minmax(0, 1fr); column-gap: 1.2rem; padding: .5rem 0;
       border-bottom: 1px solid var(--st-border-color); line-height: 1.6; }
@container (max-width: 38rem) { .row { grid-template-columns: minmax(0, 1fr); } }
a { text-decoration: none; border-radius: 3px; }
a:hover { text-decoration: underline; }
a:focus-visible { outline: 2px solid var(--st-primary-color); }
.name a { color: var(--st-link-color); font-weight: 600; }
.ok { color: rgba(128,128,128,.95); margin-left: .35rem; cursor: help; }
.note { color: rgba(128,128,128,1); font-size: .85rem; line-height: 1.4; }
.example { color: var(--st-text-color); overflow-wrap: anywhere; white-space: pre-wrap; unicode-bidi: plaintext; }
.t { border-radius: 3px; padding: 1px 0; }
.pk { box-shadow: inset 0 -2px 0 var(--st-primary-color); font-weight: 600; }
.cut, .mark, .code { color: rgba(128,128,128,.9); }
.code { font-family: var(--st-code-font); font-size: .8em; }
""" + spans.colours()

_JS = (
    PIECES_JS
    + """
function make(tag, className, text) {
  const node = document.createElement(tag);
  node.className = className;
  if (text) node.textContent = text;
  return node;
}

function line(row, data, choose) {
  const link = (className, href, title, what) => {
    const a = make("a", className);
    a.href = href;
    a.title = title;
    a.onclick = (event) => {
      if (event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
      event.preventDefault();
      document.querySelector('[data-testid="stMain"]')?.scrollTo({ top: 0 });
      choose(what, row.feature);
    };
    return a;
  };
  const name = make("div", "name");
  const opens = link("", row.page, data.open_title, "open");
  opens.textContent = row.label;
  name.append(opens);
  if (row.checked) {
    const mark = make("span", "ok", data.mark);
    mark.title = data.mark_title;
    name.append(mark);
  }
  if (row.note) name.append(make("div", "note", row.note));
  const example = link("example", row.text, data.show_title, "show");
  if (row.cut_left) example.append(make("span", "cut", "… "));
  row.tokens.forEach((pieces, i) => {
    const span = make("span", "t" + (row.steps[i] ? " a" + row.steps[i] : "") + (i === row.peak ? " pk" : ""));
    place(example, span, pieces);
  });
  if (row.cut_right) example.append(make("span", "cut", " …"));
  const whole = make("div", "row");
  whole.append(name, example);
  return whole;
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const root = parentElement.querySelector(".list");
  root.replaceChildren(...data.rows.map((row) => line(row, data, setTriggerValue)));
}
"""
)

_component = st.components.v2.component("sae_feature_starts", html='<div class="list"></div>', css=_CSS, js=_JS)


def feature_starts(bundle: Bundle) -> None:
    """Themes, and the features of the chosen one, each with its strongest example."""
    starts = resources.get_starts(bundle)
    if not starts:
        return
    st.subheader("Start with a feature", anchor=ANCHOR, help=CHECKED_HELP if starts[0].checked else None)
    st.caption("A name opens the feature's page. Its strongest example stands beside it and opens the whole text, coloured by the feature.")
    themes = list(dict.fromkeys(start.theme for start in starts))
    key = f"_theme-{bundle.name}"
    if st.session_state.get(key) not in themes:
        st.session_state[key] = themes[0]
    st.pills(
        "Theme", themes, format_func=spans.md, key=key, required=True, wrap=True, label_visibility="collapsed", persist_state="session"
    )
    rows = [row for start in starts if start.theme == st.session_state[key] for row in _rows(bundle, start)]
    by_feature = {row["feature"]: row for row in rows}

    def chosen() -> None:
        """Open the feature's page, or the text of its example, whichever was clicked."""
        for what in ("open", "show"):
            row = by_feature.get(st.session_state["_starts"].get(what))
            if row:
                st.session_state["feature"] = row["feature"]
                if what == "open":
                    st.session_state["_go_to"] = "feature"
                else:
                    st.session_state["document"], st.session_state["text"] = row["document"], None

    payload = {
        "rows": rows,
        "mark": CHECKED,
        "mark_title": CHECKED_HELP,
        "open_title": "Open this feature's page",
        "show_title": "Show the whole text, coloured by this feature",
    }
    _component(key="_starts", data=payload, on_open_change=chosen, on_show_change=chosen)


def _rows(bundle: Bundle, start: Start) -> list[dict]:
    """What the component draws of one feature: nothing if it has no example."""
    found = bundle.top_examples(start.feature, 1, before=BEFORE, after=AFTER)
    maximum = float(bundle.maxima[start.feature])
    return [
        {
            "feature": start.feature,
            "label": spans.plain(start.label),
            "checked": start.checked,
            "note": start.note,
            "page": f"feature?{urlencode(links.query_of(bundle=bundle.name, feature=start.feature))}",
            "text": f"?{urlencode(links.query_of(bundle=bundle.name, feature=start.feature, document=example.document_id))}",
            "document": example.document_id,
            "tokens": [spans.on_one_line(spans.pieces(t, b)) for t, b in zip(example.tokens, example.bytes, strict=True)],
            "steps": [spans.step_of(float(v), maximum) for v in example.values],
            "peak": example.peak - example.start,
            "cut_left": example.cut_left,
            "cut_right": example.cut_right,
        }
        for example in found
    ]
