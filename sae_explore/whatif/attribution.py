"""Which features at this token support the predicted one? Gradient x activation, the direct effect beside it, and real ablations.

The quantity explained is a difference of logits at one position, which no constant added to all logits can change:

    m = logit[target] - logit[foil]        or, without a foil,        m = logit[target] - mean over the vocabulary

estimate   a_f(t) W_dec[f] . dm/dx(t) at the text's own residual: what switching the feature off would take from m if the rest of the
           model were linear (attribution patching; Nanda 2023, Syed et al. 2023, arXiv:2310.10348). One backward pass.
direct     the part that needs no later block: a_f W_dec[f] through the final norm, its size kept, and the unembedding: the logit
           lens in the units of this token. At the predicting position only.
ablation   m - m with the feature really switched off at all its tokens. Measured for the strongest few.
"""

from __future__ import annotations

import numpy as np
import torch

from sae_explore.errors import InputError
from sae_explore.models.model import Unembedding
from sae_explore.models.next_token import States, states_from
from sae_explore.models.splice import with_edit
from sae_explore.types import HookPoint
from sae_explore.whatif.edits import CHECKED, Attribution, Edit
from sae_explore.whatif.interventions import Lab, Reading, coefficients

_ROWS_AT_ONCE = 6  # texts in one run of the upper blocks
_VOCABULARY_AT_ONCE = 8_192


def attribute(
    lab: Lab, reading: Reading, position: int, *, target: int | None = None, foil: int | None = None, checked: int = CHECKED
) -> Attribution:
    """Explain the prediction made at a position; `target` is a token id, by default the likeliest one.

    InputError for a position or a token that is not there.
    """
    n, vocabulary = len(reading), lab.full.get_output_embeddings().weight.shape[0]
    if not 0 <= position < n:
        raise InputError(f"the text has tokens 0 to {n - 1}; there is no token {position}")
    for name, token in (("target", target), ("foil", foil)):
        if token is not None and not 0 <= token < vocabulary:
            raise InputError(f"the {name} {token} is no token; ids run from 0 to {vocabulary - 1}")
    if target is not None and target == foil:
        raise InputError("the target and the token that it is compared with are the same; choose another one")
    gradient, target, value, probability, sigma = _backward(lab, reading, position, target, foil)
    counts = np.diff(reading.rows.offsets[: position + 2])
    pair_position = np.repeat(np.arange(position + 1), counts)
    pair_feature = reading.rows.features[: len(pair_position)].astype(np.int64)
    acts = torch.from_numpy(reading.rows.values[: len(pair_position)]).to(gradient.device)
    features, at = np.unique(pair_feature, return_inverse=True)
    rows = lab.rows_of(features.tolist())
    by_token = reading.scale[pair_position, 0] * acts
    slopes = (gradient @ rows.T)[pair_position, at] if len(at) else acts
    pair_estimate = (by_token * slopes).cpu().numpy()
    column = _lens_column(lab.tracer.model.unembedding, target, foil)
    writes = (rows.cpu() @ column / sigma).numpy()
    here = pair_position == position
    sums = {
        "estimate": _sums(at, pair_estimate, len(features)),
        "here": _sums(at[here], pair_estimate[here], len(features)),
        "direct": _sums(at[here], by_token.cpu().numpy()[here] * writes[at[here]], len(features)),
    }
    order = np.lexsort((features, -np.abs(sums["estimate"])))
    ablation = np.full(len(features), np.nan)
    first = order[:checked]
    ablation[first] = _ablations(lab, reading, position, features[first], target, foil, value)
    strongest, largest = _peaks(at, pair_position, acts.cpu().numpy(), len(features))
    return Attribution(
        position, target, foil, value, probability, features[order], **{name: column[order] for name, column in sums.items()},
        ablation=ablation[order], activation=largest[order], strongest=strongest[order], pair_feature=pair_feature,
        pair_position=pair_position, pair_estimate=pair_estimate, error=_error(lab, reading, position, gradient),
    )  # fmt: skip


def _measure(logits: torch.Tensor, target: int, foil: int | None) -> torch.Tensor:
    """m of logits (..., vocab)."""
    return logits[..., target] - (logits.mean(-1) if foil is None else logits[..., foil])


