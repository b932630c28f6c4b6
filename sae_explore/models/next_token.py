"""What a model would write next, from the residual at a hook point: the blocks above it, then the unembedding in parts.

The logits of all tokens of a text at once are as large as tokens x vocabulary (26 MB for 128 tokens of GPT-2, several times that
for newer models), so the last states are kept and turned into logits a few positions at a time, by the model's own code: what it
does after its unembedding (soft caps, scales) is done here too. Nothing is left on the shared model; see `splice`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from sae_explore.models.model_structure import StandIn, path_of, with_modules
from sae_explore.models.splice import with_edit
from sae_explore.types import HookPoint

_LOGITS_AT_ONCE = 1 << 23  # elements: 32 MB


class _Answered(StandIn):
    """In place of the base model: gives an answer that is there already."""

    def __init__(self, base: nn.Module, answer):
        super().__init__(base)
        self.answer = answer

    def forward(self, *args, **kwargs):
        return self.answer


class States:
    """The last states (batch, tokens, d_model) of one run, after the final norm, and the way from them to logits."""

    def __init__(self, model: nn.Module, answer, ids: torch.Tensor):
        self._model, self._answer, self._ids = model, answer, ids
        self._base = path_of(model, model.base_model)

    @property
    def last(self) -> torch.Tensor:
        return self._answer.last_hidden_state

    def logits(self, first: int, stop: int) -> torch.Tensor:
        """fp32 logits (batch, stop - first, vocab) of the predictions made at these positions."""
        answer = dataclasses.replace(self._answer, last_hidden_state=self.last[:, first:stop])
        view = with_modules(self._model, {self._base: _Answered(self._model.base_model, answer)})
        return view(input_ids=self._ids[:, first:stop], use_cache=False).logits.float()

    def chunks(self, start: int = 0) -> Iterator[tuple[int, int, torch.Tensor]]:
        """(first, stop, logits) over all positions from `start` on, in bounded memory."""
        n, step = self.last.shape[1], max(1, _LOGITS_AT_ONCE // (len(self.last) * self._model.get_output_embeddings().weight.shape[0]))
        for first in range(start, n, step):
            stop = min(n, first + step)
            yield first, stop, self.logits(first, stop)


def states_from(model: nn.Module, hook: HookPoint, ids: torch.Tensor, residual: torch.Tensor) -> States:
    """Run the blocks above the hook on residuals (batch, tokens, d_model), one for each row; `ids` (1, tokens). Keeps gradients."""
    ids = ids.expand(len(residual), -1)
    view = with_edit(model, hook, lambda _: residual, skip_below=True)
    return States(model, view.base_model(input_ids=ids, use_cache=False), ids)


def states_of(view: nn.Module, ids: torch.Tensor, cache=None) -> States:
    """Run a whole model, or a view of one with an edit in it, on token ids (batch, tokens) that follow what is in the cache."""
    return States(view, view.base_model(input_ids=ids, cache=cache, use_cache=cache is not None), ids)
