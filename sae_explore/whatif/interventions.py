"""Change features inside a model while it reads a text, and see what it would write next instead.

At the hook the residual is x = sum_f a_f W_dec[f] + b_dec + error. An edit replaces activations a_f by a'_f:

    x' = x + sum_f (a'_f - a_f) W_dec[f]

so the SAE's own error stays, and only the features change. Where an SAE normalises its input, W_dec is multiplied by the token's own
scale, which brings it into the units of the residual. A TopK SAE does not choose again: a feature that is set fires beside the k
chosen ones. Tokens that count for nothing elsewhere (BOS, special tokens, attention sinks) are never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sae_explore.activations.collect import ignored_rows, static_ignored
from sae_explore.activations.encoding import sparse_rows
from sae_explore.bundles.bundle import Bundle
from sae_explore.bundles.tracer import Tracer, bundle_model
from sae_explore.errors import InputError
from sae_explore.models.model import load_full_model
from sae_explore.models.model_sources import Report
from sae_explore.models.next_token import States, states_from
from sae_explore.models.windows import Window, windows_of
from sae_explore.types import SparseRows, TokenizedText
from sae_explore.whatif.edits import CONTROLS, MAX_TOKENS, TOP, Edit, Effect, Shift, check_edits


@dataclass(frozen=True)
class Reading:
    """One text, or a window of it, read up to the hook: what edits start from."""

    tokens: TokenizedText  # n of them
    lead: int  # 1 if a BOS stands in front, which has a residual but is no token of the text
    ids: torch.Tensor  # (1, lead + n) int64
    residual: torch.Tensor  # (lead + n, d_model)
    counted: np.ndarray  # (n,) bool: tokens that may be changed
    rows: SparseRows
    scale: torch.Tensor  # (n, 1): residual units of a decoder row at each token

    def __len__(self) -> int:
        return len(self.tokens)


def new_activations(reading: Reading, edit: Edit) -> np.ndarray:
    """(n,) float32 activations of the edited feature; tokens that do not count keep theirs, which is none."""
    old = reading.rows.column(edit.feature)
    at = np.zeros(len(reading), bool)
    at[slice(None) if edit.positions is None else list(edit.positions)] = True
    wanted = old * edit.amount if edit.mode == "scale" else np.full(len(old), edit.amount if edit.mode == "set" else 0.0, np.float32)
    if edit.mode == "patch":
        wanted[list(edit.positions or ())] = edit.values
    return np.where(at & reading.counted, wanted, old).astype(np.float32)


def coefficients(reading: Reading, edits: Sequence[Edit]) -> torch.Tensor:
    """(n, edits) by how much each edited feature's row of W_dec is added to the residual, in residual units."""
    changes = [new_activations(reading, edit) - reading.rows.column(edit.feature) for edit in edits]
    return torch.from_numpy(np.stack(changes, 1)).to(reading.scale.device) * reading.scale


def random_like(rows: torch.Tensor, seed: int) -> torch.Tensor:
    """Random directions of the same lengths as the rows (m, d)."""
    drawn = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed)).to(rows.device)
    return drawn * (rows.norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True))