@torch.inference_mode(False)
def _backward(lab: Lab, reading: Reading, position: int, target: int | None, foil: int | None):
    """(dm/dx (position + 1, d_model), target, m, its probability, size of the final norm's input at the position)."""
    end = reading.lead + position + 1
    with torch.enable_grad():
        residual = reading.residual[None, :end].clone().requires_grad_()
        states, last = _run(lab, reading.ids[:, :end].clone(), residual)
        logits = states.logits(end - 1, end)[0, 0]
        target = int(logits.argmax()) if target is None else target
        if target == foil:
            raise InputError("the token to compare with is the predicted one itself; choose another one")
        value = _measure(logits, target, foil)
        (gradient,) = torch.autograd.grad(value, residual)
    x = last[0, -1].detach()
    sigma = (x - x.mean() if lab.tracer.model.unembedding.centred_norm else x).square().mean().sqrt()
    probability = float(torch.softmax(logits.detach(), -1)[target])
    return gradient[0, reading.lead :], target, float(value.detach()), probability, float(sigma)


def _run(lab: Lab, ids: torch.Tensor, residual: torch.Tensor) -> tuple[States, torch.Tensor]:
    """(last states, what the final norm reads)."""
    hook, n_layers = lab.tracer.model.hook, lab.tracer.model.n_layers
    if hook.depth == n_layers:
        return states_from(lab.full, hook, ids, residual), residual
    seen: list[torch.Tensor] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x

    states = states_from(with_edit(lab.full, HookPoint(n_layers - 1), look), hook, ids, residual)
    return states, seen[-1]


@torch.inference_mode()
def _ablations(lab: Lab, reading: Reading, position: int, features: np.ndarray, target: int, foil: int | None, value: float) -> np.ndarray:
    """By how much m falls when each feature alone is switched off up to the position."""
    found, stop = [], position + 1
    short = Reading(reading.tokens, reading.lead, reading.ids[:, : reading.lead + stop], reading.residual[: reading.lead + stop],
                    reading.counted, reading.rows, reading.scale)  # fmt: skip
    for start in range(0, len(features), _ROWS_AT_ONCE):
        part = features[start : start + _ROWS_AT_ONCE].tolist()
        by, rows = coefficients(reading, [Edit(f, "ablate") for f in part]), lab.rows_of(part)
        states = lab.states(short, by.T[:, :stop, None] * rows[:, None])
        end = states.last.shape[1]
        found += _measure(states.logits(end - 1, end)[:, 0], target, foil).tolist()
    return value - np.asarray(found)


@torch.inference_mode()
def _error(lab: Lab, reading: Reading, position: int, gradient: torch.Tensor) -> float:
    """The estimate for x - reconstruction."""
    at = torch.from_numpy(np.flatnonzero(reading.counted[: position + 1])).to(gradient.device)
    x, sae = reading.residual[reading.lead :][at], lab.tracer.sae
    acts, info = sae.encode(x)
    return float(((sae.target(x) - sae.decode(acts, info)) * gradient[at]).sum())


@torch.inference_mode()
def _lens_column(unembedding: Unembedding, target: int, foil: int | None) -> torch.Tensor:
    """(d_model,) the lens's direction of m, as in `lens.lens_matrix(..., "folded")`, read in parts."""
    W_U = unembedding.W_U
    others = W_U if foil is None else W_U[foil : foil + 1]
    away = sum(part.float().sum(0) for part in others.split(_VOCABULARY_AT_ONCE)) / len(others)
    column = (W_U[target].float() - away) * unembedding.gain
    return (column - column.mean() if unembedding.centred_norm else column).cpu()


def _sums(at: np.ndarray, values: np.ndarray, k: int) -> np.ndarray:
    return np.bincount(at, weights=values, minlength=k)


def _peaks(at: np.ndarray, positions: np.ndarray, values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(position, value) of each feature's largest activation."""
    order = np.lexsort((positions, -values, at))
    _, first = np.unique(at[order], return_index=True)
    return positions[order][first], values[order][first].astype(np.float64)
