"""A coloured text whose tokens can be clicked: a small component, because Streamlit's own HTML reports no clicks.

Its script is fixed and sets texts through `textContent` only, so no token can become markup. One token at a time is in the tab
order; the arrow keys move among them, Enter chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import streamlit as st

from sae_explore.drawing import spans

_CSS = """
:host { display: block; }
.run { line-height: 1.95; font-size: 1.02rem; overflow-wrap: anywhere; white-space: pre-wrap;
       font-family: var(--st-font); color: var(--st-text-color); unicode-bidi: plaintext; }
.t { border-radius: 3px; padding: 2px 0; cursor: pointer; }
.t:hover { outline: 1px solid var(--st-primary-color); }
.t:focus { outline: none; }
.t:focus-visible { outline: 2px solid var(--st-primary-color); }
.ig { color: rgba(128,128,128,.8); font-style: italic; cursor: help; }
.mark { color: rgba(128,128,128,.8); font-size: .8em; }
.code { color: rgba(128,128,128,.95); font-family: var(--st-code-font); font-size: .78em; padding: 0 1px; unicode-bidi: isolate; }
.on { box-shadow: 0 0 0 2px var(--st-primary-color); }
""" + spans.colours()

PIECES_JS = """
// As in `spans.apart`: the space that a token begins with stands before it, outside of its colour.
function place(root, span, pieces) {
  const [[kind, string] = [], ...rest] = pieces;
  const apart = kind === "text" && /^ \\S/.test(string);
  if (apart) root.append(" ");
  fill(span, apart ? [[kind, string.slice(1)], ...rest] : pieces);
  root.append(span);
}

function fill(span, pieces) {
  for (const [kind, string] of pieces) {
    if (kind === "text") span.append(document.createTextNode(string));
    else {
      const inner = document.createElement("span");
      inner.className = kind;
      inner.textContent = string;
      span.append(inner);
    }
  }
}
"""

_JS = (
    PIECES_JS
    + """
function draw(root, data) {
  const rows = document.createDocumentFragment();
  data.tokens.forEach((pieces, i) => {
    const span = document.createElement("span");
    span.dataset.i = i;
    place(rows, span, pieces);
  });
  root.replaceChildren(rows);
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const root = parentElement.querySelector(".run");
  if (root.dataset.text !== data.text) {
    draw(root, data);
    root.dataset.text = data.text;
  }
  const all = root.children;
  for (let i = 0; i < all.length; i++) {
    const span = all[i];
    span.className = "t" + (data.ignored[i] ? " ig" : data.steps[i] ? " a" + data.steps[i] : "") + (data.selected === i ? " on" : "");
    span.title = data.tips[i];
    span.tabIndex = i === (data.selected ?? 0) ? 0 : -1;
    span.setAttribute("role", "button");
    span.setAttribute("aria-pressed", data.selected === i);
  }
  const index = (event) => {
    const span = event.target.closest("[data-i]");
    return span ? Number(span.dataset.i) : null;
  };
  const choose = (i) => { if (i !== null) setTriggerValue("token", i); };
  root.onclick = (event) => choose(index(event));
  root.onkeydown = (event) => {
    const i = index(event);
    if (i === null) return;
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step && all[i + step]) {
      event.preventDefault();
      all[i].tabIndex = -1;
      all[i + step].tabIndex = 0;
      all[i + step].focus();
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(i);
    }
  };
}
"""
)

_HTML = '<div class="run" role="group" aria-label="Tokens"></div>'
_component = st.components.v2.component("sae_token_picker", html=_HTML, css=_CSS, js=_JS)


def token_picker(
    tokens: Sequence[list[tuple[str, str]]],
    levels: np.ndarray,
    ignored: np.ndarray,
    tips: Sequence[str],
    *,
    text_id: str,
    selected: int | None,
    on_choose: Callable[[int], None],
    key: str,
) -> None:
    """Draw the tokens (as `spans.pieces`), coloured by `levels` from 0 to 1; `on_choose` gets the position of a clicked one.

    `text_id` changes with the tokens. `tips` are the tooltips.
    """

    def clicked() -> None:
        found = st.session_state[key].get("token")
        if isinstance(found, (int, float)) and 0 <= int(found) < len(tokens):
            on_choose(int(found))

    payload = {
        "text": text_id,
        "tokens": tokens,
        "steps": [0 if ignored[i] else spans.step_at(float(level)) for i, level in enumerate(levels)],
        "ignored": ignored.tolist(),
        "tips": tips,
        "selected": selected,
    }
    _component(key=key, data=payload, on_token_change=clicked)
