"""Tokens -> HTML. `figures_html` draws charts as HTML, `standalone_html` whole files, nothing else does; every string from outside goes
through `html.escape` there and here.

A token's colour says how strongly the feature fires on it, on a scale that ends at the feature's maximum over the corpus:
strength = .05 + .95 log10(1 + 9 a / max), in eleven steps, so that weak tokens stay visible.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from unicodedata import bidirectional

import numpy as np

from sae_explore.strength import BANDS
from sae_explore.types import Example

STEPS = 10
_LONGEST_CHIP = 30  # characters of a token in a box


def colours(scope: str = "") -> str:
    """CSS of the classes a1 to a10: they lie over the page's own background, and letters stay readable on the strongest in either theme."""
    return "\n".join(f"{scope}.a{i} {{ background: rgba(245,124,32,{0.05 + 0.06 * i:.2f}); }}" for i in range(1, STEPS + 1))


STYLE = """
.sx { line-height: 1.75; font-size: 0.95rem; overflow-wrap: anywhere; unicode-bidi: plaintext; }
.sx .t { border-radius: 3px; padding: 1px 0; white-space: pre-wrap; }
.sx .t:hover { outline: 1px solid rgba(128,128,128,.6); }
.sx .ig { color: rgba(128,128,128,.75); font-style: italic; }
.sx .nl { color: rgba(128,128,128,.65); font-size: .8em; }
.sx .by { font-family: monospace; font-size: .8em; color: rgba(128,128,128,.95); unicode-bidi: isolate; }
.sx .pk { box-shadow: inset 0 -2px 0 rgb(194,80,10); font-weight: 600; }
.sx .lone { text-decoration: underline 2px rgba(128,128,128,.95); text-underline-offset: 5px; text-decoration-skip-ink: none; }
.sx .cut { color: rgba(128,128,128,.7); }
.sx.prose { white-space: pre-wrap; font-size: 1.02rem; }
.sx .given { color: rgba(128,128,128,1); }
.sx.ex { display: grid; grid-template-columns: 3.6rem minmax(0,1fr); column-gap: .8rem; row-gap: .1rem; margin: 0; }
.sx.ex .v { text-align: right; font-variant-numeric: tabular-nums; color: rgba(128,128,128,.95); padding: .32rem 0; font-size: .85rem; }
.sx.ex .x { padding: .32rem 0; border-bottom: 1px solid rgba(128,128,128,.16); min-width: 0; }
.sx.ex .c { color: rgba(128,128,128,.95); font-size: .78rem; margin-left: .5rem; overflow-wrap: anywhere; }
.sx.ex .go { color: inherit; opacity: .75; font-size: .78rem; margin-left: .5rem; white-space: nowrap; text-decoration: underline;
             text-decoration-color: rgba(128,128,128,.5); text-underline-offset: .18em; }
.sx.ex .go:hover { opacity: 1; text-decoration-color: currentColor; }
.sx .chip { display: inline-block; border: 1px solid rgba(128,128,128,.35); border-radius: 4px; padding: 0 .35rem; margin: 0 .3rem .3rem 0;
            font-family: monospace; font-size: .82rem; line-height: 1.6; white-space: pre-wrap; max-width: 100%; overflow-wrap: anywhere; }
.sx.sc { display: grid; grid-template-columns: max-content minmax(2rem, 4.5rem) 2.2rem minmax(0, 1fr); column-gap: .6rem; row-gap: .2rem;
         align-items: center; font-size: .88rem; line-height: 1.5; }
.sx.sc .bar { height: .5rem; border-radius: 3px; background: rgba(128,128,128,.22); }
.sx.sc .bar i { display: block; height: 100%; border-radius: 3px; background: rgb(217,89,13); }
.sx.sc .n { text-align: right; font-variant-numeric: tabular-nums; }
.sx.sc .w { color: rgba(128,128,128,1); overflow-wrap: anywhere; }
.sx.sc .s { cursor: help; }
.sx.legend { font-size: .82rem; }
.sx .key { display: inline-block; margin-right: .9rem; }
.sx .key .note { color: rgba(128,128,128,.95); margin-left: .35rem; }
.sx .band { border-radius: 3px; padding: .1rem .4rem; }
.sx.facts { display: grid; grid-template-columns: minmax(7rem, auto) minmax(0,1fr); line-height: 1.45; }
.sx.facts > div { padding: .5rem 0; border-bottom: 1px solid rgba(128,128,128,.16); }
.sx.facts .n { padding-right: 1.2rem; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.sx.facts .h { font-weight: 600; }
.sx.facts .d { font-size: .92rem; }
.sx.facts .m { font-size: .82rem; color: rgba(128,128,128,1); }
""" + colours(".sx ")


def strength(value: float, maximum: float) -> float:
    """Position of an activation on the colour scale, 0 (silent) to 1 (the feature's maximum, or above it)."""
    if value <= 0 or maximum <= 0 or not math.isfinite(value):
        return 0.0
    return min(1.0, 0.05 + 0.95 * math.log10(1 + 9 * min(value / maximum, 1.0)))


