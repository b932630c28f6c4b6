"""Whether two programs found the same strongest tokens of a feature, up to rounding.

Each side gives, for a feature, its n strongest tokens: places (row * context + column of the token matrix) and values, in any order of
equal values. Both lists are cut to the shorter one. They agree where their sorted values agree pairwise, tokens in both have the
same value, and a token in one list only is a tie: its value lies within the tolerance of the last value of the cut lists.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RELATIVE = 1e-3  # the store keeps fp16 (2^-11), and the two programs sum in a different order
ABSOLUTE = 1e-4  # SAEDashboard rounds to four decimals


class TopList(NamedTuple):
    """A feature's strongest tokens, strongest first."""

    places: np.ndarray  # (n,) int64: row * context + column
    values: np.ndarray  # (n,) float64, > 0

    @classmethod
    def of(cls, places: np.ndarray, values: np.ndarray) -> TopList:
        """Sorted, without what does not fire (lists may be padded with zeros)."""
        places, values = np.asarray(places, np.int64), np.asarray(values, np.float64)
        order = np.argsort(-values, kind="stable")
        order = order[values[order] > 0]
        return cls(places[order], values[order])


class Agreement(NamedTuple):
    """Of one comparison over many features."""

    features: int  # compared: those with something on both sides
    tokens: int  # compared
    largest_difference: float  # of the values of a token, relative
    mismatches: dict[int, str]  # feature: what differs

    @property
    def share(self) -> float:
        """Features on which both sides agree."""
        return 1 - len(self.mismatches) / max(self.features, 1)


def compare(ours: dict[int, TopList], theirs: dict[int, TopList]) -> Agreement:
    """Compare the features that both sides have; one that only fires on one side is a mismatch."""
    mismatches, tokens, largest, features = {}, 0, 0.0, 0
    for feature in sorted(ours.keys() & theirs.keys()):
        a, b = ours[feature], theirs[feature]
        n = min(len(a.places), len(b.places))
        if not len(a.places) and not len(b.places):
            continue
        features += 1
        if n == 0:
            mismatches[feature] = f"fires on {len(a.places)} listed tokens here and on {len(b.places)} there"
            continue
        a, b = TopList(a.places[:n], a.values[:n]), TopList(b.places[:n], b.values[:n])
        tokens += n
        values = dict(zip(b.places.tolist(), b.values.tolist(), strict=True))
        both = [(x, values[p]) for p, x in zip(a.places.tolist(), a.values.tolist(), strict=True) if p in values]
        largest = max([largest, *(abs(x - y) / max(x, y) for x, y in both)])
        if problem := _problem(a, b, both):
            mismatches[feature] = problem
    return Agreement(features, tokens, largest, mismatches)


def _close(x, y):
    return np.abs(x - y) <= ABSOLUTE + RELATIVE * np.maximum(np.abs(x), np.abs(y))


def _problem(a: TopList, b: TopList, both: list[tuple[float, float]]) -> str | None:
    """What differs between two lists of the same length, or None."""
    if not _close(a.values, b.values).all():
        i = int(np.argmin(_close(a.values, b.values)))
        return f"value of rank {i + 1} is {a.values[i]:.5g} here and {b.values[i]:.5g} there"
    for x, y in both:
        if not _close(x, y):
            return f"a token has the value {x:.5g} here and {y:.5g} there"
    edge = min(a.values[-1], b.values[-1])
    for one, other, where in ((a, b, "here"), (b, a, "there")):
        alone = ~np.isin(one.places, other.places)
        if not _close(one.values[alone], edge).all():
            i = int(np.flatnonzero(alone & ~_close(one.values, edge))[0])
            return f"token {int(one.places[i])} with value {one.values[i]:.5g} is listed {where} only"
    return None


def one_a_window(found: TopList, tokens: np.ndarray, *, before: int = 8, after: int = 3) -> TopList:
    """The list as examples are shown here: a window speaks through its strongest token, and examples whose surroundings (within the
    window, BOS left out) are the same count once. `tokens`: (windows, context) ids with the BOS in column 0."""
    context = tokens.shape[1]
    kept, windows, surroundings = [], set(), set()
    for i, place in enumerate(found.places.tolist()):
        window, column = divmod(place, context)
        if window in windows:
            continue
        windows.add(window)
        start = max(1, column - before)
        key = (column - start, tokens[window, start : column + after + 1].tobytes())
        if key not in surroundings:
            surroundings.add(key)
            kept.append(i)
    return TopList(found.places[kept], found.values[kept])
