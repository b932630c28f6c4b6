"""Numbers about every feature from the activation store: moments, histograms, categories, examples, co-activation.

Everything is exact over all counted tokens unless a name says otherwise; memory is bounded by d_sae, not by the corpus.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sae_explore.activations.activation_store import ActivationStore, FeatureTotals

HISTOGRAM_BINS = 40
EXAMPLE_INTERVALS = 5
TOP_EXAMPLES = 20
PER_INTERVAL = 4
RANDOM_EXAMPLES = 8
NONE = np.uint32(0xFFFFFFFF)  # "no example here" in the tables of example tokens
COACTIVE = 10
COACTIVE_TOKENS = 20_000  # firings of a feature that are looked at for co-activation, drawn at random above that
_CHUNK = 4_000_000


class Moments(NamedTuple):
    """Of the positive activations of each feature, (d_sae,); NaN for a dead one."""

    mean: np.ndarray
    std: np.ndarray
    skew: np.ndarray
    kurtosis: np.ndarray  # excess


def moments(totals: FeatureTotals) -> Moments:
    """Central moments from power sums."""
    with np.errstate(invalid="ignore", divide="ignore"):
        n = totals.count.astype(np.float64)
        m1, m2, m3, m4 = (s / n for s in (totals.sum, totals.sum_squares, totals.sum_cubes, totals.sum_fourths))
        variance = np.maximum(m2 - m1**2, 0)
        third = m3 - 3 * m1 * m2 + 2 * m1**3
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        flat = variance <= 1e-9 * m1**2  # a single value has no shape
        skew = np.where(flat, 0.0, third / variance**1.5)
        kurtosis = np.where(flat, 0.0, fourth / variance**2 - 3)
    return Moments(m1, np.sqrt(variance), np.where(n > 0, skew, np.nan), np.where(n > 0, kurtosis, np.nan))


def histograms(store: ActivationStore, maximum: np.ndarray) -> np.ndarray:
    """(d_sae, HISTOGRAM_BINS) counts of positive activations in equal bins over (0, the feature's maximum]."""
    counts = np.zeros(store.d_sae * HISTOGRAM_BINS, np.int64)
    scale = HISTOGRAM_BINS / np.maximum(maximum.astype(np.float64), 1e-12)
    for a in range(0, len(store.token_features), _CHUNK):
        features = store.token_features[a : a + _CHUNK].astype(np.int64)
        bins = np.ceil(store.token_values[a : a + _CHUNK].astype(np.float64) * scale[features]).astype(np.int64) - 1
        counts += np.bincount(features * HISTOGRAM_BINS + np.clip(bins, 0, HISTOGRAM_BINS - 1), minlength=len(counts))
    return counts.reshape(store.d_sae, HISTOGRAM_BINS)


def group_counts(store: ActivationStore, group_of_token: np.ndarray, n_groups: int) -> np.ndarray:
    """(d_sae, n_groups): on how many tokens of each group (category) a feature fires."""
    counts = np.zeros(store.d_sae * n_groups, np.int64)
    for a in range(0, len(store.token_features), _CHUNK):
        features = store.token_features[a : a + _CHUNK].astype(np.int64)
        tokens = np.searchsorted(store.token_offsets, np.arange(a, a + len(features)), side="right") - 1
        counts += np.bincount(features * n_groups + group_of_token[tokens], minlength=len(counts))
    return counts.reshape(store.d_sae, n_groups)


class ExampleTables(NamedTuple):
    """Tokens at which each feature's examples peak; NONE where there are fewer."""

    top: np.ndarray  # (d_sae, TOP_EXAMPLES) uint32, strongest first
    interval: np.ndarray  # (d_sae, EXAMPLE_INTERVALS, PER_INTERVAL) uint32; interval 0 is the weakest
    random: np.ndarray  # (d_sae, RANDOM_EXAMPLES) uint32


def choose_examples(store: ActivationStore, ids: np.ndarray, unit_of_token: np.ndarray, *, seed: int = 0) -> ExampleTables:
    """Pick examples by the peaks of units (document windows): each unit speaks for a feature through its strongest token only.

    Examples whose surrounding tokens (within the unit) are the same count once. Interval examples are drawn at random among the units whose
    own peak lies in that equal-width interval of (0, max]; random ones among all units in which the feature fires.
    Of a feature past the store's cap, only the kept firings are looked at.
    """
    d = store.d_sae
    around = _Surroundings(ids, np.flatnonzero(np.r_[True, unit_of_token[1:] != unit_of_token[:-1], True]))
    top = np.full((d, TOP_EXAMPLES), NONE, np.uint32)
    interval = np.full((d, EXAMPLE_INTERVALS, PER_INTERVAL), NONE, np.uint32)
    random = np.full((d, RANDOM_EXAMPLES), NONE, np.uint32)
    for feature in range(d):
        tokens, values = store.firings(feature)
        if not len(tokens):
            continue
        rng = np.random.default_rng((seed, feature))
        _, first = np.unique(unit_of_token[tokens], return_index=True)
        first.sort()  # ranks of the units' peaks, strongest first
        peaks, strengths = np.asarray(tokens)[first], np.asarray(values)[first]
        found = around.distinct(peaks, TOP_EXAMPLES)
        top[feature, : len(found)] = peaks[found]
        rest = np.setdiff1d(np.arange(len(peaks)), found)
        level = np.ceil(strengths * EXAMPLE_INTERVALS / max(float(values[0]), 1e-12)).astype(int) - 1
        for i in range(EXAMPLE_INTERVALS):
            among = rest[level[rest] == i]
            if len(among) < PER_INTERVAL:  # a small corpus: rather show a top example again than nothing
                among = np.concatenate([among, np.setdiff1d(np.flatnonzero(level == i), among)])[:PER_INTERVAL]
                drawn = among
            else:
                drawn = rng.permutation(among)[: 4 * PER_INTERVAL]
            drawn = drawn[around.distinct(peaks[drawn], PER_INTERVAL)]
            drawn = drawn[np.argsort(-strengths[drawn], kind="stable")]
            interval[feature, i, : len(drawn)] = peaks[drawn]
        drawn = rng.permutation(len(peaks))[: 4 * RANDOM_EXAMPLES]
        drawn = drawn[around.distinct(peaks[drawn], RANDOM_EXAMPLES)]
        random[feature, : len(drawn)] = peaks[drawn]
    return ExampleTables(top, interval, random)


class _Surroundings(NamedTuple):
    """The tokens around a token, up to the edges of its unit: what stands there in another document is no part of the example."""

    ids: np.ndarray
    edges: np.ndarray  # first token of each unit, and the number of tokens

    def distinct(self, peaks: np.ndarray, wanted: int, before: int = 8, after: int = 3) -> np.ndarray:
        """Indices of the first `wanted` peaks whose surroundings differ from those already taken."""
        seen: set[tuple[int, bytes]] = set()
        found = []
        for i, peak in enumerate(map(int, peaks)):
            next_unit = int(np.searchsorted(self.edges, peak, side="right"))
            start, stop = max(int(self.edges[next_unit - 1]), peak - before), min(int(self.edges[next_unit]), peak + after + 1)
            key = (peak - start, self.ids[start:stop].tobytes())
            if key not in seen:
                seen.add(key)
                found.append(i)
                if len(found) == wanted:
                    break
        return np.asarray(found, np.int64)


class Coactivation(NamedTuple):
    """The features that fire with each feature most tellingly, (d_sae, COACTIVE), by phi correlation; -1 where there are none."""

    feature: np.ndarray  # int32
    probability: np.ndarray  # share of this feature's tokens on which the other fires too
    correlation: np.ndarray  # phi coefficient of the two firing patterns
    count: np.ndarray  # tokens on which both fire (scaled up where tokens were drawn)


def coactivation(store: ActivationStore, counts: np.ndarray, counted: int, *, seed: int = 0) -> Coactivation:
    """Over the whole dictionary: for each feature, count all features on the tokens where it fires.

    `counted`: the tokens on which features can fire at all, ignored ones left out.
    """
    d = store.d_sae
    out = Coactivation(
        np.full((d, COACTIVE), -1, np.int32),
        np.zeros((d, COACTIVE), np.float32),
        np.zeros((d, COACTIVE), np.float32),
        np.zeros((d, COACTIVE), np.int64),
    )
    p = counts / max(counted, 1)
    spread = np.sqrt(np.maximum(p * (1 - p), 1e-15))
    for feature in range(d):
        tokens = np.asarray(store.firings(feature)[0])
        if not len(tokens):
            continue
        if len(tokens) > COACTIVE_TOKENS:
            tokens = np.random.default_rng((seed, feature)).choice(tokens, COACTIVE_TOKENS, replace=False)
        both = np.bincount(_entries_of(store, np.sort(tokens)), minlength=d)
        conditional = both / len(tokens)
        phi = p[feature] * (conditional - p) / (spread[feature] * spread)
        phi[feature] = -np.inf
        phi[both == 0] = -np.inf
        best = np.argpartition(-phi, COACTIVE)[:COACTIVE] if d > COACTIVE else np.arange(d)
        best = best[np.argsort(-phi[best], kind="stable")]
        best = best[np.isfinite(phi[best]) & (phi[best] > 0)]
        n = len(best)
        out.feature[feature, :n], out.probability[feature, :n] = best, conditional[best]
        out.correlation[feature, :n] = phi[best]
        out.count[feature, :n] = np.rint(conditional[best] * counts[feature])
    return out


def _entries_of(store: ActivationStore, tokens: np.ndarray) -> np.ndarray:
    """All features on the given tokens, one after the other."""
    starts, stops = store.token_offsets[tokens], store.token_offsets[tokens + 1]
    lengths = stops - starts
    total = int(lengths.sum())
    at = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths) + np.arange(total)
    return np.asarray(store.token_features[at]).astype(np.int64)
