"""The table of all features, and what of it a visitor's filters leave: vectorised, no Streamlit.

The frame is made once per bundle and shared; filtering gives masks and never changes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing.spans import dotted
from sae_explore.features.diverse import clarity
from sae_explore.features.scores import SCORES, known_scores
from sae_explore.wording import CHECKED

COLUMNS = ("feature", "label", "confidence", "density", "max", "peak", "lens", "kind")
"""What can be shown beside `score_NAME`; the frame also holds `count`, `search` and `clarity` (see `diverse`; 1 more for checked labels)."""
ANY = (0.0, math.inf)


@dataclass(frozen=True)
class Filter:
    """What to show. `query` is a plain piece of text, or a feature's number."""

    query: str = ""
    hide_dead: bool = True
    hide_live: bool = False
    dense_above: float | None = 0.1  # hide features that fire on more than this share of tokens; None: show them
    kinds: frozenset[str] = frozenset()  # none: all
    density: tuple[float, float] = ANY  # of live features; both ends of all ranges are included
    ranges: tuple[tuple[str, float, float], ...] = ()  # (column of the frame, from, to): `max`, `confidence`, `score_NAME`


def feature_frame(bundle: Bundle) -> pd.DataFrame:
    """One row a feature, in order of numbers: so row i is feature i. Density in shares, white space of tokens made visible.

    `score_NAME` for each score; NaN where the bundle was built before it existed.
    """
    scores = [f"score_{name}" for name in known_scores(bundle)]
    table = bundle.features.select(
        ["feature", "label", "label_kind", "confidence", "density", "max", "peak_token", "lens_tokens", "count", *scores]
    ).to_pandas()
    table = table.rename(columns={"label_kind": "kind", "peak_token": "peak", "lens_tokens": "lens"})
    table = table.assign(**{f"score_{name}": np.float32(np.nan) for name in SCORES if f"score_{name}" not in table})
    table["search"] = (table["label"] + "\0" + table["peak"] + "\0" + table["lens"]).str.casefold()
    table["peak"] = table["peak"].map(dotted)
    table["clarity"] = clarity(bundle.features, bundle.manifest["features"]["dense_above"])
    table.loc[list(bundle.human_labels), "clarity"] += 1  # what a person checked comes before what counting found
    return with_labels(table, bundle.human_labels, CHECKED)


def with_labels(frame: pd.DataFrame, labels: Mapping[int, str], mark: str) -> pd.DataFrame:
    """The frame with a person's labels, marked as such and found by searching too. The frame that is given stays as it is."""
    found, rows = frame.copy(deep=False), list(labels)
    for column, texts in (
        ("label", [f"{labels[f]} {mark}" for f in rows]),
        ("search", [f"{labels[f].casefold()}\0{frame['search'].iat[f]}" for f in rows]),
    ):
        changed = frame[column].copy()
        changed.iloc[rows] = texts
        found[column] = changed
    return found


def kept(frame: pd.DataFrame, wanted: Filter) -> np.ndarray:
    """(rows,) bool: the features that the filter leaves."""
    density, dead = frame["density"].to_numpy(), frame["count"].to_numpy() == 0
    low, high = wanted.density
    mask = dead | ((density >= np.float32(low)) & (density <= np.float32(high)))
    if wanted.hide_dead:
        mask &= ~dead
    if wanted.hide_live:
        mask &= dead
    if wanted.dense_above is not None:
        mask &= density <= np.float32(wanted.dense_above)
    if wanted.kinds:
        mask &= frame["kind"].isin(wanted.kinds).to_numpy()
    for column, least, most in wanted.ranges:
        values = frame[column].to_numpy()
        mask &= (values >= np.float32(least)) & (values <= np.float32(most))
    if wanted.query:
        found = frame["search"].str.contains(wanted.query.casefold(), regex=False).to_numpy(dtype=bool)
        if (number := _number(wanted.query)) is not None:
            found = found | (frame["feature"].to_numpy() == number)
        mask &= found
    return mask


def ordered(frame: pd.DataFrame, mask: np.ndarray, *, query: str = "") -> np.ndarray:
    """Features of the mask by falling clarity (ties: lower number), those without one last; one asked for by number first."""
    rows = np.flatnonzero(mask)
    rows = rows[np.argsort(-np.nan_to_num(frame["clarity"].to_numpy()[rows], nan=-1), kind="stable")]
    number = _number(query)
    return rows if number is None else np.concatenate([rows[rows == number], rows[rows != number]])


def start_feature(frame: pd.DataFrame) -> int:
    """A feature worth opening first: the clearest one; where none has enough firings the most frequent."""
    scores = frame["clarity"].to_numpy()
    return int(np.nanargmax(scores)) if np.isfinite(scores).any() else int(frame["count"].to_numpy().argmax())


def _number(query: str) -> int | None:
    """A query that is a feature's number."""
    text = query.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None
