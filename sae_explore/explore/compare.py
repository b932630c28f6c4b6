"""Two texts through the same SAE: which tokens they share, which features fire on one and not on the other.

Alignment: of all ways to pair equal tokens in the same order, the one with the most pairs, and of these the one in the fewest unbroken
runs, so that shared phrases stay together. It is a longest common subsequence (Hirschberg 1975) with Gotoh's two states (1982) for the
runs: exact, O(n m) time, one byte a cell, and so limited to MAX_CELLS. Equals are decided the same way whichever text comes first, so
that exchanging the texts mirrors the answer. What stands between pairs belongs to one text only.

Score of a feature: its strongest activation on B less that on A, in units of its own maximum over the corpus; features differ in scale.
`shared_score` is the same on one shared token, the one where the difference is largest: the token is the same, so all of it comes from
what stood before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sae_explore.errors import InputError
from sae_explore.explore.text_view import shares
from sae_explore.models.tokens import MAX_TEXT_TOKENS
from sae_explore.types import TextTrace

MAX_CELLS = MAX_TEXT_TOKENS**2  # tokens of A times tokens of B: 16 MB, some tenths of a second
_NEVER = -(2**30)
_FROM_PAIR, _FROM_ABOVE, _GOES_ON = 1, 2, 4


@dataclass(frozen=True)
class Comparison:
    """What differs between two texts. Features that fire on either, largest |score| first; arrays of one length, a row a feature."""

    pairs: np.ndarray  # (p, 2) int64: positions in A and B of the shared tokens, both increasing
    lone_a: np.ndarray  # (n_a,) bool: tokens that only A has
    lone_b: np.ndarray
    feature: np.ndarray  # int64
    max_a: np.ndarray  # strongest activation on A, 0 where it is silent
    max_b: np.ndarray
    sum_a: np.ndarray  # over the tokens of A
    sum_b: np.ndarray
    peak_a: np.ndarray  # int64: position of the strongest one (the first of equals), -1 where it is silent
    peak_b: np.ndarray
    score: np.ndarray  # see above; NaN for a feature that never fired on the corpus
    pair: np.ndarray  # int64: row of `pairs` where its activations differ most (the first of equals), -1 where it fires on no shared token
    at_a: np.ndarray  # its activations there
    at_b: np.ndarray
    shared_score: np.ndarray

    def __len__(self) -> int:
        return len(self.feature)

    @property
    def only_a(self) -> np.ndarray:
        """(m,) bool: fires on A alone."""
        return self.max_b == 0

    @property
    def only_b(self) -> np.ndarray:
        return self.max_a == 0

    @property
    def ratio(self) -> np.ndarray:
        """(m,) strongest on B over strongest on A; NaN for features that fire on one text only."""
        both = ~(self.only_a | self.only_b)
        return np.divide(self.max_b, self.max_a, out=np.full(len(self), np.nan), where=both)

    def by_shared(self) -> np.ndarray:
        """Rows in the order of |shared_score|, those that fire on no shared token left out."""
        order = _largest_first(self.shared_score, self.at_b - self.at_a, self.feature)
        return order[self.pair[order] >= 0]


def compare_traces(a: TextTrace, b: TextTrace, maxima: np.ndarray) -> Comparison:
    """Compare two texts that one bundle has read; `maxima` (d_sae,) are its features' maxima over the corpus.

    InputError for texts of different bundles, or longer than can be aligned.
    """
    if a.bundle != b.bundle:
        raise InputError(f"the texts were read with the bundles {a.bundle!r} and {b.bundle!r}; features compare within one bundle only")
    pairs = align(a.tokens.ids, b.tokens.ids)
    feature = np.union1d(a.rows.features, b.rows.features).astype(np.int64)
    top = np.asarray(maxima, np.float64)[feature]
    (max_a, sum_a, peak_a), (max_b, sum_b, peak_b) = _records(a, feature), _records(b, feature)
    pair, at_a, at_b = _largest_gap(a, b, pairs, feature)
    columns = {
        "feature": feature, "max_a": max_a, "max_b": max_b, "sum_a": sum_a, "sum_b": sum_b, "peak_a": peak_a, "peak_b": peak_b,
        "score": shares(max_b - max_a, top), "pair": pair, "at_a": at_a, "at_b": at_b, "shared_score": shares(at_b - at_a, top),
    }  # fmt: skip
    order = _largest_first(columns["score"], max_b - max_a, feature)
    return Comparison(
        pairs, _others(pairs[:, 0], len(a.tokens)), _others(pairs[:, 1], len(b.tokens)), **{k: v[order] for k, v in columns.items()}
    )


def align(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(p, 2) int64: pairs of positions of equal ids, both columns increasing. InputError for more than MAX_CELLS."""
    if len(a) * len(b) > MAX_CELLS:
        raise InputError(
            f"texts of {len(a):,} and {len(b):,} tokens are too long to be compared; two of {MAX_TEXT_TOKENS:,} can be, or a short one "
            "with a longer one"
        )
    if a.tolist() > b.tolist():
        return _align(b, a)[:, ::-1]
    return _align(a, b)