def step_of(value: float, maximum: float) -> int:
    """The same in whole steps: 0 only for a silent token."""
    return step_at(strength(value, maximum))


def step_at(level: float) -> int:
    """The step of a position on the scale, 0 to 1."""
    return max(1, math.ceil(round(level * STEPS, 6))) if level > 0 else 0


_MARKS = {"\n": "↵", "\r": "␍", "\t": "⇥"}
# Control characters, invisible ones and those that turn the direction of writing: drawn as their numbers, never sent as they are.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ud800-\udfff]")


def pieces(text: str, data: bytes = b"") -> list[tuple[str, str]]:
    """A token as (kind, string) in order: `text` as it stands, `mark` for what is drawn beside a line break or a tab,
    `code` for bytes that are no whole character and for characters that cannot be seen. Spaces alone become dots.
    """
    if not text:
        return [("code", _hex(data))] if data else []
    if text.strip(" ") == "":
        return [("mark", "·" * len(text))]
    found, at = [], 0
    for match in _UNSEEN.finditer(text):
        if match.start() > at:
            found.append(("text", text[at : match.start()]))
        character, at = match[0], match.end()
        if character in _MARKS:
            found.append(("mark", _MARKS[character]))
            if character != "\r":
                found.append(("text", character))
        else:
            found.append(("code", f"U+{ord(character):04X}"))
    if at < len(text):
        found.append(("text", text[at:]))
    return found


_WRAP = {"text": "{}", "mark": '<span class="nl">{}</span>', "code": '<span class="by">{}</span>'}


