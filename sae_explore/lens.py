"""The logit lens on decoder directions: which vocabulary a feature writes.

Three named conventions for the unembedding, because ranks differ between them:
    folded   the final norm's gain folded in, every token's column centred over the vocabulary (the published GPT-2 dashboards)
    raw      the unembedding as it is
    cosine   the rows of the folded unembedding normalised: tokens with odd embedding norms do not crowd the lists
Direction strength is the standard deviation of a direction's folded logits over the vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from sae_explore.model import Unembedding

CONVENTIONS = ("folded", "raw", "cosine")
LENS_TOP = 15
LOGIT_BINS = 40
N_RANDOM = 256
_CHUNK_LOGITS = 1 << 24


class LensTable(NamedTuple):
    """Lists of one convention for n directions."""

    positive_ids: np.ndarray  # (n, LENS_TOP) int32, largest first
    positive: np.ndarray  # (n, LENS_TOP) float16
    negative_ids: np.ndarray  # (n, LENS_TOP) int32, most negative first
    negative: np.ndarray
    std: np.ndarray  # (n,) float32, over the vocabulary
    kurtosis: np.ndarray  # (n,) float32, excess: how much a few tokens stand out
    histogram: np.ndarray  # (n, LOGIT_BINS) int32
    low: np.ndarray  # (n,) float32, the histogram's range
    high: np.ndarray


def lens_matrix(unembedding: Unembedding, convention: str) -> torch.Tensor:
    """(d_model, vocab) matrix M so that directions @ M are the lens's logits."""
    W_U = unembedding.W_U.float()
    if convention == "raw":
        return W_U.T
    # Centred over the vocabulary: a constant added to all logits changes no prediction.
    folded = W_U * unembedding.gain
    folded = folded - folded.mean(0)
    if unembedding.centred_norm:  # LayerNorm removes the mean of its input, so it never reaches the logits
        folded = folded - folded.mean(1, keepdim=True)
    if convention == "cosine":
        folded = folded / folded.norm(dim=1, keepdim=True).clamp_min(1e-12)
    elif convention != "folded":
        raise ValueError(f"lens convention {convention!r} is not one of {', '.join(CONVENTIONS)}")
    return folded.T


def lens_table(directions: torch.Tensor, matrix: torch.Tensor, excluded: np.ndarray | None = None) -> LensTable:
    """Lens lists and statistics of directions (n, d_model). `excluded` (vocab,) bool: ids never listed (special, unused)."""
    parts = []
    step = max(1, _CHUNK_LOGITS // matrix.shape[1])
    hidden = None if excluded is None else torch.tensor(excluded, dtype=torch.bool, device=matrix.device)
    for chunk in directions.float().split(step):
        logits = chunk @ matrix
        mean, std = logits.mean(1, keepdim=True), logits.std(1, keepdim=True, unbiased=False)
        kurtosis = ((logits - mean) / std.clamp_min(1e-12)).pow(4).mean(1) - 3
        low, high = logits.amin(1, keepdim=True), logits.amax(1, keepdim=True)
        bins = ((logits - low) * (LOGIT_BINS / (high - low).clamp_min(1e-12))).long().clamp_(0, LOGIT_BINS - 1)
        bins += torch.arange(len(chunk), device=bins.device)[:, None] * LOGIT_BINS
        histogram = torch.bincount(bins.view(-1), minlength=len(chunk) * LOGIT_BINS).view(len(chunk), LOGIT_BINS)
        shown = logits if hidden is None else logits.masked_fill(hidden, float("nan"))
        up = torch.topk(shown.nan_to_num(nan=-torch.inf), LENS_TOP, dim=1)
        down = torch.topk(shown.nan_to_num(nan=torch.inf), LENS_TOP, dim=1, largest=False)
        parts.append(
            [
                up.indices.int(),
                up.values.half(),
                down.indices.int(),
                down.values.half(),
                std[:, 0],
                kurtosis,
                histogram.int(),
                low[:, 0],
                high[:, 0],
            ]
        )
    return LensTable(*(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)))


def random_directions(d_model: int, n: int = N_RANDOM, *, seed: int = 0) -> torch.Tensor:
    """Unit directions drawn uniformly: what chance gives."""
    directions = torch.randn(n, d_model, generator=torch.Generator().manual_seed(seed))
    return directions / directions.norm(dim=1, keepdim=True)


def nearest_by_cosine(rows: torch.Tensor, top: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """For each row (n, d) the `top` other rows of largest cosine: indices (n, top) int32 and cosines float32."""
    unit = torch.nn.functional.normalize(rows.float(), dim=1)
    top = min(top, len(unit) - 1)
    indices, cosines = [], []
    step = max(1, _CHUNK_LOGITS // len(unit))
    for a in range(0, len(unit), step):
        cosine = unit[a : a + step] @ unit.T
        at = torch.arange(len(cosine))
        cosine[at, a + at] = -2
        best = torch.topk(cosine, top, dim=1)
        indices.append(best.indices.int())
        cosines.append(best.values)
    return torch.cat(indices).numpy(), torch.cat(cosines).numpy()
