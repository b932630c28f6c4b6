"""By what the map of the dictionary can be coloured: for each choice a number or a kind a feature. No Streamlit.

How often and how strongly features fire spans powers of ten, so these two are on a log scale; scores and confidence run from 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from sae_explore.bundles.bundle import Bundle
from sae_explore.features.scores import SCORES, known_scores
from sae_explore.wording import KIND_WORDS

MOST_KINDS = 12  # with a colour each; the rest share one
OTHERS = "others"


@dataclass(frozen=True)
class Colours:
    """A number a feature (`values`, NaN: none), or a kind (`kinds`: index into `names`, -1: none)."""

    title: str
    values: np.ndarray | None = None
    log: bool = False  # `values` are log10
    shares: bool = False  # ... of shares of tokens
    kinds: np.ndarray | None = None
    names: tuple[str, ...] = ()


def choices(bundle: Bundle) -> dict[str, tuple[str, str]]:
    """What can be chosen: (title, what it says) by name."""
    found = {}
    if len(bundle.categories) > 1:
        said = "The kind of text in which the feature fires most often a token: large kinds have no advantage."
        found["category"] = ("Kind of text", said)
    found["density"] = ("How often it fires", "Density: the share of tokens on which the feature fires, on a log scale.")
    found["max"] = ("Maximum", "Strongest activation on this bundle's texts, in the SAE's own units, on a log scale.")
    found["kind"] = ("What the label names", "Which property the automatic label is about.")
    found["confidence"] = ("Confidence", "Share of examples, strong and weak ones, for which the automatic label holds.")
    return found | {f"score_{name}": (SCORES[name].title, SCORES[name].explained) for name in known_scores(bundle)}


def colours_by(choice: str, bundle: Bundle, frame: pd.DataFrame) -> Colours:
    """The colours of one of the `choices`; `frame` is the bundle's (see `browse.feature_frame`)."""
    title = choices(bundle)[choice][0]
    if choice == "category":
        return _of_kinds(title, *_most_often(bundle))
    if choice == "kind":
        names = [name for name in KIND_WORDS if name != "dead"]
        kinds = frame["kind"].map({name: i for i, name in enumerate(names)}).fillna(-1).to_numpy().astype(np.int64)
        return _of_kinds(title, kinds, [KIND_WORDS[name] for name in names])
    values = frame[choice].to_numpy().astype(np.float64)
    if choice not in ("density", "max"):
        return Colours(title, values=values)
    return Colours(title, values=np.log10(values, out=np.full(len(values), np.nan), where=values > 0), log=True, shares=choice == "density")


def _most_often(bundle: Bundle) -> tuple[np.ndarray, list[str]]:
    """(index of the category of which the feature fires on the largest share of tokens, -1 for none; the categories' names)."""
    names, share = bundle.categories, bundle.category_share()
    counts = np.asarray(bundle.arrays["categories"], np.float64)
    rates = counts / np.maximum([share.get(name, 0.0) for name in names], 1e-12)
    return np.where(counts.any(axis=1), rates.argmax(axis=1), -1), names


def _of_kinds(title: str, kinds: np.ndarray, names: list[str]) -> Colours:
    """Kinds that occur, the commonest of them with a colour each, in the order of `names`."""
    counts = np.bincount(kinds[kinds >= 0], minlength=len(names))
    there = np.flatnonzero(counts)
    if len(there) > MOST_KINDS:
        there = np.sort(np.argsort(-counts, kind="stable")[: MOST_KINDS - 1])
    at = np.full(len(names) + 1, len(there))  # the last one takes those without a kind
    at[there] = np.arange(len(there))
    found = np.where(kinds >= 0, at[kinds], -1)
    shown = [names[i] for i in there] + ([OTHERS] if (found == len(there)).any() else [])
    return Colours(title, kinds=found, names=tuple(shown))
