"""Activations to train on: in memory while they fit, else fp16 shards on disk read through a bounded shuffle buffer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from sae_explore.errors import InputError, ModelError

SHARD_ROWS = 65_536
BUFFER_ROWS = 8 * SHARD_ROWS  # rows held at once when reading from disk


class MemoryActivations:
    """Rows held in one tensor (n, d_in)."""

    def __init__(self, rows: torch.Tensor):
        self.rows = rows
        self.tokens, self.d_in = rows.shape

    def sample(self, rows: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed + 1)
        return self.rows[torch.randperm(self.tokens, generator=generator)[:rows].to(self.rows.device)]

    def batches(self, epoch: int, batch: int, seed: int, skip: int = 0) -> Iterator[torch.Tensor]:
        """Whole batches of one epoch in an order that depends on (seed, epoch) only, the first `skip` left out."""
        generator = torch.Generator().manual_seed(hash((seed, epoch)) & 0x7FFFFFFF)
        order = torch.randperm(self.tokens, generator=generator).to(self.rows.device)
        for i in range(skip, self.tokens // batch):
            yield self.rows[order[i * batch : (i + 1) * batch]]


def half_rows(rows: torch.Tensor) -> np.ndarray:
    """Rows in fp16; ModelError where they do not fit, because one infinite row would spoil all training."""
    half = rows.to(torch.float16).cpu().numpy()
    if not np.isfinite(half).all():
        raise ModelError(
            f"residuals of up to {float(rows.abs().max()):.3g} do not fit into fp16, in which activations are kept; choose an earlier layer"
        )
    return half


class ShardWriter:
    """Appends rows to fp16 shards in a folder; `finish` writes the index that makes them readable.

    Rows beyond fp16's range are refused; attention sinks, which reach it first, are left out of training before.
    """

    def __init__(self, folder: Path, d_in: int, shard_rows: int = SHARD_ROWS):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.d_in, self.shard_rows = folder, d_in, shard_rows
        self._pending: list[np.ndarray] = []
        self._pending_rows = 0
        self.sizes: list[int] = []

    def add(self, rows: torch.Tensor) -> None:
        self._pending.append(half_rows(rows))
        self._pending_rows += len(rows)
        while self._pending_rows >= self.shard_rows:
            self._write(self.shard_rows)

    def _write(self, size: int) -> None:
        rows = np.concatenate(self._pending)
        np.save(self.folder / f"shard-{len(self.sizes):05d}.npy", rows[:size])
        self._pending, self._pending_rows = [rows[size:]], len(rows) - size
        self.sizes.append(size)

    def finish(self) -> ShardedActivations:
        if self._pending_rows:
            self._write(self._pending_rows)
        if not self.sizes:
            raise InputError("there are no tokens to train on: every token of the texts is left out, or there are no texts")
        partial = self.folder / "index.partial"
        partial.write_text(json.dumps({"d_in": self.d_in, "sizes": self.sizes}))
        partial.replace(self.folder / "index.json")  # its presence says that all shards are there
        return ShardedActivations(self.folder)


class ShardedActivations:
    """Rows on disk. An epoch reads the shards in random order, a buffer of several at a time, shuffled within."""

    def __init__(self, folder: Path, buffer_rows: int = BUFFER_ROWS):
        index = json.loads((folder / "index.json").read_text())
        self.folder, self.d_in, self.sizes = folder, int(index["d_in"]), list(index["sizes"])
        self.tokens = sum(self.sizes)
        self.buffer_shards = max(1, buffer_rows // max(self.sizes))

    def _read(self, shard: int) -> np.ndarray:
        return np.load(self.folder / f"shard-{shard:05d}.npy", mmap_mode="r")

    def sample(self, rows: int, seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed + 1)
        chosen = np.sort(rng.choice(self.tokens, min(rows, self.tokens), replace=False))
        edges = np.cumsum([0, *self.sizes])
        of_shard = np.split(chosen, np.searchsorted(chosen, edges[1:-1]))
        found = np.concatenate([self._read(shard)[at - edges[shard]] for shard, at in enumerate(of_shard)])
        return torch.from_numpy(found[rng.permutation(len(found))])

    def batches(self, epoch: int, batch: int, seed: int, skip: int = 0) -> Iterator[torch.Tensor]:
        """As `MemoryActivations.batches`; what does not fill a batch is carried into the next buffer."""
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(self.sizes))
        rest = np.zeros((0, self.d_in), np.float16)
        for a in range(0, len(order), self.buffer_shards):
            group = order[a : a + self.buffer_shards]
            rows = sum(self.sizes[s] for s in group)
            shuffled = rng.permutation(rows + len(rest))
            usable = len(shuffled) // batch
            if skip >= usable and a + self.buffer_shards < len(order) and not len(shuffled) % batch:
                skip -= usable  # a resumed run need not read what it has used, where no rest is carried over
                rest = rest[:0]
                continue
            buffer = np.concatenate([rest, *(self._read(s) for s in group)])
            for i in range(usable):
                if skip:
                    skip -= 1
                    continue
                yield torch.from_numpy(buffer[shuffled[i * batch : (i + 1) * batch]])
            rest = buffer[shuffled[usable * batch :]]
