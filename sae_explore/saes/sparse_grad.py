"""Gradients of a TopK autoencoder without a dense (tokens x latents) product.

With A the sparse (tokens x latents) matrix of the k active latents of each token, x_c the centred input and G the gradient of
the loss at the reconstruction (tokens x d_in):

    dW_dec   = A^T G                         gathered latent by latent from rows of G
    dA       = <G_t, W_dec[f]>               only where A is active and positive
    dW_enc^T = dA^T x_c                      gathered latent by latent from rows of x_c

Each gather is an `embedding_bag` over the activations sorted by latent: it costs tokens * k * d_in, not tokens * d_sae * d_in.
(The idea is that of openai/sparse_autoencoder's Triton kernels; tests compare with autograd on the dense form.)
Where a large share of the latents is active, as with AuxK's dead ones, the dense products are faster: `dense_gradients`.
"""

from __future__ import annotations

import warnings
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F

_GATHER_ELEMENTS = 1 << 24  # of rows gathered at once by `gathered_products`
# Elements of a gradient gathered at once on a CPU: 8 MB in fp32, for which the allocator takes the same memory again. The 75 MB of
# 24,576 latents would be new pages in each step: 30 ms instead of 7.
_BLOCK_ELEMENTS = 1 << 21


class SparseGrads(NamedTuple):
    W_encT: torch.Tensor  # (d_sae, d_in)
    b_enc: torch.Tensor  # (d_sae,)
    W_dec: torch.Tensor  # (d_sae, d_in)
    along: torch.Tensor  # (d_sae,) <dW_dec[f], W_dec[f]>


class ByLatent(NamedTuple):
    """The active (token, latent) pairs sorted by latent."""

    order: torch.Tensor  # (n * k,) positions in the flattened (n, k) arrays
    tokens: torch.Tensor  # (n * k,) token of each pair
    starts: torch.Tensor  # (d_sae + 1,) where each latent's pairs begin, and the end of the last


def sort_by_latent(features: torch.Tensor, d_sae: int) -> ByLatent:
    """(n, k) latent indices -> the pairs in latent order."""
    flat = features.reshape(-1).int()  # sorted in half the time of int64, and gathered with a fifth faster
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=d_sae)
    return ByLatent(order, (order // features.shape[1]).int(), F.pad(counts.cumsum(0, dtype=torch.int32), (1, 0)))


def gather_by_latent(by: ByLatent, rows: torch.Tensor, weights: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """sum over a latent's pairs of weight * rows[token]: (d_sae, d_in). `out` is memory of this shape that may be used for it."""
    d_sae, d_in = len(by.starts) - 1, rows.shape[1]
    weights = weights.reshape(-1)[by.order]
    step = max(1, _BLOCK_ELEMENTS // d_in)
    if rows.is_cuda or d_sae <= step:
        return F.embedding_bag(by.tokens, rows, by.starts[:-1], mode="sum", per_sample_weights=weights)
    out = rows.new_empty(d_sae, d_in) if out is None else out
    edges = [*by.starts[:-1:step].tolist(), len(by.tokens)]
    for i, (a, b) in enumerate(pairwise(edges)):
        block = slice(i * step, (i + 1) * step)
        starts = by.starts[:-1][block] - a
        out[block] = F.embedding_bag(by.tokens[a:b], rows, starts, mode="sum", per_sample_weights=weights[a:b])
    return out


def latent_sums(features: torch.Tensor, values: torch.Tensor, d_sae: int) -> torch.Tensor:
    """Sum of each latent's values, (d_sae,), of pairs (n, k)."""
    return values.new_zeros(d_sae).index_add_(0, features.reshape(-1), values.reshape(-1))


def decode_rows(features: torch.Tensor, values: torch.Tensor, W_dec: torch.Tensor) -> torch.Tensor:
    """(n, k) active latents to (n, d_in), without the bias."""
    return F.embedding_bag(features, W_dec, mode="sum", per_sample_weights=values)


def row_products(features: torch.Tensor, W: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """<W[f], rows[t]> for the chosen latents f of each token t: features (n, k), W (d_sae, d_in), rows (n, d_in) -> (n, k)."""
    if W.is_cuda:
        return gathered_products(features, W, rows)
    # Reads each row of W where it lies: 4 times faster at 2,048 latents than gathering rows before they are multiplied.
    # The kernel takes a row's indices as they come; they need not be sorted, which the format asks for.
    _accept_sparse_csr()
    n, k = features.shape
    starts = torch.arange(0, n * k + 1, k)
    pairs = torch.sparse_csr_tensor(starts, features.reshape(-1), rows.new_zeros(n * k), (n, len(W)), check_invariants=False)
    return torch.sparse.sampled_addmm(pairs, rows, W.T, beta=0.0).values().view(n, k)


def gathered_products(features: torch.Tensor, W: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The same from gathered rows of W, some tokens at a time: for a GPU, where few launches count."""
    (n, k), d_in = features.shape, W.shape[1]
    out = torch.empty(n, k, dtype=W.dtype, device=W.device)
    step = max(1, _GATHER_ELEMENTS // (k * d_in))
    for a in range(0, n, step):
        torch.sum(W[features[a : a + step]].mul_(rows[a : a + step, None]), -1, out=out[a : a + step])
    return out


@cache
def _accept_sparse_csr() -> None:
    """PyTorch says once in each process that the format is in beta state; what is used of it here is compared with autograd in tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]), (1, 1), check_invariants=False)


def topk_gradients(
    x_c: torch.Tensor,
    features: torch.Tensor,
    values: torch.Tensor,
    grad_out: torch.Tensor,
    W_dec: torch.Tensor,
    *,
    scale: float = 1.0,
    out: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
) -> SparseGrads:
    """Gradients of a loss whose gradient at the reconstruction is `scale * grad_out`.

    x_c (n, d_in) is the encoder's input; features, values (n, k) its TopK after ReLU: where a value is 0 no gradient passes.
    `out`: memory that may be used for the gradients of W_encT and W_dec, as in `gather_by_latent`.
    """
    d_sae = W_dec.shape[0]
    by = sort_by_latent(features, d_sae)
    d_values = row_products(features, W_dec, grad_out).mul_(values > 0).mul_(scale)
    return SparseGrads(
        gather_by_latent(by, x_c, d_values, out[0]),
        latent_sums(features, d_values, d_sae),
        gather_by_latent(by, grad_out, values * scale, out[1]),
        latent_sums(features, d_values * values, d_sae),
    )


def dense_gradients(x_c: torch.Tensor, z: torch.Tensor, grad_out: torch.Tensor, W_dec: torch.Tensor) -> SparseGrads:
    """The same from dense activations z (n, d_sae), as plain matrix products."""
    d_z = (grad_out @ W_dec.T).mul_(z > 0)
    return SparseGrads(d_z.T @ x_c, d_z.sum(0), z.T @ grad_out, (d_z * z).sum(0))
