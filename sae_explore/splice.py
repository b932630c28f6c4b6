"""A full causal LM with its residual stream changed after one block, without hooks.

Each call works on a shallow copy of the model object that shares all weights and has its own list of blocks, so that a
model shared by many visitors is never altered and calls need no lock.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from sae_explore.errors import ModelError
from sae_explore.model import _BLOCK_NAMES, _find
from sae_explore.types import HookPoint

Edit = Callable[[torch.Tensor], torch.Tensor]


class _Skip(nn.Module):
    """In place of a block below the hook, where its result is replaced anyway."""

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return hidden_states


class _Edited(nn.Module):
    """A block whose input or output goes through `edit`."""

    def __init__(self, block: nn.Module, edit: Edit, before: bool):
        super().__init__()
        self.block, self.edit, self.before = block, edit, before

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if self.before:
            return self.block(self.edit(hidden_states), *args, **kwargs)
        out = self.block(hidden_states, *args, **kwargs)
        if not isinstance(out, torch.Tensor):
            raise ModelError("a block of this model does not return its residual stream; it cannot be spliced")
        return self.edit(out)


def with_edit(model: nn.Module, hook: HookPoint, edit: Edit, *, skip_below: bool = False) -> nn.Module:
    """A view of a causal LM in which `edit` maps the residual (batch, tokens, d_model) at the hook to a new one.

    With `skip_below` the blocks below the hook do nothing: right only if `edit` ignores its argument.
    """
    base_name = model.base_model_prefix
    base = copy.copy(getattr(model, base_name))
    base._modules = dict(base._modules)
    name = _find(base, _BLOCK_NAMES, "blocks")
    blocks = list(base._modules[name])
    if not 0 <= hook.block < len(blocks):
        raise ModelError(f"the model has {len(blocks)} blocks; there is no {hook.name}")
    if skip_below:
        blocks[: hook.block] = [_Skip() for _ in range(hook.block)]
    inner = _Skip() if skip_below and hook.site == "post" else blocks[hook.block]
    blocks[hook.block] = _Edited(inner, edit, before=hook.site == "pre")
    base._modules[name] = nn.ModuleList(blocks)
    view = copy.copy(model)
    view._modules = dict(view._modules)
    view._modules[base_name] = base
    return view


@torch.inference_mode()
def logits_from(model: nn.Module, hook: HookPoint, ids: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Logits (batch, tokens, vocab) of the rest of the model when the residual at the hook is `residual`."""
    return with_edit(model, hook, lambda _: residual, skip_below=True)(input_ids=ids, use_cache=False).logits


def next_token_losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Cross entropy in nats of each next token: (batch, tokens - 1), entry t is the loss of predicting token t + 1."""
    log_p = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    return -log_p.gather(-1, ids[:, 1:, None])[..., 0]
