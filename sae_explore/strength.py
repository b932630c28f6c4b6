"""Activation strength in words. Units differ between SAEs, so bands are shares of a feature's own maximum on the corpus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BANDS = (("absent", 0.0), ("trace", 0.05), ("weak", 0.25), ("moderate", 0.5), ("strong", float("inf")))
"""(name, upper end as a share of the feature's maximum)."""


def band_of(share: float) -> str:
    """absent (0), trace (< 5 %), weak (< 25 %), moderate (< 50 %) or strong."""
    if share <= 0:
        return "absent"
    return next(name for name, end in BANDS[1:] if share < end)


def band_of_bins(bins: int) -> np.ndarray:
    """(bins,) index of the band (0 trace ... 3 strong) in which each of the equal bins over (0, max] lies, by its upper end."""
    upper = np.arange(1, bins + 1) / bins
    return np.searchsorted([end for _, end in BANDS[1:-1]], upper - 1e-9, side="right")


def band_shares(counts: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Share of a histogram's firings in each band; a firing exactly on a limit counts with the band below it."""
    totals = np.bincount(band_of_bins(len(counts)), weights=np.asarray(counts, float), minlength=len(BANDS) - 1)
    whole = max(float(totals.sum()), 1.0)
    return {name: float(n) / whole for (name, _), n in zip(BANDS[1:], totals, strict=True)}
