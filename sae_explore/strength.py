"""Activation strength in words. Units differ between SAEs, so bands are shares of a feature's own maximum on the corpus."""

from __future__ import annotations

BANDS = (("absent", 0.0), ("trace", 0.05), ("weak", 0.25), ("moderate", 0.5), ("strong", float("inf")))
"""(name, upper end as a share of the feature's maximum)."""


def band_of(share: float) -> str:
    """absent (0), trace (< 5 %), weak (< 25 %), moderate (< 50 %) or strong."""
    if share <= 0:
        return "absent"
    return next(name for name, end in BANDS[1:] if share < end)
