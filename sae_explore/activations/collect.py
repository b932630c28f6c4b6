"""Collect residual activations to train on: documents -> windows -> fp16 shards on disk, resumable after a kill.

Left out: the BOS and special tokens, the first position of a window where there is no BOS, and attention sinks elsewhere
(rows whose norm exceeds `SINK_FACTOR` times the median norm). Training windows do not overlap: every token once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from sae_explore.activations.activation_shards import SHARD_ROWS, ShardedActivations, ShardWriter, half_rows
from sae_explore.models.model import LanguageModel
from sae_explore.models.windows import blocks_of_documents, length_batches, windows_of

SINK_FACTOR = 5.0
BLOCK_TOKENS = 16_384  # documents are worked on in blocks of about this many tokens
# Padded tokens in a forward batch. On a CPU the activations of about a thousand stay in its caches: GPT-2 reads a fifth to a quarter
# faster than in batches of four thousand. A GPU wants many.
MAX_BATCH_TOKENS, MAX_BATCH_TOKENS_GPU = 1_024, 8_192


def capacity_of(context: int, *, bos: bool) -> int:
    """Tokens of a document that fit into a window."""
    return context - int(bos)


def residual_blocks(
    model: LanguageModel,
    ids_of: Sequence[np.ndarray],
    *,
    context: int,
    bos: bool,
    batch_rows: int = 32,
    overlap: bool = True,
    autocast: torch.dtype | None = None,
    first_document: int = 0,
    block_tokens: int = BLOCK_TOKENS,
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Residuals of all tokens of documents, in document order, block by block: (first, last, (tokens, d_model)).

    A row for every token, special ones included: `ignored_rows` says which to leave out.
    """
    capacity = capacity_of(context, bos=bos)
    lengths = [len(ids) for ids in ids_of]
    for a, b in blocks_of_documents(lengths[first_document:], block_tokens):
        first, last = first_document + a, first_document + b
        starts = np.concatenate([[0], np.cumsum(lengths[first:last])])
        out = torch.zeros(int(starts[-1]), model.d_model, device=model.device)
        windows = [w for d in range(first, last) for w in windows_of(lengths[d], capacity, document=d, overlap=overlap)]
        for batch in length_batches(windows, batch_rows, batch_tokens(model.device)):
            for window, rows in model.window_residuals(batch, ids_of, bos=bos, autocast=autocast):
                at = int(starts[window.document - first])
                out[at + window.keep : at + window.stop] = rows
        yield first, last, out


def batch_tokens(device: torch.device) -> int:
    """Padded tokens that a device reads best at once."""
    return MAX_BATCH_TOKENS if device.type == "cpu" else MAX_BATCH_TOKENS_GPU


def static_ignored(ids_of: Sequence[np.ndarray], special: np.ndarray, *, context: int, bos: bool, overlap: bool = True) -> np.ndarray:
    """Tokens that are left out whatever their activations: special ids, and the first position of a window without a BOS."""
    parts = []
    for ids in ids_of:
        ignored = special[ids].copy()
        if not bos and len(ids):
            for window in windows_of(len(ids), context, overlap=overlap):
                if window.keep == window.start:
                    ignored[window.start] = True
        parts.append(ignored)
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def ignored_rows(rows: torch.Tensor, static: np.ndarray, median_norm: float) -> torch.Tensor:
    """The static ones plus attention sinks: rows whose norm exceeds SINK_FACTOR times the corpus median."""
    return torch.from_numpy(static).to(rows.device) | (rows.norm(dim=-1) > SINK_FACTOR * median_norm)


def median_norm_of(rows: torch.Tensor, static: np.ndarray) -> float:
    """Median residual norm over the tokens that count; 0 if there are none."""
    kept = rows[~torch.from_numpy(static).to(rows.device)]
    return float(kept.norm(dim=-1).median()) if len(kept) else 0.0


def collect_activations(
    model: LanguageModel,
    ids_of: Sequence[np.ndarray],
    folder: Path,
    *,
    context: int,
    bos: bool,
    max_tokens: int | None = None,
    batch_rows: int = 32,
    autocast: torch.dtype | None = None,
    shard_rows: int = SHARD_ROWS,
    progress: Callable[[int], None] | None = None,
) -> tuple[ShardedActivations, dict]:
    """Write the activations of documents as shards; returns them and {"tokens", "sinks", "median_norm", "documents"}.

    Every block is a file of its own, written atomically with the counters beside it, so that a killed run goes on after its
    last whole block and ends with the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_file = folder / "state.json"
    state = {"next_document": 0, "sizes": [], "tokens": 0, "sinks": 0, "median_norm": 0.0, "documents": 0}
    if state_file.is_file():
        state = json.loads(state_file.read_text())
    merged = (folder / "index.json").is_file()
    blocks = residual_blocks(
        model,
        ids_of,
        context=context,
        bos=bos,
        batch_rows=batch_rows,
        overlap=False,
        autocast=autocast,
        first_document=state["next_document"],
        block_tokens=min(BLOCK_TOKENS, shard_rows),
    )
    if not merged and (max_tokens is None or state["tokens"] < max_tokens):
        for first, last, rows in blocks:
            static = static_ignored(ids_of[first:last], model.vocabulary.special, context=context, bos=bos, overlap=False)
            state["median_norm"] = state["median_norm"] or median_norm_of(rows, static)
            ignored = ignored_rows(rows, static, state["median_norm"])
            kept = half_rows(rows[~ignored])
            _save_array(folder / f"block-{len(state['sizes']):05d}.npy", kept)
            state["sizes"].append(len(kept))
            state["tokens"] += len(kept)
            state["sinks"] += int(ignored.sum()) - int(static.sum())
            state["next_document"] = state["documents"] = last
            _save_json(state_file, state)
            if progress:
                progress(state["tokens"])
            if max_tokens is not None and state["tokens"] >= max_tokens:
                break
    info = {key: state[key] for key in ("tokens", "sinks", "median_norm", "documents")}
    if not merged:
        _merge_blocks(folder, model.d_model, len(state["sizes"]), shard_rows)
    for block in folder.glob("block-*.npy"):
        block.unlink()
    return ShardedActivations(folder), info


def _merge_blocks(folder: Path, d_in: int, n_blocks: int, shard_rows: int) -> None:
    """Blocks of uneven size to shards of even size, so that a shuffle buffer holds a known number of rows."""
    writer = ShardWriter(folder, d_in, shard_rows)
    for i in range(n_blocks):
        writer.add(torch.from_numpy(np.load(folder / f"block-{i:05d}.npy")))
    writer.finish()


def _save_array(path: Path, array: np.ndarray) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, array)
    os.replace(partial, path)


def _save_json(path: Path, value: dict) -> None:
    partial = path.with_suffix(".partial-json")
    partial.write_text(json.dumps(value))
    os.replace(partial, path)
