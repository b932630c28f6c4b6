"""Steering: write on from a text with features pushed, beside the same model left alone.

At every new token (and, if wanted, at those of the text) the residual at the hook becomes x + sum_f amount_f W_dec[f], amounts in the
SAE's own units (Turner et al. 2023, arXiv:2308.10248, with a feature's direction). Both continuations run as two rows of one batch
with one cache of keys and values, and draw with the same random numbers: where nothing is pushed they are the same.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence

import torch

from sae_explore.activations.collect import SINK_FACTOR
from sae_explore.errors import InputError
from sae_explore.models.next_token import states_of
from sae_explore.models.splice import with_edit
from sae_explore.models.tokens import Vocabulary
from sae_explore.whatif.edits import Push, Sampling, Step, check_steering
from sae_explore.whatif.interventions import Lab, Reading


def continuations(
    lab: Lab,
    prompt: str,
    pushes: Sequence[Push],
    *,
    sampling: Sampling | None = None,
    new_tokens: int = 40,
    on_prompt: bool = True,
) -> Iterator[Step]:
    """Both continuations of a text, token by token. Closing the iterator stops the work.

    InputError, before the first token, for options that are not understood.
    """
    sampling = sampling or Sampling()
    check_steering(pushes, sampling, new_tokens, lab.tracer.sae.spec.d_sae)
    reading = lab.read(prompt)
    if len(reading) + reading.lead + new_tokens > lab.tracer.model.max_positions:
        raise InputError(f"{len(reading)} tokens and {new_tokens} new ones are more than this model can read; ask for fewer")
    return _steps(lab, reading, pushes, sampling, new_tokens, on_prompt)


class _Pushed:
    """The edit of one generation: adds to the second row of the batch at the tokens that count."""

    def __init__(self, lab: Lab, pushes: Sequence[Push]):
        amounts = torch.tensor([push.amount for push in pushes])
        self._direction = (amounts @ lab.rows_of([push.feature for push in pushes]).cpu()).to(lab.tracer.model.device)
        self._sae, self._most = lab.tracer.sae, SINK_FACTOR * lab.tracer.median_norm
        self.wanted = torch.zeros(0, dtype=torch.bool)  # (tokens of the coming run,)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        steered = x[1]
        scale = self._sae.prepare(steered)[1].scale
        at = self.wanted.to(x.device) & (steered.norm(dim=-1) <= self._most)
        push = at[:, None] * self._direction * (1.0 if scale is None else scale)
        return torch.stack([x[0], steered + push.to(x.dtype)])


@torch.inference_mode()
def _steps(lab: Lab, reading: Reading, pushes: Sequence[Push], sampling: Sampling, new_tokens: int, on_prompt: bool) -> Iterator[Step]:
    from transformers import DynamicCache

    vocabulary, device = lab.tracer.model.vocabulary, reading.ids.device
    pushed = _Pushed(lab, pushes)
    view = with_edit(lab.full, lab.tracer.model.hook, pushed)
    cache, dice = DynamicCache(config=lab.full.config), torch.Generator().manual_seed(sampling.seed)
    writers, ended = (_Writer(vocabulary), _Writer(vocabulary)), [False, False]
    ids = reading.ids.expand(2, -1)
    counted = torch.from_numpy(reading.counted) & on_prompt
    pushed.wanted = torch.cat([torch.zeros(reading.lead, dtype=torch.bool), counted])
    for step in range(new_tokens):
        states = states_of(view, ids, cache)
        logits = states.logits(ids.shape[1] - 1, ids.shape[1])[:, 0]
        chosen = draw(logits, sampling, float(torch.rand((), generator=dice, dtype=torch.float64)))
        ended = [was or bool(vocabulary.special[i]) for was, i in zip(ended, chosen, strict=True)]
        last = all(ended) or step == new_tokens - 1
        said = [w.add(None if end else i, last=last) for w, i, end in zip(writers, chosen, ended, strict=True)]
        yield Step(tuple(None if end else i for i, end in zip(chosen, ended, strict=True)), *said, tuple(ended))
        if last:
            return
        ids = torch.tensor(chosen, device=device)[:, None]
        pushed.wanted = torch.ones(1, dtype=torch.bool)


def draw(logits: torch.Tensor, sampling: Sampling, u: float) -> list[int]:
    """A token for each row of logits (rows, vocab). `u` in [0, 1) decides for all rows: likelier tokens lie below less likely ones."""
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    p, order = torch.softmax(logits.double() / sampling.temperature, -1).sort(dim=-1, descending=True, stable=True)
    sums = p.cumsum(-1)
    kept = torch.where(sums - p < sampling.top_p, sums, -1.0).amax(-1, keepdim=True)  # the mass of the tokens that may be drawn
    at = torch.searchsorted(sums, u * kept, right=True).clamp_max(p.shape[-1] - 1)
    return order.gather(-1, at)[:, 0].tolist()


class _Writer:
    """Bytes of tokens to text: a character appears when its last byte is there."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary, self._decoder = vocabulary, codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int | None, *, last: bool) -> str:
        """What one more token adds (None: no token); with `last` also what is left of an unfinished character."""
        return self._decoder.decode(b"" if token is None else self._vocabulary.bytes_of(token), last)