def _align(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The best pairing by dynamic programming over A's tokens, all of B's at once.

    `paired[j]`: best value for A up to now and B up to j whose last tokens are a pair; `best[j]`: any. A pair is worth `unit`, a run of
    them costs 1: no number of runs outweighs a pair.
    """
    n, m, unit = len(a), len(b), min(len(a), len(b)) + 1
    way = np.zeros((n, m), np.uint8)
    paired, best = np.full(m + 1, _NEVER, np.int32), np.zeros(m + 1, np.int32)
    for i in range(n):
        same, goes_on, begins = b == a[i], paired[:-1] + unit, best[:-1] + (unit - 1)
        before, paired = best, np.full(m + 1, _NEVER, np.int32)
        paired[1:][same] = np.maximum(goes_on, begins)[same]
        best = np.maximum.accumulate(np.maximum(paired, before))
        way[i] = (best == paired)[1:] * _FROM_PAIR + (best == before)[1:] * _FROM_ABOVE + (goes_on >= begins) * _GOES_ON
    return _read_back(way)


def _read_back(way: np.ndarray) -> np.ndarray:
    """The pairs that `_align` found, from the last cell to the first."""
    i, j = way.shape[0] - 1, way.shape[1] - 1
    found, inside = [], False
    while i >= 0 and j >= 0:
        cell = int(way[i, j])
        if inside or cell & _FROM_PAIR:
            found.append((i, j))
            inside = bool(cell & _GOES_ON)
            i, j = i - 1, j - 1
        elif cell & _FROM_ABOVE:
            i -= 1
        else:
            j -= 1
    return np.array(found[::-1], np.int64).reshape(-1, 2)


def _others(taken: np.ndarray, n: int) -> np.ndarray:
    lone = np.ones(n, bool)
    lone[taken] = False
    return lone


def _records(trace: TextTrace, feature: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(max, sum, position of the max) of each feature; 0, 0 and -1 for those that are silent."""
    hits, m = trace.hits(), len(feature)
    at = np.searchsorted(feature, np.fromiter((h.feature for h in hits), np.int64, len(hits)))
    maxima, sums, peaks = np.zeros(m), np.zeros(m), np.full(m, -1, np.int64)
    maxima[at] = [h.max for h in hits]
    sums[at] = [h.sum for h in hits]
    peaks[at] = [h.position for h in hits]
    return maxima, sums, peaks


def _largest_gap(a: TextTrace, b: TextTrace, pairs: np.ndarray, feature: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row of `pairs` with the largest |difference|, the activations on A and on B there) of each feature."""
    m, p = len(feature), max(len(pairs), 1)
    keys, values = zip(*(_on_pairs(t, pairs[:, side], feature, p) for side, t in enumerate((a, b))), strict=True)
    cells = np.union1d(*keys)  # (feature, pair) of whatever fires on a shared token
    at = np.zeros((2, len(cells)))
    for side in (0, 1):
        at[side, np.searchsorted(cells, keys[side])] = values[side]
    row, pair = np.divmod(cells, p)
    order = np.lexsort((pair, -np.abs(at[1] - at[0]), row))
    rows, first = np.unique(row[order], return_index=True)
    chosen = order[first]
    out_pair, out = np.full(m, -1, np.int64), np.zeros((2, m))
    out_pair[rows], out[:, rows] = pair[chosen], at[:, chosen]
    return out_pair, out[0], out[1]


def _on_pairs(trace: TextTrace, positions: np.ndarray, feature: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray]:
    """(row of the feature * p + row of the pair, activation) for every activation on a shared token."""
    pair_of = np.full(len(trace.rows), -1, np.int64)
    pair_of[positions] = np.arange(len(positions))
    pair = np.repeat(pair_of, np.diff(trace.rows.offsets))
    kept = pair >= 0
    return np.searchsorted(feature, trace.rows.features[kept].astype(np.int64)) * p + pair[kept], trace.rows.values[kept].astype(np.float64)


def _largest_first(score: np.ndarray, difference: np.ndarray, feature: np.ndarray) -> np.ndarray:
    """Rows by |score|, NaN last, then by |difference|, then by number."""
    return np.lexsort((feature, -np.abs(difference), np.where(np.isnan(score), np.inf, -np.abs(score))))
