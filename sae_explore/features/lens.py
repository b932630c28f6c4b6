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

from sae_explore.models.model import Unembedding
from sae_explore.models.products import linear

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


def lens_tables(directions: torch.Tensor, unembedding: Unembedding, excluded: np.ndarray | None = None) -> dict[str, LensTable]:
    """Lens lists and statistics of directions (n, d_model) by convention. `excluded` (vocab,) bool: ids never listed (special, unused).

    Kurtosis and histogram are of the folded logits alone; those of the others, which nobody looks at, are empty. The cosine logits are
    the folded ones with each token's column scaled, so one matrix product gives both.
    """
    folded, raw = lens_matrix(unembedding, "folded"), lens_matrix(unembedding, "raw")
    scale = 1 / folded.norm(dim=0).clamp_min(1e-12)
    parts: dict[str, list] = {convention: [] for convention in CONVENTIONS}
    for chunk in _chunks(directions, folded):
        logits = linear(chunk, folded.T)
        parts["folded"].append(_rows(logits, excluded))
        parts["cosine"].append(_rows(logits.mul_(scale), excluded, shape=False))
        parts["raw"].append(_rows(linear(chunk, raw.T), excluded, shape=False))
    return {convention: _joined(rows) for convention, rows in parts.items()}


def mean_row(unembedding: Unembedding) -> torch.Tensor:
    """(d_model,) mean of the unembedding over the vocabulary: for `folded_logit`."""
    return unembedding.W_U.float().mean(0)


def folded_logit(direction: np.ndarray, unembedding: Unembedding, token: int, *, mean: torch.Tensor) -> float:
    """One entry of `direction @ lens_matrix(unembedding, "folded")`, without the matrix; `mean` is the `mean_row`."""
    row = (unembedding.W_U[token].float() - mean) * unembedding.gain
    if unembedding.centred_norm:
        row = row - row.mean()
    return float(row.cpu().numpy() @ np.asarray(direction, np.float32))


def lens_table(directions: torch.Tensor, matrix: torch.Tensor, excluded: np.ndarray | None = None) -> LensTable:
    """As `lens_tables`, for one matrix (d_model, vocab)."""
    return _joined([_rows(linear(chunk, matrix.T), excluded) for chunk in _chunks(directions, matrix)])


def _chunks(directions: torch.Tensor, matrix: torch.Tensor):
    return directions.float().split(max(1, _CHUNK_LOGITS // matrix.shape[1]))


def _joined(rows: list[LensTable]) -> LensTable:
    return LensTable(*(torch.cat(column).cpu().numpy() for column in zip(*rows, strict=True)))


def _rows(logits: torch.Tensor, excluded: np.ndarray | None, *, shape: bool = True) -> LensTable:
    """The table, in tensors, of logits (n, vocab), which are unchanged afterwards."""
    mean = logits.mean(1, keepdim=True)
    low, high = logits.amin(1, keepdim=True), logits.amax(1, keepdim=True)
    if shape:
        square = (logits - mean).square_()
        variance = square.mean(1)
        kurtosis = square.norm(dim=1).square() / logits.shape[1] / variance.square().clamp_min(1e-24) - 3
        bins = torch.sub(logits, low, out=square).mul_(LOGIT_BINS / (high - low).clamp_min(1e-12)).long().clamp_(0, LOGIT_BINS - 1)
        one = torch.ones(1, 1, dtype=torch.int32, device=logits.device).expand_as(bins)
        histogram = one.new_zeros(len(logits), LOGIT_BINS).scatter_add_(1, bins, one)
    else:
        variance = (logits.norm(dim=1).double().square() / logits.shape[1] - mean[:, 0].double().square()).clamp_min(0).float()
        kurtosis, histogram = logits.new_zeros(0), logits.new_zeros(0, LOGIT_BINS)
    hidden = torch.from_numpy(np.flatnonzero(excluded) if excluded is not None else np.empty(0, np.int64)).to(logits.device)
    kept = logits[:, hidden]  # few: hiding them in place spares two copies of all logits
    logits[:, hidden] = -torch.inf
    up = torch.topk(logits, LENS_TOP, dim=1)
    logits[:, hidden] = torch.inf
    down = torch.topk(logits, LENS_TOP, dim=1, largest=False)
    logits[:, hidden] = kept
    return LensTable(
        up.indices.int(),
        up.values.half(),
        down.indices.int(),
        down.values.half(),
        variance.sqrt(),
        kurtosis,
        histogram.int(),
        low[:, 0],
        high[:, 0],
    )


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
        cosine = linear(unit[a : a + step], unit)
        at = torch.arange(len(cosine))
        cosine[at, a + at] = -2
        best = torch.topk(cosine, top, dim=1)
        indices.append(best.indices.int())
        cosines.append(best.values)
    return torch.cat(indices).numpy(), torch.cat(cosines).numpy()
