"""A coloured text whose tokens can be clicked: a small component, because Streamlit's own HTML reports no clicks.

Its script is fixed and sets texts through `textContent` only, so no token can become markup.
"""

from __future__ import annotations

import numpy as np
import streamlit as st

from sae_explore import spans

_CSS = """
:host { display: block; }
.run { line-height: 1.9; font-size: 0.98rem; overflow-wrap: anywhere; white-space: pre-wrap; font-family: var(--st-font); color: var(--st-text-color); }
.t { border-radius: 3px; padding: 2px 0; cursor: pointer; }
.t:hover { outline: 1px solid var(--st-primary-color); }
.t:focus-visible { outline: 2px solid var(--st-primary-color); }
.ig { color: rgba(128,128,128,.75); font-style: italic; cursor: help; }
.mark { color: rgba(128,128,128,.65); font-size: .8em; }
.on { box-shadow: 0 0 0 2px var(--st-primary-color); }
""" + "\n".join(f".a{i} {{ background: rgba(245,124,32,{0.06 + 0.072 * i:.3f}); }}" for i in range(1, spans.STEPS + 1))

_JS = """
export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const root = parentElement.querySelector(".run");
  root.replaceChildren();
  data.tokens.forEach((text, i) => {
    const span = document.createElement("span");
    const ignored = data.ignored[i];
    span.className = "t" + (ignored ? " ig" : data.steps[i] ? " a" + data.steps[i] : "") + (data.selected === i ? " on" : "");
    span.title = data.tips[i];
    if (data.marks[i]) {
      const mark = document.createElement("span");
      mark.className = "mark";
      mark.textContent = data.marks[i];
      span.append(mark);
    }
    span.append(document.createTextNode(text));
    if (!ignored) {
      span.tabIndex = 0;
      span.setAttribute("role", "button");
      const choose = () => setTriggerValue("token", i);
      span.onclick = choose;
      span.onkeydown = (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(); } };
    }
    root.append(span);
  });
}
"""

_component = st.components.v2.component("sae_token_picker", html='<div class="run" role="group" aria-label="Tokens"></div>', css=_CSS, js=_JS)


def token_picker(tokens, values: np.ndarray, ignored: np.ndarray, maximum: float, *, data, what: str, selected: int | None, key: str) -> int | None:
    """Draw the tokens; returns the position just clicked, or None. `what` names in tooltips what the values are of."""
    marks, tips = [], []
    for i, text in enumerate(tokens):
        marks.append(data[i].hex(" ").upper() if not text else "".join({"\n": "↵", "\r": "␍", "\t": "⇥"}.get(c, "") for c in text))
        value = "ignored: special token or attention sink" if ignored[i] else f"{what} {values[i]:.2f}" if values[i] > 0 else f"{what}: silent"
        tips.append(f"token {i}: {spans.plain(text) or marks[-1]}\n{value}")
    payload = {
        "tokens": list(tokens),
        "steps": [0 if ignored[i] else spans.step_of(float(values[i]), maximum) for i in range(len(tokens))],
        "ignored": [bool(i) for i in ignored],
        "marks": marks,
        "tips": tips,
        "selected": selected,
    }
    result = _component(key=key, data=payload, on_token_change=lambda: None)
    found = result.token
    return int(found) if isinstance(found, (int, float)) and 0 <= int(found) < len(tokens) else None