@dataclass(frozen=True)
class Lab:
    """A bundle's model in full beside its SAE. Shared by all threads: holds no per-call state, and leaves none on the model."""

    tracer: Tracer
    full: nn.Module

    @classmethod
    def load(cls, bundle: Bundle, tracer: Tracer, *, report: Report | None = None, load=load_full_model) -> Lab:
        """Load the blocks above the hook too. `load(folder)` may share models between bundles. Files in fp32 are memory-mapped, so
        that both copies of the lower blocks are the same pages of memory."""
        if report:
            report("loading the whole model", None)
        return cls(tracer, load(bundle_model(bundle).folder))

    @property
    def limit(self) -> int:
        """Tokens of text that are read at once."""
        return min(MAX_TOKENS, self.tracer.context) - int(self.tracer.bos)

    @property
    def megabytes(self) -> int:
        """Memory of the whole model's weights, each counted once."""
        return round(sum(p.numel() * p.element_size() for p in self.full.parameters()) / 1e6)

    def rows_of(self, features: Sequence[int]) -> torch.Tensor:
        """(m, d_model) fp32 decoder rows."""
        return self.tracer.sae.W_dec[list(features)].float()

    def window(self, n: int, position: int) -> tuple[int, int]:
        """(start, stop) of the stretch of a text of n tokens in which the store reads this token: the whole text if it is short."""
        found = next(w for w in windows_of(n, self.limit) if position < w.stop)
        return found.start, found.stop

    @torch.inference_mode()
    def read(self, text: str, start: int = 0, stop: int | None = None) -> Reading:
        """Tokens start..stop of a text (all of it) up to the hook; InputError if that is nothing, or more than `limit`."""
        model, sae, lead = self.tracer.model, self.tracer.sae, int(self.tracer.bos)
        tokens = _cut(model.tokenize(text), start, stop)
        n = len(tokens)
        if not text.strip() or not n:
            raise InputError("the text is empty; type or paste something to read")
        if n > self.limit:
            raise InputError(f"the text has {n:,} tokens, the limit here is {self.limit}; choose a shorter piece")
        ids = model.window_ids([Window(0, 0, n, 0)], [tokens.ids], bos=bool(lead)).to(model.device)
        residual = model.residual(ids)[0]
        static = static_ignored([tokens.ids], model.vocabulary.special, context=n + lead, bos=bool(lead))
        ignored = ignored_rows(residual[lead:], static, self.tracer.median_norm)
        scale = sae.prepare(residual[lead:])[1].scale
        scale = residual.new_ones(n, 1) if scale is None else scale.float()
        return Reading(tokens, lead, ids, residual, ~ignored.cpu().numpy(), sparse_rows(sae, residual[lead:], ignored), scale)

    def states(self, reading: Reading, deltas: torch.Tensor) -> States:
        """The last states for several changes (rows, n, d_model) of the text's residuals, one row each."""
        residual = reading.residual.repeat(len(deltas), 1, 1)
        residual[:, reading.lead :] += deltas
        return states_from(self.full, self.tracer.model.hook, reading.ids, residual)

    @torch.inference_mode()
    def effect(self, reading: Reading, edits: Sequence[Edit], *, seed: int = 0) -> Effect:
        """The change's effect at every token. The upper blocks run on 2 + CONTROLS copies of the text."""
        check_edits(edits, len(reading), self.tracer.sae.spec.d_sae)
        by, rows = coefficients(reading, edits), self.rows_of([edit.feature for edit in edits])
        delta = by @ rows
        controls = [by @ random_like(rows, seed + i) for i in range(CONTROLS)]
        states = self.states(reading, torch.stack([torch.zeros_like(delta), delta, *controls]))
        targets = torch.cat([reading.ids[0, reading.lead + 1 :], reading.ids.new_zeros(1)])
        parts = [_compare(logits, targets[a - reading.lead : b - reading.lead]) for a, b, logits in states.chunks(start=reading.lead)]
        kl, control, loss_before, loss_after, *lists = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
        loss_before[-1] = loss_after[-1] = np.nan
        size = delta.norm(dim=1) / reading.residual[reading.lead :].norm(dim=1)
        shifts = [Shift(*lists[i : i + 3]) for i in range(0, len(lists), 3)]
        return Effect((delta != 0).any(1).cpu().numpy(), size.cpu().numpy(), kl, control, loss_before, loss_after, *shifts)


def _cut(tokens: TokenizedText, start: int, stop: int | None) -> TokenizedText:
    part = slice(start, stop)
    return TokenizedText(tokens.ids[part], tokens.texts[part], tokens.bytes[part], tokens.special[part])


def _compare(logits: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """Of logits (rows, c, vocab), rows: before, after, controls ..., and the tokens that follow (c,): the columns of an `Effect`."""
    log_p = torch.log_softmax(logits, -1)
    p = log_p[:2].exp()
    before, after = p
    kl = [(before * (log_p[0] - other)).sum(-1).clamp_min(0) for other in log_p[1:]]
    losses = [-row.gather(-1, targets[:, None])[:, 0] for row in log_p[:2]]
    lists = []
    for score in (after - before, before - after, before, after):
        ids = torch.topk(score, min(TOP, score.shape[-1]), dim=-1).indices
        lists += [ids.int(), before.gather(-1, ids), after.gather(-1, ids)]
    return [kl[0], torch.stack(kl[1:]).mean(0), *losses, *lists]
