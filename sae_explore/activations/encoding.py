"""From residuals to activations, for texts and for stores alike: which tokens count, in which precision, and what fires on them."""

from __future__ import annotations

import numpy as np
import torch

from sae_explore.activations.activation_store import StoreWriter
from sae_explore.activations.collect import ignored_rows, residual_blocks, static_ignored
from sae_explore.errors import InputError
from sae_explore.memory import trim
from sae_explore.models.model import LanguageModel
from sae_explore.saes.sae import Sae
from sae_explore.types import SparseRows, TextTrace

AGREEMENT_NEEDED = 0.95  # share of tokens whose ten strongest features are the same set in bf16 as in fp32
_AGREEMENT_TOKENS = 4_096
_TEXT_WINDOWS = 4  # of a pasted text read at once, and pre-activations held at once: a long text should not take much more
_TEXT_ELEMENTS = 1 << 23  # memory than a short one; batches of a store are larger, which is faster
_LONG_TEXT = 256  # tokens from which the memory that reading took is given back at once
_LARGE_STORE = 500_000  # tokens from which a store may be computed in bf16; below, fp32 costs little and equals pasted texts


def bf16_pays() -> bool:
    """Whether this processor multiplies bf16 matrices faster than fp32 ones (AMX or AVX512-BF16), or a GPU does it."""
    return torch.cuda.is_available() or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def training_dtype(requested: str) -> torch.dtype | None:
    """Autocast for residuals to train on: bf16 where it pays. Decided by the hardware alone, so that a resumed build agrees."""
    return torch.bfloat16 if requested == "bfloat16" or (requested == "auto" and bf16_pays()) else None


def store_dtype(
    requested: str, model: LanguageModel, sae: Sae, ids_of, *, context: int, bos: bool
) -> tuple[torch.dtype | None, float | None]:
    """Autocast for the store, and the measured agreement of bf16 with fp32 if it was measured.

    "auto" takes bf16 for a large corpus where it pays and agrees on at least AGREEMENT_NEEDED of the tokens.
    """
    if requested == "float32" or (requested == "auto" and (sum(map(len, ids_of)) < _LARGE_STORE or not bf16_pays())):
        return None, None
    share = bf16_agreement(model, sae, ids_of, context=context, bos=bos)
    return (torch.bfloat16 if requested == "bfloat16" or share >= AGREEMENT_NEEDED else None), share


def bf16_agreement(model: LanguageModel, sae: Sae, ids_of, *, context: int, bos: bool, top: int = 10) -> float:
    """Share of the first few thousand counted tokens whose `top` strongest features are the same set in bf16 as in fp32."""
    sets = []
    for autocast in (None, torch.bfloat16):
        _, last, rows = next(residual_blocks(model, ids_of, context=context, bos=bos, autocast=autocast, block_tokens=_AGREEMENT_TOKENS))
        static = static_ignored(ids_of[:last], model.vocabulary.special, context=context, bos=bos)
        acts, _ = sae.encode(rows[~torch.from_numpy(static)])
        starts, stops = acts.offsets[:-1].tolist(), acts.offsets[1:].tolist()
        sets.append([frozenset(acts.features[a : min(b, a + top)].tolist()) for a, b in zip(starts, stops, strict=True)])
    return float(np.mean([a == b for a, b in zip(*sets, strict=True)])) if sets[0] else 1.0


def write_block(writer: StoreWriter, part: int, sae: Sae, rows: torch.Tensor, ignored: torch.Tensor) -> None:
    """Encode the counted rows of a block and append them; ignored tokens keep their place and hold nothing."""
    found = sparse_rows(sae, rows, ignored)
    writer.write_part(part, found.offsets, found.features, found.values, ignored.cpu().numpy())


@torch.inference_mode()
def sparse_rows(sae: Sae, rows: torch.Tensor, ignored: torch.Tensor, *, at_once: int | None = None) -> SparseRows:
    """Activations of residual rows (n, d_model) on the host, in n rows of which the ignored ones are empty; `at_once` rows at a time."""
    kept = rows[~ignored]
    parts = [sae.encode(part)[0] for part in kept.split(at_once or max(1, len(kept)))]
    counts = np.zeros(len(rows), np.int64)
    counts[~ignored.cpu().numpy()] = np.concatenate([np.diff(acts.offsets.cpu().numpy()) for acts in parts])
    return SparseRows(
        np.concatenate([[0], counts.cumsum()]),
        np.concatenate([acts.features.cpu().numpy().astype(np.uint32) for acts in parts]),
        np.concatenate([acts.values.float().cpu().numpy() for acts in parts]),
    )


def trace_text(model: LanguageModel, sae: Sae, text: str, *, bundle: str, units: str, context: int, bos: bool, median_norm: float,
               max_tokens: int | None = None) -> TextTrace:  # fmt: skip
    """One text through the model and the SAE in fp32: the windows, the ignored tokens and the numbers of a store.

    InputError for a text that is empty, unreadable, or longer than `max_tokens`.
    """
    if not text.strip():
        raise InputError("the text is empty; type or paste something to read")
    tokens = model.tokenize(text)
    if not len(tokens):
        raise InputError("the text holds no tokens that this model knows")
    if max_tokens and len(tokens) > max_tokens:
        raise InputError(f"the text has {len(tokens):,} tokens, the limit here is {max_tokens:,}; paste a shorter piece")
    blocks = [rows for _, _, rows in residual_blocks(model, [tokens.ids], context=context, bos=bos, batch_rows=_TEXT_WINDOWS)]
    static = static_ignored([tokens.ids], model.vocabulary.special, context=context, bos=bos)
    ignored = ignored_rows(blocks[0], static, median_norm)
    found = sparse_rows(sae, blocks[0], ignored, at_once=max(16, _TEXT_ELEMENTS // sae.spec.d_sae))
    if len(tokens) > _LONG_TEXT:
        trim()
    return TextTrace(bundle, model.hook.name, units, text, tokens, ignored.cpu().numpy(), found)
