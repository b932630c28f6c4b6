"""Tokens and examples as lines of a terminal: control characters made harmless, the peak token marked."""

from __future__ import annotations

from sae_explore.strength import band_of
from sae_explore.types import Example

_MARKS = {"\n": "↵", "\r": "␍", "\t": "⇥"}
_JOINERS = "\u200c\u200d"  # parts of words and emoji


def clean(text: str) -> str:
    """A text on one line, without characters that could steer the terminal."""
    return "".join(_MARKS.get(c, c if c.isprintable() or c in _JOINERS else f"\\u{ord(c):04x}") for c in text)


def say(*parts: object, space: bool = False) -> None:
    """Print a line for people (after an empty one, with `space`), harmless whatever texts, tokens or files it quotes."""
    print("\n" * space + clean(" ".join(map(str, parts))))


def shown_token(token: str) -> str:
    """A token in quotation marks, its leading space visible as part of it."""
    return f"“{clean(token)}”"


def example_line(example: Example, *, maximum: float) -> str:
    """`12.34 strong  ...context »peak« context  (category, document)`."""
    at = example.peak - example.start
    before, after = clean("".join(example.tokens[:at])), clean("".join(example.tokens[at + 1 :]))
    left, right = "…" if example.cut_left else "", "…" if example.cut_right else ""
    band = band_of(example.max / max(maximum, 1e-9))
    context = f"{left}{before}»{clean(example.tokens[at])}«{after}{right}"
    return f"{example.max:8.2f} {band:8} {context}  ({example.category}, {example.document_id})"
