"""Numbers in plain words, for people: how often, how sure, how strong. Pure functions."""

from __future__ import annotations

import math

from sae_explore.strength import BANDS, band_of

KIND_WORDS = {
    "token": "one token",
    "tokens": "a few tokens",
    "form": "a form of word or sign",
    "after": "what stands before",
    "before": "what comes next",
    "lens": "what it writes",
    "category": "kind of text",
    "mixed": "no clear pattern",
    "dead": "never fires",
}
"""What a label of each kind names (see `labels`)."""

_SURE = ((0.8, "clear"), (0.5, "fairly clear"), (0.25, "rough"), (0.0, "unclear"))


def confidence_words(confidence: float) -> str:
    """A label's confidence (0 to 1) in words: clear, fairly clear, rough, unclear."""
    return next(words for least, words in _SURE if confidence >= least)


def percent(share: float) -> str:
    """A share as a percentage with about two figures: 45 %, 3.2 %, 0.22 %, 0.0043 % (with a space that does not break)."""
    if share <= 0:
        return "0\u00a0%"
    digits = max(0, 1 - math.floor(math.log10(share * 100)))
    return f"{share * 100:.{0 if share >= 0.0995 else digits}f}\u00a0%"


def density_words(density: float) -> str:
    """How often a feature fires: `1 in 450 tokens`, with a decimal below ten."""
    if density <= 0:
        return "on no token"
    every = 1 / density
    return f"1 in {every:.1f} tokens" if every < 9.95 else f"1 in {every:,.0f} tokens"


def band_range(low: float, high: float) -> str:
    """The activation bands that the shares in (low, high] of a feature's maximum touch: `weak to moderate`."""
    first = next(name for name, end in BANDS if low < end)
    last = band_of(high)
    return first if first == last else f"{first} to {last}"


def count_of(n: int, singular: str, plural: str | None = None) -> str:
    """`1 token`, `2,000 tokens`."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"
