"""Activation patching: give a feature, in one text, the activations that it has in another.

Positions correspond where two texts share tokens in the same order; where they differ in a stretch, its tokens are paired from the
right, so that the last tokens of two names or words of different length meet (Meng et al. 2022, arXiv:2202.05262, patch at the
subject's last token).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

import numpy as np

from sae_explore.errors import InputError
from sae_explore.whatif.edits import Edit
from sae_explore.whatif.interventions import Reading


def align(source: np.ndarray, target: np.ndarray) -> dict[int, int]:
    """Which position of the source's token ids each position of the target's corresponds to; those without one are left out."""
    pairs: dict[int, int] = {}
    matcher = SequenceMatcher(None, source.tolist(), target.tolist(), autojunk=False)
    for _, a0, a1, b0, b1 in matcher.get_opcodes():
        for back in range(1, min(a1 - a0, b1 - b0) + 1):
            pairs[b1 - back] = a1 - back
    return dict(sorted(pairs.items()))


def patched(source: Reading, feature: int, pairs: Mapping[int, int]) -> Edit:
    """Position p of the target gets what the feature has at position pairs[p] of the source, silence included.

    InputError for positions that the source does not have.
    """
    if not all(0 <= p < len(source) for p in pairs.values()):
        raise InputError(f"the text to take activations from has tokens 0 to {len(source) - 1}; another one was asked for")
    column = source.rows.column(feature)
    return Edit(feature, "patch", positions=tuple(pairs), values=tuple(float(column[p]) for p in pairs.values()))


def patched_maximum(source: Reading, feature: int, positions: Sequence[int]) -> Edit:
    """Each of these positions of the target gets the feature's strongest activation on the source."""
    strongest = float(source.rows.column(feature).max())
    return Edit(feature, "patch", positions=tuple(positions), values=(strongest,) * len(positions))
