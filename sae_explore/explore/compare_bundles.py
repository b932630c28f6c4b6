"""One text read by two bundles: another SAE, layer, or model. Their common ground are the characters of the text.

Stretches: the text is cut wherever a token of the one and a token of the other end at the same character; each piece then holds whole
tokens of both. A token that is only part of a character counts for that character.

Matches: how alike do two features fire over the text? The cosine of their activations, over tokens where both bundles cut the text into
the same ones, else over characters, each with the strongest activation of the tokens that hold it. Tokens that either bundle ignores are
left out. On a short text many features fire on one token only, and any two that share it have a cosine of 1: `together` says on how many
stretches both fire, and `chance` what is found when one of the readings is shifted along the text, so that only the density of firing is
left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sae_explore.errors import InputError
from sae_explore.explore.text_view import Ranked, Strongest
from sae_explore.types import TextTrace

MOST = 200  # features of each bundle that are matched, best ranked first: one matrix product of seconds for long texts at most


@dataclass(frozen=True)
class Stretches:
    """Pieces of a text that hold whole tokens of both readings; arrays of one length. Feature -1 where nothing fires."""

    start: np.ndarray  # characters
    stop: np.ndarray
    feature_a: np.ndarray  # the feature of the largest share in the piece
    value_a: np.ndarray
    share_a: np.ndarray
    feature_b: np.ndarray
    value_b: np.ndarray
    share_b: np.ndarray
    ignored: np.ndarray  # bool: all tokens of the piece are ignored in either reading

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True)
class Best:
    """For each of one bundle's features the one of the other that fires most alike; arrays of one length."""

    feature: np.ndarray
    other: np.ndarray  # -1 where the other bundle has none
    cosine: np.ndarray
    together: np.ndarray  # stretches on which both fire

    def __len__(self) -> int:
        return len(self.feature)

    def of(self, feature: int) -> int | None:
        """The other bundle's feature that fires most like this one, if anything does."""
        at = np.flatnonzero((self.feature == feature) & (self.cosine > 0))
        return int(self.other[at[0]]) if len(at) else None


@dataclass(frozen=True)
class Matches:
    """How alike two bundles fire on a text."""

    unit: str  # token | character
    a: Best
    b: Best
    alike: float  # mean of the best cosines of both sides; NaN where there is nothing to match
    chance: float  # the same with one reading shifted


def stretches(a: TextTrace, b: TextTrace, strongest_a: Strongest, strongest_b: Strongest) -> Stretches:
    """Cut the text; `strongest_*` are each token's. InputError if the two traces are not of one text."""
    _same_text(a, b)
    stop = _stops(a, b)
    start = np.r_[0, stop[:-1]] if len(stop) else stop
    best = [_best_in(_stretch_of(t, stop), s) for t, s in ((a, strongest_a), (b, strongest_b))]
    idle = [np.bincount(_stretch_of(t, stop), ~t.ignored, len(stop)) == 0 for t in (a, b)]
    return Stretches(start, stop, *best[0], *best[1], idle[0] | idle[1])


