"""Gradients of a TopK autoencoder without a dense (tokens x latents) product.

With A the sparse (tokens x latents) matrix of the k active latents of each token, x_c the centred input and G the gradient of
the loss at the reconstruction (tokens x d_in):

    dW_dec   = A^T G                         gathered latent by latent from rows of G
    dA       = <G_t, W_dec[f]>               only where A is active and positive
    dW_enc^T = dA^T x_c                      gathered latent by latent from rows of x_c

Each gather is an `embedding_bag` over the activations sorted by latent: it costs tokens * k * d_in, not tokens * d_sae * d_in.
(The idea is that of openai/sparse_autoencoder's Triton kernels; tests compare with autograd on the dense form.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

_GATHER_ELEMENTS = 1 << 24  # decoder rows gathered at once for dA: 64 MB in fp32


class SparseGrads(NamedTuple):
    W_encT: torch.Tensor  # (d_sae, d_in)
    b_enc: torch.Tensor  # (d_sae,)
    W_dec: torch.Tensor  # (d_sae, d_in)


class ByLatent(NamedTuple):
    """The active (token, latent) pairs sorted by latent."""

    order: torch.Tensor  # (n * k,) positions in the flattened (n, k) arrays
    tokens: torch.Tensor  # (n * k,) token of each pair
    starts: torch.Tensor  # (d_sae,) where each latent's pairs begin


def sort_by_latent(features: torch.Tensor, d_sae: int) -> ByLatent:
    """(n, k) latent indices -> the pairs in latent order."""
    flat = features.reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=d_sae)
    return ByLatent(order, order // features.shape[1], F.pad(counts.cumsum(0), (1, 0))[:-1])


def gather_by_latent(by: ByLatent, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """sum over a latent's pairs of weight * rows[token]: (d_sae, d_in)."""
    return F.embedding_bag(by.tokens, rows, by.starts, mode="sum", per_sample_weights=weights.reshape(-1)[by.order])


def decode_rows(features: torch.Tensor, values: torch.Tensor, W_dec: torch.Tensor) -> torch.Tensor:
    """(n, k) active latents to (n, d_in), without the bias."""
    return F.embedding_bag(features, W_dec, mode="sum", per_sample_weights=values)


def topk_gradients(
    x_c: torch.Tensor, features: torch.Tensor, values: torch.Tensor, grad_out: torch.Tensor, W_dec: torch.Tensor
) -> SparseGrads:
    """Gradients of a loss whose gradient at the reconstruction is `grad_out`.

    x_c (n, d_in) is the encoder's input; features, values (n, k) its TopK after ReLU: where a value is 0 no gradient passes.
    """
    d_sae = W_dec.shape[0]
    by = sort_by_latent(features, d_sae)
    d_values = torch.empty_like(values)
    step = max(1, _GATHER_ELEMENTS // (features.shape[1] * W_dec.shape[1]))
    for a in range(0, len(values), step):
        rows = W_dec[features[a : a + step]]  # (step, k, d_in)
        d_values[a : a + step] = torch.bmm(rows, grad_out[a : a + step, :, None])[:, :, 0]
    d_values *= values > 0
    b_enc = torch.zeros(d_sae, dtype=values.dtype, device=values.device)
    b_enc.index_add_(0, features.reshape(-1), d_values.reshape(-1))
    return SparseGrads(gather_by_latent(by, x_c, d_values), b_enc, gather_by_latent(by, grad_out, values))
