"""Tokens -> HTML. The only place that makes HTML; every string from outside goes through `html.escape` here.

A token's colour says how strongly the feature fires on it, on a scale that ends at the feature's maximum over the corpus:
strength = .05 + .95 log10(1 + 9 a / max), in eleven steps, so that weak tokens stay visible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from sae_explore.types import Example

STEPS = 10

STYLE = """
.sx { line-height: 1.75; font-size: 0.95rem; overflow-wrap: anywhere; }
.sx .t { border-radius: 3px; padding: 1px 0; white-space: pre-wrap; }
.sx .t:hover { outline: 1px solid rgba(128,128,128,.6); }
.sx .ig { color: rgba(128,128,128,.75); font-style: italic; }
.sx .nl { color: rgba(128,128,128,.65); font-size: .8em; }
.sx .by { font-family: monospace; font-size: .8em; color: rgba(128,128,128,.95); }
.sx .pk { box-shadow: inset 0 -2px 0 rgb(194,80,10); font-weight: 600; }
.sx .cut { color: rgba(128,128,128,.7); }
.sx.ex { display: grid; grid-template-columns: 3.6rem minmax(0,1fr); column-gap: .8rem; row-gap: .1rem; margin: 0; }
.sx.ex .v { text-align: right; font-variant-numeric: tabular-nums; color: rgba(128,128,128,.95); padding: .32rem 0; font-size: .85rem; }
.sx.ex .x { padding: .32rem 0; border-bottom: 1px solid rgba(128,128,128,.16); min-width: 0; }
.sx.ex .c { color: rgba(128,128,128,.95); font-size: .78rem; margin-left: .5rem; white-space: nowrap; }
.sx .chip { display: inline-block; border: 1px solid rgba(128,128,128,.35); border-radius: 4px; padding: 0 .35rem; margin: 0 .3rem .3rem 0;
            font-family: monospace; font-size: .82rem; line-height: 1.6; white-space: pre; }
""" + "\n".join(f".sx .a{i} {{ background: rgba(245,124,32,{0.06 + 0.072 * i:.3f}); }}" for i in range(1, STEPS + 1))


def strength(value: float, maximum: float) -> float:
    """Position of an activation on the colour scale, 0 (silent) to 1 (the feature's maximum, or above it)."""
    if value <= 0 or maximum <= 0 or not math.isfinite(value):
        return 0.0
    return min(1.0, 0.05 + 0.95 * math.log10(1 + 9 * min(value / maximum, 1.0)))


def step_of(value: float, maximum: float) -> int:
    """The same in whole steps: 0 only for a silent token."""
    level = strength(value, maximum)
    return max(1, math.ceil(level * STEPS)) if level > 0 else 0


def visible(text: str, data: bytes = b"") -> str:
    """A token as escaped HTML in which line breaks, tabs, lone spaces and bytes that are no whole character can be seen."""
    if not text:
        return f'<span class="by">{escape(_hex(data))}</span>' if data else ""
    if text.strip(" ") == "":
        return "·" * len(text)
    shown = escape(text).replace("\t", '<span class="nl">⇥</span>\t')
    return shown.replace("\r", '<span class="nl">␍</span>').replace("\n", '<span class="nl">↵</span>\n')


def plain(text: str) -> str:
    """A token for lists and tables, as plain text: a leading space drawn as a dot, line breaks as marks."""
    if text.strip(" ") == "":
        return "·" * len(text)
    return text.replace("\n", "↵").replace("\r", "␍").replace("\t", "⇥")


def _hex(data: bytes) -> str:
    return " ".join(f"{byte:02X}" for byte in data)


def token_spans(
    tokens: Sequence[str],
    values: np.ndarray,
    ignored: np.ndarray,
    maximum: float,
    *,
    peak: int | None = None,
    start: int = 0,
    data: Sequence[bytes] | None = None,
    feature: int | None = None,
) -> str:
    """One run of tokens. `peak` is an index into `tokens`; `start` the position of the first one, for the tooltips."""
    parts = []
    for i, text in enumerate(tokens):
        value = float(values[i])
        classes = ["t"]
        if ignored[i]:
            classes.append("ig")
        elif value > 0:
            classes.append(f"a{step_of(value, maximum)}")
        if i == peak:
            classes.append("pk")
        tip = f"token {start + i}: {plain(text) or _hex(data[i]) if data else plain(text)}"
        if ignored[i]:
            tip += " (ignored: special token or attention sink)"
        elif feature is not None:
            tip += f", feature {feature} at {value:.2f}" if value > 0 else f", feature {feature} silent"
        parts.append(f'<span class="{" ".join(classes)}" title="{escape(tip)}">{visible(text, data[i] if data else b"")}</span>')
    return "".join(parts)


def run_html(tokens: Sequence[str], values: np.ndarray, ignored: np.ndarray, maximum: float, **options) -> str:
    """A whole text as one block."""
    return f'<div class="sx">{token_spans(tokens, values, ignored, maximum, **options)}</div>'


def examples_html(examples: Iterable[Example], maximum: float, *, feature: int, categories: bool = True) -> str:
    """A list of examples as one block: peak value, tokens in context, category."""
    rows = []
    for e in examples:
        spans = token_spans(e.tokens, e.values, e.ignored, maximum, peak=e.peak - e.start, start=e.start, feature=feature)
        left = '<span class="cut">… </span>' if e.cut_left else ""
        right = '<span class="cut"> …</span>' if e.cut_right else ""
        where = f'<span class="c" title="{escape(f"{e.document_id} · {e.source} · token {e.peak}")}">{escape(e.category)}</span>' if categories else ""
        rows.append(f'<div class="v">{e.max:.2f}</div><div class="x">{left}{spans}{right}{where}</div>')
    return f'<div class="sx ex">{"".join(rows)}</div>'


def chips_html(tokens: Iterable[str]) -> str:
    """Tokens as small boxes, for lens lists in running text."""
    return '<div class="sx">' + "".join(f'<span class="chip">{escape(plain(t).replace(" ", "·", 1) if t.startswith(" ") else plain(t))}</span>' for t in tokens) + "</div>"