def on_one_line(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pieces of a token with its line breaks and tabs as marks only."""
    return [(kind, " " if string in ("\n", "\t") else string) for kind, string in found]


def visible(text: str, data: bytes = b"", *, breaks: bool = True) -> str:
    """A token as escaped HTML in which line breaks, tabs, lone spaces, control characters and incomplete bytes can be seen.

    Without `breaks` a line break is a mark, and the text runs on.
    """
    found = pieces(text, data)
    return "".join(_WRAP[kind].format(escape(string)) for kind, string in (found if breaks else on_one_line(found)))


def apart(shown: str) -> tuple[str, str]:
    """(the space that a token begins with, the rest): the space stays outside of its colour, which would hang over where a line ends."""
    return (" ", shown[1:]) if shown.startswith(" ") and shown[1:2].strip() else ("", shown)


def plain(text: str, data: bytes = b"") -> str:
    """A token for lists and tables, as plain text on one line: what cannot be seen is drawn as in `visible`."""
    return "".join(string for _, string in pieces(text, data) if string not in _MARKS)


def dotted(text: str, data: bytes = b"") -> str:
    """The same with a leading space drawn as a dot, where nothing else would show it."""
    shown = plain(text, data)
    return "·" + shown[1:] if shown.startswith(" ") else shown


_JOINER = "\u2060"  # invisible
_MARKDOWN = re.compile(r"([!-/:-@\[-`{-~])")
# What is replaced after the markdown is parsed, where a backslash no longer helps: :names:, addresses, arrows that stand alone.
_NAMES = re.compile(r"(?<=:)(?=[\w+/-]+:|//)|(?<=[-.+\w])(?=@)|(?<=www)(?=\.)", re.IGNORECASE)
_ARROWS = re.compile(r"(?<!\S)([<>~-])([->=]|->)(?!\S)")


def md(text: str) -> str:
    """Text from outside for a place that Streamlit reads as markdown (captions, labels, help): shown as it is.

    What is written from right to left is set apart, so that it turns nothing of the sentence around it.
    """
    text = _ARROWS.sub(rf"\1{_JOINER}\2", _NAMES.sub(_JOINER, plain(text)))
    text = _MARKDOWN.sub(r"\\\1", text)
    return f"\u2068{text}\u2069" if any(bidirectional(c) in ("R", "AL", "AN") for c in text) else text


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
    where: str = "",
    breaks: bool = True,
    lone: np.ndarray | None = None,
) -> str:
    """One run of tokens. `peak` is an index into `tokens`; `start` the position of the first one and `where` the text, for the tooltips.

    `breaks`: whether the text breaks its lines where it has line breaks. `lone` marks tokens that only one of two texts has.
    """
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
        tip = f"token {start + i}: {plain(text, data[i] if data else b'')}"
        if ignored[i]:
            tip += " (ignored: special token or attention sink)"
        elif feature is not None:
            tip += f", feature {feature} at {value:.2f}" if value > 0 else f", feature {feature} silent"
        if lone is not None and lone[i]:
            classes.append("lone")
            tip += " (in this text only)"
        if where:
            tip += f"\n{where}"
        shown = visible(text, data[i] if data else b"", breaks=breaks)
        before, shown = apart(shown)
        parts.append(f'{before}<span class="{" ".join(classes)}" title="{escape(tip)}">{shown}</span>')
    return "".join(parts)


def run_html(tokens: Sequence[str], values: np.ndarray, ignored: np.ndarray, maximum: float, **options) -> str:
    """A whole text as one block."""
    return f'<div class="sx">{token_spans(tokens, values, ignored, maximum, **options)}</div>'


def examples_html(
    examples: Iterable[Example],
    maximum: float,
    *,
    feature: int,
    categories: bool = True,
    breaks: bool = True,
    address: Callable[[Example], str] | None = None,
) -> str:
    """A list of examples as one block: peak value, tokens in context, category.

    `address`: of the page that shows an example's whole text; each example then ends with a link to it (see `views.example_links`).
    """
    rows = []
    for e in examples:
        where = plain(f"{e.document_id} ({e.category})" if e.category else e.document_id)
        spans = token_spans(
            e.tokens, e.values, e.ignored, maximum, peak=e.peak - e.start, start=e.start, data=e.bytes or None, feature=feature,
            where=where, breaks=breaks,
        )  # fmt: skip
        left = '<span class="cut">… </span>' if e.cut_left else ""
        right = '<span class="cut"> …</span>' if e.cut_right else ""
        tip = escape(f"{e.document_id} · {e.source} · token {e.peak}")
        end = f'<span class="c" title="{tip}">{escape(e.category)}</span>' if categories else ""
        if address:
            end += f' <a class="go" href="{escape(address(e))}" title="Open the whole text, coloured by this feature">open in Text</a>'
        rows.append(f'<div class="v">{e.max:.2f}</div><div class="x">{left}{spans}{right}{end}</div>')
    return f'<div class="sx ex">{"".join(rows)}</div>'


def prose_html(given: str, written: str) -> str:
    """A beginning, and what was written after it, as running text."""
    return f'<div class="sx prose"><span class="given">{escape(_seen(given))}</span>{escape(_seen(written))}</div>'


def _seen(text: str) -> str:
    """Line breaks and tabs as they are; other characters that cannot be seen, or that turn the direction of writing, as their numbers."""
    return _UNSEEN.sub(lambda m: m[0] if m[0] in "\n\t" else f"U+{ord(m[0]):04X}", text)


def chips_html(tokens: Iterable[str]) -> str:
    """Tokens as small boxes, for lens lists in running text; rows of dashes and the like lose their middle, which the tooltip has."""
    return '<div class="sx">' + "".join(_chip(dotted(t)) for t in tokens) + "</div>"


def _chip(shown: str) -> str:
    if len(shown) <= _LONGEST_CHIP:
        return f'<span class="chip">{escape(shown)}</span>'
    return f'<span class="chip" title="{escape(shown)}">{escape(shown[: _LONGEST_CHIP - 6])}…{escape(shown[-5:])}</span>'


def facts_html(rows: Iterable[tuple[str, str, str, str]]) -> str:
    """Figures with what they are: (name, value, definition in a sentence, measured on)."""
    parts = [
        f'<div class="n">{escape(value)}</div><div><div class="h">{escape(name)}</div><div class="d">{escape(said)}</div>'
        f'<div class="m">{escape(on)}</div></div>'
        for name, value, said, on in rows
    ]
    return f'<div class="sx facts">{"".join(parts)}</div>'


def scores_html(rows: Iterable[tuple[str, str, float | None, str]]) -> str:
    """Scores between 0 and 1 as bars: (name, its definition for the tooltip, value or None, words about it)."""
    parts = []
    for name, explained, value, words in rows:
        bar = f'<i style="width: {100 * value:.0f}%"></i>' if value is not None else ""
        number = f"{value:.2f}" if value is not None else "–"
        parts.append(
            f'<div class="s" title="{escape(explained)}">{escape(name)}</div><div class="bar">{bar}</div>'
            f'<div class="n">{number}</div><div class="w">{escape(plain(words))}</div>'
        )
    return f'<div class="sx sc">{"".join(parts)}</div>'


def bands_html(*, lone: bool = False) -> str:
    """The colours of one feature's activations, as bands: trace, weak, moderate, strong; with `lone`, what the mark on tokens means."""
    entries, low = [], 0.0
    for name, end in BANDS[1:]:
        middle = (low + end) / 2 if end < 1 else 1.0
        entries.append((name, f"under {end:.0%}" if end < 1 else f"from {low:.0%} of its maximum", step_of(middle, 1.0)))
        low = end
    return legend_html(entries, lone=lone)


def legend_html(entries: Iterable[tuple[str, str, int]], *, lone: bool = False) -> str:
    """Colours and what they mean: (word on the colour, words after it, step); and `lone` as above."""
    parts = [
        f'<span class="key"><span class="band a{step}">{escape(word)}</span><span class="note">{escape(note)}</span></span>'
        for word, note, step in entries
    ]
    if lone:
        parts.append('<span class="key"><span class="lone">underlined</span><span class="note">in this text only</span></span>')
    return f'<div class="sx legend">{"".join(parts)}</div>'
