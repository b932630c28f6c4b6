"""What the page of one text shows, as plain arrays: which features fire on it, where, and how strongly for what they can reach.

A value alone says little, because features differ in scale. A `share` is a value divided by the feature's own maximum over the
corpus; on an own text it can pass 1. A feature that never fired on the corpus has no maximum, and its shares are NaN.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sae_explore import public_mode
from sae_explore.bundles.bundle import Bundle
from sae_explore.errors import InputError
from sae_explore.models.tokens import check_text
from sae_explore.types import TextTrace
from sae_explore.wording import CHECKED, OWN

RANKINGS = ("share", "max", "sum")
MAX_TEXT_CHARS = 40_000  # refused before anything reads it; the limit in tokens is the tracer's


class Scale(NamedTuple):
    """What the corpus says about each feature, (d_sae,) arrays."""

    maxima: np.ndarray  # strongest activation, 0 if it never fired
    dense: np.ndarray  # bool: fires on so many tokens that it tells little about any of them
    sure: np.ndarray | None = None  # how sure its label is; 2 for one that a person gave


def scale_of(bundle: Bundle) -> Scale:
    """Maxima, which features are dense by the bundle's own limit, and how sure their labels are."""
    density = bundle.features["density"].to_numpy()
    sure = bundle.features["confidence"].to_numpy().astype(np.float32)
    sure[[*bundle.human_labels, *bundle.own_labels]] = 2
    return Scale(np.asarray(bundle.maxima, np.float32), density > bundle.manifest["features"]["dense_above"], sure)


def check_own_text(text: str) -> str:
    """The text itself; InputError in one sentence for one that need not be tokenised to be refused."""
    limit = public_mode.max_text_chars(MAX_TEXT_CHARS)
    if len(text) > limit:
        raise InputError(f"the text has {len(text):,} characters, the limit here is {limit:,}; paste a shorter piece")
    if not text.strip():
        raise InputError("the text is empty; type or paste something to read")
    check_text(text)
    return text


def shares(values: np.ndarray, maxima: np.ndarray) -> np.ndarray:
    """values / maxima as float64, NaN where the maximum is 0."""
    out = np.full(len(values), np.nan)
    return np.divide(values, maxima, out=out, where=maxima > 0, dtype=np.float64)


@dataclass(frozen=True)
class Ranked:
    """Features that fire on a text, best first; arrays of one length, a row a feature."""

    feature: np.ndarray  # int64
    max: np.ndarray  # its strongest activation on the text
    share: np.ndarray  # the same as a share of its maximum over the corpus
    sum: np.ndarray  # over the tokens of the text
    count: np.ndarray  # tokens on which it fires
    position: np.ndarray  # of the strongest one (the first of equals)
    hidden: int  # dense features that fire too and were left out

    def __len__(self) -> int:
        return len(self.feature)


def ranked(trace: TextTrace, scale: Scale, *, by: str = "share", dense: bool = False) -> Ranked:
    """All features that fire, ranked by `share`, `max` or `sum`.

    Ties: the larger max, then the lower number. Of shares many are equal, as features reach their maximum on some stored text: before
    these the surer label.
    """
    if by not in RANKINGS:
        raise InputError(f"cannot rank by {by!r}; allowed are {', '.join(RANKINGS)}")
    hits = trace.hits()
    feature = np.fromiter((h.feature for h in hits), np.int64, len(hits))
    columns = {
        "max": np.fromiter((h.max for h in hits), np.float64, len(hits)),
        "sum": np.fromiter((h.sum for h in hits), np.float64, len(hits)),
        "count": np.fromiter((h.count for h in hits), np.int64, len(hits)),
        "position": np.fromiter((h.position for h in hits), np.int64, len(hits)),
    }
    columns["share"] = shares(columns["max"], scale.maxima[feature])
    shown = np.ones(len(hits), bool) if dense else ~scale.dense[feature]
    sure = scale.sure[feature] if by == "share" and scale.sure is not None else np.zeros(len(hits))
    order = np.lexsort((feature, -columns["max"], -sure, -_low_if_nan(columns[by])))
    order = order[shown[order]]
    return Ranked(feature[order], hidden=int((~shown).sum()), **{name: column[order] for name, column in columns.items()})


