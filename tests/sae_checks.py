"""What tests of SAEs compare: dense activations and reconstructions of rows."""

import torch

from sae_explore.saes.sae import Sae


def dense(sae: Sae, x: torch.Tensor) -> torch.Tensor:
    """(n, d_sae) activations."""
    acts, _ = sae.encode(x)
    out = torch.zeros(len(x), sae.spec.d_sae)
    rows = torch.repeat_interleave(torch.arange(len(x)), acts.offsets.diff())
    out[rows, acts.features] = acts.values
    return out


def rebuilt(sae: Sae, x: torch.Tensor) -> torch.Tensor:
    acts, info = sae.encode(x)
    return sae.decode(acts, info)
