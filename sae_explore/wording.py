"""Numbers in plain words, for people: how often, how sure, how strong. Pure functions."""

from __future__ import annotations

import math
import re

from sae_explore.strength import BANDS, band_of

KIND_WORDS = {
    "token": "one token",
    "tokens": "a few tokens",
    "form": "a form of word or sign",
    "after": "what stands before",
    "before": "what comes next",
    "meaning": "words alike in meaning",
    "topic": "what the text is about",
    "lens": "what it writes",
    "category": "kind of text",
    "mixed": "no clear pattern",
    "dead": "never fires",
}
"""What a label of each kind names (see `labels`)."""

_SURE = ((0.8, "clear"), (0.5, "fairly clear"), (0.25, "rough"), (0.0, "unclear"))


CHECKED = "✓"
CHECKED_HELP = f"{CHECKED} marks a label that a person gave after reading the feature's strong and weak examples."
OWN = "✎"
OWN_HELP = f"{OWN} marks a label of your own."


def shown_label(row: dict) -> str:
    """The label of a feature's row with the mark of who gave it."""
    mark = OWN if row["own_label"] else CHECKED if row["human_label"] else ""
    return f"{row['label']} {mark}".rstrip()


def mark_help(row: dict) -> str | None:
    """What the mark means, if there is one."""
    return OWN_HELP if row["own_label"] else CHECKED_HELP if row["human_label"] else None


def label_origin(row: dict) -> str:
    """Where the label of a feature's row comes from, and how sure the automatic one is."""
    sure = f"{confidence_words(row['confidence'])} ({row['confidence']:.2f})"
    if row.get("own_label"):
        return f"your own label; automatic: “{row['automatic_label']}”, {sure}"
    return f"label checked by hand; automatic: “{row['automatic_label']}”, {sure}" if row["human_label"] else f"automatic label, {sure}"


def label_line(row: dict) -> str:
    """The label of a feature's row with its confidence, for one line of text."""
    automatic = f"{row['automatic_label']} (confidence {row['confidence']:.2f})"
    return f"{row['label']} (checked by hand; automatic: {automatic})" if row["human_label"] else automatic


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


_PAGE_WORDS = {
    "say it with --hook": "choose the layer",
    "leave --hook out": "leave the choice of the layer to it",
    "a later layer (--hook)": "a later layer",
    "start it from the beginning with --force": "remove it and begin anew",
    "build it again with --force": "build it again",
    "--force replaces it": "it can be replaced",
    "a smaller --max-tokens": "fewer tokens",
    "--hook": "the layer",
    "--model": "the model",
    "--sae": "the SAE",
    "--texts": "the texts",
    "--max-tokens": "the number of tokens",
    "--max-texts": "the number of texts",
    "--batch-size": "batch",
    "--lr": "the learning rate",
    "--latents": "latents",
    "--epochs": "epochs",
    "--context": "context",
    "--k": "k",
}
"""What the terminal says, in the words of the pages, longer pieces first."""
_OF_TERMINAL = re.compile("|".join(rf"{re.escape(words)}(?![\w-])" for words in _PAGE_WORDS))
_COMMAND = re.compile(r"python -m sae_explore")


def page_words(text: str) -> str:
    """A message of the program in the words of the pages, where it speaks of the terminal's options; a whole command stays one."""
    command = _COMMAND.search(text)
    end = command.start() if command else len(text)
    return _OF_TERMINAL.sub(lambda match: _PAGE_WORDS[match[0]], text[:end]) + text[end:]


def sentence(text: str) -> str:
    """A message as a sentence of a page: its words, a capital in front, a full stop at the end."""
    text = page_words(text)
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


_ARCHITECTURES = {"topk": "TopK", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU", "gated": "gated", "standard": "ReLU"}


def architecture_name(architecture: str) -> str:
    """An SAE's architecture as people write it."""
    return _ARCHITECTURES.get(architecture, architecture)
