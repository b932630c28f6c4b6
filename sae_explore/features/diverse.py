"""Features that differ from one another: a greedy choice by score under a limit on the cosine of decoder rows (numpy only)."""

from __future__ import annotations

import numpy as np

LIMIT = 0.7  # |cosine| of decoder rows from which two features count as the same direction
MIN_FIRINGS = 10  # of a feature that is worth showing


def diverse_features(W_dec: np.ndarray, scores: np.ndarray, n: int, *, limit: float = LIMIT) -> list[int]:
    """Greedy by falling score (NaN never): features whose |cosine| with every one chosen before is below `limit`."""
    chosen: list[int] = []
    directions = np.zeros((0, W_dec.shape[1]), np.float32)
    for feature in np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable"):
        if len(chosen) == n or not np.isfinite(scores[feature]):
            break
        row = W_dec[feature].astype(np.float32)
        row = row / max(float(np.linalg.norm(row)), 1e-12)
        if not len(directions) or float(np.abs(directions @ row).max()) < limit:
            chosen.append(int(feature))
            directions = np.vstack([directions, row])
    return chosen


def clarity(features, dense_above: float) -> np.ndarray:
    """(d_sae,) scores of a bundle's features table: how sure the label is, weighed by rarity, and among equals whose lens stands out most.

    The label of a feature for "the" is sure and says little: what fires on more than one token in a thousand counts less, by the
    logarithm of its density. NaN for features that show nothing: dead, dense, or with fewer than MIN_FIRINGS firings.
    """
    columns = {name: features[name].to_numpy().astype(np.float64) for name in ("confidence", "density", "count", "lens_kurtosis")}
    usable = (columns["density"] <= dense_above) & (columns["count"] >= MIN_FIRINGS)
    rarity = np.minimum(1.0, -np.log10(np.clip(columns["density"], 1e-9, 1.0)) / 3)
    return np.where(usable, columns["confidence"] * rarity + 1e-3 * np.tanh(columns["lens_kurtosis"] / 10), np.nan)


def cosine_matrix(rows: np.ndarray) -> np.ndarray:
    """Cosines between the rows (n, d): (n, n) float64; a zero row has cosine 0 with all."""
    unit = rows.astype(np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    return unit @ unit.T
