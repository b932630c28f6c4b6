"""How good is an SAE: explained variance, L0, dead latents, and what splicing it in costs the model's predictions.

    explained variance = 1 - sum|x - x_hat|^2 / sum|x - mean(x)|^2 over all counted tokens
    CE recovered       = (CE_zero - CE_sae) / (CE_zero - CE_clean); also against mean ablation, and the increase in nats

Ignored tokens (BOS, special, sinks) enter no figure; in the spliced runs they keep their own residual. A loss counts where the
predicting token is counted and the predicted one is a token of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sae_explore.activations.collect import ignored_rows, residual_blocks, static_ignored
from sae_explore.models.model import LanguageModel
from sae_explore.models.splice import logits_from, next_token_losses
from sae_explore.models.windows import length_batches, windows_of
from sae_explore.saes.sae import ReconstructionStats, Sae

VARIANTS = ("clean", "sae", "zero", "mean")
_LOGIT_TOKENS = 512  # predicted at once: with GPT-2's vocabulary 100 MB of logits, and as much again for their softmax


@dataclass(frozen=True)
class Reconstruction:
    """Figures of `evaluate_reconstruction`."""

    tokens: int
    explained_variance: float
    l0: float
    dead: int
    by_category: dict[str, dict]


def evaluate_reconstruction(
    model: LanguageModel,
    sae: Sae,
    ids_of: Sequence[np.ndarray],
    categories: Sequence[str],
    *,
    context: int,
    bos: bool,
    median_norm: float,
    max_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Reconstruction:
    """Explained variance, L0 and dead latents over documents (about the first `max_tokens` tokens of them), and by category."""
    total = ReconstructionStats(sae.spec.d_in, sae.spec.d_sae)
    per = {c: ReconstructionStats(sae.spec.d_in, sae.spec.d_sae) for c in dict.fromkeys(categories)}
    for first, last, rows in residual_blocks(model, ids_of, context=context, bos=bos):
        static = static_ignored(ids_of[first:last], model.vocabulary.special, context=context, bos=bos)
        keep = ~ignored_rows(rows, static, median_norm)
        document = np.repeat(np.arange(first, last), [len(ids) for ids in ids_of[first:last]])
        names = np.asarray([categories[d] for d in document])
        for name in dict.fromkeys(names):
            chosen = keep & torch.from_numpy(names == name).to(keep.device)
            x = rows[chosen]
            if not len(x):
                continue
            acts, info = sae.encode(x)
            x_hat, target = sae.decode(acts, info), sae.target(x)
            for stats in (total, per[name]):
                stats.add(target, x_hat, acts)
        if progress:
            progress(total.tokens)
        if max_tokens is not None and total.tokens >= max_tokens:
            break
    by_category = {
        name: {"tokens": s.tokens, "explained_variance": s.explained_variance, "l0": s.l0} for name, s in per.items() if s.tokens
    }
    return Reconstruction(total.tokens, total.explained_variance, total.l0, total.dead, by_category)


def mean_residual(
    model: LanguageModel, ids_of: Sequence[np.ndarray], *, context: int, bos: bool, median_norm: float, max_tokens: int = 20_000
) -> torch.Tensor:
    """Mean of the counted residuals (d_model,), for mean ablation; about the first `max_tokens` of them."""
    total, n = torch.zeros(model.d_model, dtype=torch.float64, device=model.device), 0
    for first, last, rows in residual_blocks(model, ids_of, context=context, bos=bos):
        static = static_ignored(ids_of[first:last], model.vocabulary.special, context=context, bos=bos)
        kept = rows[~ignored_rows(rows, static, median_norm)]
        total, n = total + kept.double().sum(0), n + len(kept)
        if n >= max_tokens:
            break
    return (total / max(n, 1)).float()


def spliced(sae: Sae, residual: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Residual (batch, tokens, d) with the SAE's reconstruction at the counted tokens.

    A mean that the SAE's centring took away is given back, so that only the reconstruction's error is added.
    """
    x = residual[counted]
    acts, info = sae.encode(x)
    out = residual.clone()
    out[counted] = sae.decode(acts, info) + (x - sae.target(x))
    return out


def evaluate_losses(
    model: LanguageModel,
    full: torch.nn.Module,
    sae: Sae,
    ids_of: Sequence[np.ndarray],
    categories: Sequence[str],
    *,
    context: int,
    bos: bool,
    median_norm: float,
    max_tokens: int = 20_000,
    progress: Callable[[int], None] | None = None,
) -> dict:
    """Cross entropy clean, with the SAE spliced in, zero- and mean-ablated: {"tokens_ce", "ce_clean", ..., "by_category"}."""
    mean = mean_residual(model, ids_of, context=context, bos=bos, median_norm=median_norm)
    sums = {c: np.zeros(1 + len(VARIANTS)) for c in dict.fromkeys(categories)}
    capacity, done = context - int(bos), 0
    windows = [w for d, ids in enumerate(ids_of) for w in windows_of(len(ids), capacity, document=d, overlap=False)]
    rng = np.random.default_rng(0)
    windows = [windows[i] for i in rng.permutation(len(windows))]
    chosen, total = [], 0
    for window in windows:  # whole windows, drawn at random, until there are enough tokens
        if total >= max_tokens:
            break
        chosen.append(window)
        total += window.length
    lead = int(bos)
    for batch in length_batches(chosen, 16, _LOGIT_TOKENS):
        ids = model.window_ids(batch, ids_of, bos=bos).to(model.device)
        residual = model.residual(ids)
        counted = torch.zeros_like(ids, dtype=torch.bool)
        text = torch.zeros_like(counted)
        for i, window in enumerate(batch):
            piece = ids_of[window.document][window.start : window.stop]
            static = static_ignored([piece], model.vocabulary.special, context=context, bos=bos)
            counted[i, lead : lead + window.length] = ~ignored_rows(residual[i, lead : lead + window.length], static, median_norm)
            text[i, lead : lead + window.length] = True
        scored = counted[:, :-1] & text[:, 1:]
        zero, averaged = residual.clone(), residual.clone()
        zero[counted], averaged[counted] = 0.0, mean
        losses = [
            next_token_losses(logits_from(full, model.hook, ids, r), ids)
            for r in (residual, spliced(sae, residual, counted), zero, averaged)
        ]
        for i, window in enumerate(batch):
            at = scored[i]
            sums[categories[window.document]] += [int(at.sum()), *(float(loss[i][at].double().sum()) for loss in losses)]
            done += window.length
        if progress:
            progress(done)
    figures = _losses(sum(sums.values()))
    return figures | {"by_category": {name: _losses(s) for name, s in sums.items() if s[0]}}


def _losses(sums: np.ndarray) -> dict:
    n = max(sums[0], 1)
    ce = {f"ce_{name}": float(s / n) for name, s in zip(VARIANTS, sums[1:], strict=True)}
    against = {
        key: (ce[f"ce_{base}"] - ce["ce_sae"]) / (ce[f"ce_{base}"] - ce["ce_clean"]) if ce[f"ce_{base}"] != ce["ce_clean"] else float("nan")
        for key, base in (("ce_recovered", "zero"), ("ce_recovered_mean", "mean"))
    }
    return {"tokens_ce": int(sums[0]), **ce, **against, "ce_increase": ce["ce_sae"] - ce["ce_clean"]}