def matches(a: TextTrace, b: TextTrace, ranked_a: Ranked, ranked_b: Ranked, *, most: int = MOST) -> Matches:
    """Match the `most` best ranked features of each. InputError if the two traces are not of one text."""
    _same_text(a, b)
    feature_a, feature_b = ranked_a.feature[:most], ranked_b.feature[:most]
    unit = "token" if a.tokens.texts == b.tokens.texts else "character"
    counted = ~(_over(unit, a, a.ignored[:, None]) | _over(unit, b, b.ignored[:, None]))[:, 0]
    x = _over(unit, a, _dense(a, feature_a))[counted]
    y = _over(unit, b, _dense(b, feature_b))[counted]
    cosine, together = _cosines(x, y), _together(a, b, feature_a, feature_b)
    shifts = sorted({len(x) // 3, len(x) - len(x) // 3}) if len(x) > 2 else []
    by_chance = [_mean_best(_cosines(x, np.roll(y, shift, axis=0))) for shift in shifts]
    return Matches(
        unit,
        _best(feature_a, feature_b, cosine, together),
        _best(feature_b, feature_a, cosine.T, together.T),
        _mean_best(cosine),
        float(np.mean(by_chance)) if by_chance else np.nan,
    )


def _same_text(a: TextTrace, b: TextTrace) -> None:
    if a.text != b.text:
        raise InputError(f"two bundles are compared on one text; these are texts of {len(a.text):,} and {len(b.text):,} characters")


def _ends(trace: TextTrace) -> np.ndarray:
    """(n,) character at which each token ends."""
    return np.cumsum([len(t) for t in trace.tokens.texts], dtype=np.int64)


def _stops(a: TextTrace, b: TextTrace) -> np.ndarray:
    """Characters at which tokens of both end."""
    stop = np.intersect1d(_ends(a), _ends(b))
    return stop[stop > 0]


def _stretch_of(trace: TextTrace, stop: np.ndarray) -> np.ndarray:
    """(n,) the stretch that each token lies in."""
    ends = _ends(trace)
    start = np.r_[0, ends[:-1]] if len(ends) else ends
    return np.minimum(np.searchsorted(stop, start, side="right"), len(stop) - 1)


def _best_in(stretch: np.ndarray, strongest: Strongest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(feature, value, share) of the largest share in each stretch (the first of equals); every stretch holds a token."""
    order = np.lexsort((-strongest.share, stretch))
    _, first = np.unique(stretch[order], return_index=True)
    best = order[first]
    return strongest.feature[best], strongest.value[best], strongest.share[best]


def _dense(trace: TextTrace, feature: np.ndarray) -> np.ndarray:
    """(n, f) float32 activations of these features on each token."""
    out = np.zeros((len(trace.rows), len(feature)), np.float32)
    order = np.argsort(feature)
    ids = trace.rows.features.astype(np.int64)
    place = np.searchsorted(feature[order], ids) if len(feature) else np.zeros(len(ids), np.int64)
    kept = np.flatnonzero(place < len(feature))
    kept = kept[feature[order[place[kept]]] == ids[kept]]
    token = np.repeat(np.arange(len(trace.rows)), np.diff(trace.rows.offsets))
    out[token[kept], order[place[kept]]] = trace.rows.values[kept]
    return out


def _over(unit: str, trace: TextTrace, rows: np.ndarray) -> np.ndarray:
    """Rows of tokens (n, f) as they are, or as rows of characters: the largest of the tokens that hold the character."""
    if unit == "token":
        return rows
    widths = np.fromiter((len(t) for t in trace.tokens.texts), np.int64, len(rows))
    out = np.repeat(rows, widths, axis=0)
    parts = np.flatnonzero(widths == 0)  # tokens that hold a part of the character that begins there
    at = np.cumsum(widths)[parts]
    inside = at < len(out)
    np.maximum.at(out, at[inside], rows[parts[inside]])
    return out


def _cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(fx, fy) cosines of the columns; 0 for a column of zeros."""
    x, y = (z / np.maximum(np.linalg.norm(z, axis=0), np.finfo(np.float32).tiny) for z in (x, y))
    return np.clip(x.T @ y, 0.0, 1.0)


def _together(a: TextTrace, b: TextTrace, feature_a: np.ndarray, feature_b: np.ndarray) -> np.ndarray:
    """(fa, fb) number of stretches on which both features fire."""
    stop = _stops(a, b)
    fires = []
    for trace, feature in ((a, feature_a), (b, feature_b)):
        first = np.searchsorted(_stretch_of(trace, stop), np.arange(len(stop)))  # every stretch holds a token
        fires.append(np.logical_or.reduceat(_dense(trace, feature) > 0, first, axis=0).astype(np.float32))
    return np.rint(fires[0].T @ fires[1]).astype(np.int64)


def _best(feature: np.ndarray, others: np.ndarray, cosine: np.ndarray, together: np.ndarray) -> Best:
    n = len(feature)
    if not len(others):
        return Best(feature, np.full(n, -1, np.int64), np.zeros(n), np.zeros(n, np.int64))
    at = cosine.argmax(axis=1)
    rows = np.arange(n)
    return Best(feature, others[at], cosine[rows, at].astype(np.float64), together[rows, at])


def _mean_best(cosine: np.ndarray) -> float:
    return float((cosine.max(axis=1).mean() + cosine.max(axis=0).mean()) / 2) if cosine.size else float("nan")
