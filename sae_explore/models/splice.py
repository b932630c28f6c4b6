"""A full causal LM with its residual stream changed at one hook point, without hooks.

Each call works on a shallow copy of the model object that shares all weights and has its own list of blocks, so that a
model shared by many visitors is never altered and calls need no lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from sae_explore.errors import ModelError
from sae_explore.models.model_structure import StandIn, blocks_of, blocks_path, with_modules
from sae_explore.types import HookPoint

Edit = Callable[[torch.Tensor], torch.Tensor]


class _Skip(StandIn):
    """In place of a block below the hook, where its result is replaced anyway. Answers in the shape that its kind answers in."""

    def __init__(self, block: nn.Module, in_tuple: bool):
        super().__init__(block)
        self.in_tuple = in_tuple

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs):
        return (hidden_states, None) if self.in_tuple else hidden_states


class _Edited(StandIn):
    """A block whose input or output goes through `edit`."""

    def __init__(self, block: nn.Module, edit: Edit, before: bool):
        super().__init__(block)
        self.edit, self.before = edit, before

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs):
        if self.before:
            return self.block(self.edit(hidden_states), *args, **kwargs)
        out = self.block(hidden_states, *args, **kwargs)
        return (self.edit(out[0]), *out[1:]) if isinstance(out, tuple) else self.edit(out)


class _Seen(Exception):
    """Ends a probing run as soon as the first block has answered."""


class _Probe(StandIn):
    def forward(self, hidden_states: torch.Tensor, *args, **kwargs):
        raise _Seen(isinstance(self.block(hidden_states, *args, **kwargs), tuple))


def with_edit(model: nn.Module, hook: HookPoint, edit: Edit, *, skip_below: bool = False) -> nn.Module:
    """A view of a causal LM in which `edit` maps the residual (batch, tokens, d_model) at the hook to a new one.

    With `skip_below` the blocks below the hook do nothing where nothing else needs them: right only if `edit` ignores its argument.
    """
    blocks = list(blocks_of(model))
    if not 0 <= hook.block < len(blocks):
        raise ModelError(f"the model has {len(blocks)} blocks; there is no {hook.name}")
    if skip_below and not getattr(model.config, "num_kv_shared_layers", None):  # Gemma 4: late blocks read keys and values of early ones
        in_tuple = _answers_in_tuple(model, blocks)
        blocks[: hook.depth] = [_Skip(block, in_tuple) for block in blocks[: hook.depth]]
    blocks[hook.block] = _Edited(blocks[hook.block], edit, before=hook.site == "pre")
    return _with_blocks(model, blocks)


def _with_blocks(model: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
    """A copy of the model object that shares everything with it but the list of blocks."""
    return with_modules(model, {blocks_path(model): nn.ModuleList(blocks)})


def _answers_in_tuple(model: nn.Module, blocks: Sequence[nn.Module]) -> bool:
    """Whether this model's blocks return (residual, ...), as GPT-Neo's and Falcon's do, or the residual alone. One token, one block."""
    try:
        ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        _with_blocks(model, [_Probe(blocks[0]), *blocks[1:]])(input_ids=ids, use_cache=False)
    except _Seen as seen:
        return seen.args[0]
    raise ModelError("the blocks of this model are not run one after the other; it cannot be spliced")


@torch.inference_mode()
def logits_from(model: nn.Module, hook: HookPoint, ids: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Logits (batch, tokens, vocab) of the rest of the model when the residual at the hook is `residual`."""
    return with_edit(model, hook, lambda _: residual, skip_below=True)(input_ids=ids, use_cache=False).logits


def next_token_losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Cross entropy in nats of each next token: (batch, tokens - 1), entry t is the loss of predicting token t + 1."""
    log_p = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    return -log_p.gather(-1, ids[:, 1:, None])[..., 0]