@dataclass(frozen=True)
class Strongest:
    """For each token the feature that fires most strongly for what it can reach; feature -1 and share 0 where there is none."""

    feature: np.ndarray  # (n,) int64
    value: np.ndarray  # (n,)
    share: np.ndarray  # (n,)


def strongest(trace: TextTrace, scale: Scale, *, dense: bool = False) -> Strongest:
    """The feature of the largest share at each token (ties: the larger value, then the lower number)."""
    n = len(trace.rows)
    feature, value, share = np.full(n, -1, np.int64), np.zeros(n), np.zeros(n)
    ids = trace.rows.features.astype(np.int64)
    position = np.repeat(np.arange(n), np.diff(trace.rows.offsets))
    part = shares(trace.rows.values, scale.maxima[ids])
    keep = np.flatnonzero(~np.isnan(part) & (dense | ~scale.dense[ids]))
    order = keep[np.lexsort((ids[keep], -trace.rows.values[keep], -part[keep], position[keep]))]
    at, first = np.unique(position[order], return_index=True)
    best = order[first]
    feature[at], value[at], share[at] = ids[best], trace.rows.values[best], part[best]
    return Strongest(feature, value, share)


class TokenFeatures(NamedTuple):
    """Features of one token, best first; arrays of one length."""

    feature: np.ndarray
    value: np.ndarray
    share: np.ndarray
    hidden: int  # dense ones left out


def token_features(trace: TextTrace, position: int, scale: Scale, *, by: str = "share", dense: bool = False) -> TokenFeatures:
    """What fires on one token, by share or, for `max` and `sum`, by value."""
    ids, values = trace.rows.row(position)
    ids, values = ids.astype(np.int64), values.astype(np.float64)
    part = shares(values, scale.maxima[ids])
    shown = np.ones(len(ids), bool) if dense else ~scale.dense[ids]
    order = np.lexsort((ids, -values, -_low_if_nan(part if by == "share" else values)))
    order = order[shown[order]]
    return TokenFeatures(ids[order], values[order], part[order], int((~shown).sum()))


def _low_if_nan(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), -1.0, values)


def labels_of(bundle: Bundle, features: np.ndarray) -> list[str]:
    """Labels of features in their order: a person's with its mark, else the automatic one."""
    features, human, own = np.asarray(features, np.int64), bundle.human_labels, bundle.own_labels
    automatic = bundle.features["label"].take(features).to_pylist()
    return [
        f"{own[f]} {OWN}" if f in own else f"{human[f]} {CHECKED}" if f in human else label
        for f, label in zip(features.tolist(), automatic, strict=True)
    ]


def ranked_csv(trace: TextTrace, bundle: Bundle, *, by: str = "share") -> str:
    """Every feature that fires, dense ones too, as CSV for a spreadsheet."""
    scale = scale_of(bundle)
    rows = ranked(trace, scale, by=by, dense=True)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")  # as RFC 4180 has it; a token that is a lone \r is quoted only so
    writer.writerow(["feature", "label", "human_label", "share_of_max", "max", "sum", "tokens", "peak_position", "peak_token", "dense"])
    for i, label in enumerate(bundle.features["label"].take(rows.feature).to_pylist()):
        feature, position = int(rows.feature[i]), int(rows.position[i])
        writer.writerow(
            [
                feature,
                label,
                bundle.human_labels.get(feature, ""),
                f"{rows.share[i]:.4f}",
                f"{rows.max[i]:.4f}",
                f"{rows.sum[i]:.4f}",
                int(rows.count[i]),
                position,
                trace.tokens.texts[position],
                bool(scale.dense[feature]),
            ]
        )
    return out.getvalue()
