"""All figures of an SAE on one set of documents, the same for a build and for `metrics --recompute`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from sae_explore.building.build_request import EVALUATED_TOKENS, LOSS_TOKENS
from sae_explore.building.metrics import evaluate_losses, evaluate_reconstruction
from sae_explore.models.model import LanguageModel
from sae_explore.saes.sae import Sae


def evaluate(
    model: LanguageModel,
    full: torch.nn.Module,
    sae: Sae,
    ids_of: Sequence[np.ndarray],
    categories: Sequence[str],
    *,
    window: int,
    bos: bool,
    median_norm: float,
    report: Callable[[float], None],
) -> dict:
    """All figures of one set of documents: {"tokens_eval", "explained_variance", "l0", ..., "ce_clean", ..., "by_category"}."""
    options = {"context": window, "bos": bos, "median_norm": median_norm}
    # Where there are more tokens than are evaluated, documents at random: a corpus may stand in the order of its categories.
    order = np.random.default_rng(0).permutation(len(ids_of))
    ids_of, categories = [ids_of[i] for i in order], [categories[i] for i in order]
    rebuilt = evaluate_reconstruction(model, sae, ids_of, categories, max_tokens=EVALUATED_TOKENS, **options)
    total = min(LOSS_TOKENS, sum(map(len, ids_of)))
    losses = evaluate_losses(
        model, full, sae, ids_of, categories, max_tokens=LOSS_TOKENS, progress=lambda n: report(min(1.0, n / total)), **options
    )
    by_category = {name: {**row, **losses["by_category"].get(name, {})} for name, row in rebuilt.by_category.items()}
    return {"tokens_eval": rebuilt.tokens, "explained_variance": rebuilt.explained_variance, "l0": rebuilt.l0,
            **{key: value for key, value in losses.items() if key != "by_category"}, "by_category": dict(sorted(by_category.items()))}  # fmt: skip
