"""What can be asked of features inside a running model, and what comes back: plain values, limits and their checks. Imports no torch.

The work is done in `interventions` (changes and their effects), `patching`, `steering` and `attribution`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sae_explore.errors import InputError

MAX_TOKENS = 128  # read at once, a BOS included; less where the SAE's own context is shorter
MAX_EDITS = 8
MAX_NEW_TOKENS = 80
MAX_TEMPERATURE = 2.0
TOP = 10  # tokens kept of each list
CONTROLS = 2  # random directions that each change is compared with
CHECKED = 10  # features of the largest estimates that are really ablated
MODES = ("ablate", "set", "scale", "patch")


@dataclass(frozen=True)
class Edit:
    """What becomes of one feature's activations; everything in the SAE's own units."""

    feature: int
    mode: str  # ablate: 0 | set: `amount` | scale: times `amount` | patch: `values`, one for each of `positions`
    amount: float = 0.0
    positions: tuple[int, ...] | None = None  # tokens of the text that are changed; None: all
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Shift:
    """A few tokens at each position, (n, TOP) each, with their probabilities without and with the change."""

    ids: np.ndarray  # int32
    before: np.ndarray  # float32
    after: np.ndarray


@dataclass(frozen=True)
class Effect:
    """What a change does to the prediction made at each of n tokens, which is about the token after it. In nats."""

    changed: np.ndarray  # (n,) bool: here the residual was changed
    size: np.ndarray  # (n,) length of the change as a share of the residual's length
    kl: np.ndarray  # (n,) KL(before || after)
    control: np.ndarray  # (n,) mean KL of the same change along random directions of the same length
    loss_before: np.ndarray  # (n,) of the token that really follows; NaN at the last one
    loss_after: np.ndarray
    up: Shift  # the largest gains in probability, largest first
    down: Shift  # the largest losses
    likely: Shift  # the likeliest before the change
    likely_after: Shift


@dataclass(frozen=True)
class Push:
    """A feature and how much of its direction is added, in the SAE's own units; negative amounts push away from it."""

    feature: int
    amount: float


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Temperature 0 takes the likeliest one; `top_p` draws from the fewest tokens that hold this share."""

    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """One more token of each continuation: what it adds to the text (often nothing, or several bytes' worth at once)."""

    ids: tuple[int | None, int | None]  # None once it has ended
    plain: str
    steered: str
    ended: tuple[bool, bool]  # at a special token


@dataclass(frozen=True)
class Attribution:
    """Support for one prediction, by feature (k of them, largest |estimate| first) and by (feature, token) (m pairs)."""

    position: int
    target: int
    foil: int | None
    value: float  # of m
    probability: float  # of the target
    features: np.ndarray  # (k,) int64
    estimate: np.ndarray  # (k,) over all tokens up to the position
    here: np.ndarray  # (k,) the part of it that stands at the position itself
    direct: np.ndarray  # (k,) 0 for features that are silent at the position
    ablation: np.ndarray  # (k,) NaN where it was not measured
    activation: np.ndarray  # (k,) the feature's largest up to the position
    strongest: np.ndarray  # (k,) int64, where that is
    pair_feature: np.ndarray  # (m,) int64
    pair_position: np.ndarray  # (m,) int64
    pair_estimate: np.ndarray  # (m,)
    error: float  # the estimate for what the SAE leaves out of the residual, at the tokens that count


def check_edits(edits: Sequence[Edit], n: int, d_sae: int) -> None:
    """InputError for edits that cannot be made on a text of n tokens."""
    if not 1 <= len(edits) <= MAX_EDITS:
        raise InputError(f"{len(edits)} changes at once; allowed are 1 to {MAX_EDITS}")
    if len({edit.feature for edit in edits}) < len(edits):
        raise InputError("a feature is changed twice; give each feature one change")
    for edit in edits:
        if not 0 <= edit.feature < d_sae:
            raise InputError(f"there is no feature {edit.feature}; this SAE has features 0 to {d_sae - 1}")
        if edit.mode not in MODES:
            raise InputError(f"the change {edit.mode!r} is not known; allowed are {', '.join(MODES)}")
        if not all(map(math.isfinite, (edit.amount, *edit.values))):
            raise InputError(f"feature {edit.feature} cannot be set to a value that is not finite")
        if edit.mode == "patch" and len(edit.values) != len(edit.positions or ()):
            raise InputError(f"{len(edit.values)} values were given for {len(edit.positions or ())} positions of feature {edit.feature}")
        if edit.positions is not None and not all(0 <= p < n for p in edit.positions):
            raise InputError(f"the text has tokens 0 to {n - 1}; feature {edit.feature} is to be changed at another")


def check_steering(pushes: Sequence[Push], sampling: Sampling, new_tokens: int, d_sae: int) -> None:
    """InputError for a continuation that cannot be written."""
    if not 1 <= len(pushes) <= MAX_EDITS:
        raise InputError(f"{len(pushes)} features are to be pushed; allowed are 1 to {MAX_EDITS}")
    for push in pushes:
        if not 0 <= push.feature < d_sae:
            raise InputError(f"there is no feature {push.feature}; this SAE has features 0 to {d_sae - 1}")
        if not math.isfinite(push.amount):
            raise InputError(f"feature {push.feature} cannot be pushed by an amount that is not finite")
    if not 1 <= new_tokens <= MAX_NEW_TOKENS:
        raise InputError(f"{new_tokens} new tokens were asked for; allowed are 1 to {MAX_NEW_TOKENS}")
    if not 0 <= sampling.temperature <= MAX_TEMPERATURE:
        raise InputError(f"the temperature is {sampling.temperature}; allowed are 0 to {MAX_TEMPERATURE:g}")
    if not 0 < sampling.top_p <= 1:
        raise InputError(f"top-p is {sampling.top_p}; allowed is a share above 0 and up to 1")
