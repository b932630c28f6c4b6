"""The activation store: which features fire on a token, and on which tokens a feature fires, strongest first.

Token-major: CSR over all tokens of all documents. Feature-major: for each feature its tokens in order of falling activation,
made from the token-major arrays by a counting sort on memory-mapped files. Values are fp16 (overflow is refused). Opening and
querying need numpy only and touch only the pages that a query reads.

Past `CAP` firings of a feature, the feature-major side keeps the strongest `KEEP_TOP` and a seeded reservoir of
`KEEP_PER_INTERVAL` for each of ten equal-width intervals; counts, moments and histograms are of all firings.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sae_explore.errors import BundleError
from sae_explore.tensor_file import TensorWriter, read_tensors
from sae_explore.types import SparseRows

STORE_FILE = "activations.safetensors"
INTERVALS = 10
CAP = 2_000_000
KEEP_TOP = 4_096
KEEP_PER_INTERVAL = 512
_CHUNK = 4_000_000  # entries worked on at once


class FeatureTotals(NamedTuple):
    """Exact totals over all firings of each feature, (d_sae,) arrays."""

    count: np.ndarray
    max: np.ndarray
    sum: np.ndarray
    sum_squares: np.ndarray
    sum_cubes: np.ndarray
    sum_fourths: np.ndarray


class StoreWriter:
    """Appends rows of tokens to raw files in a working folder; `finish` sorts them feature-major and writes the store."""

    def __init__(self, folder: Path, d_sae: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.d_sae = folder, d_sae
        self.index_type = np.uint16 if d_sae <= 1 << 16 else np.uint32

    def write_part(self, part: int, offsets: np.ndarray, features: np.ndarray, values: np.ndarray) -> None:
        """One block of tokens as a file of its own, atomically: offsets (n + 1,), features and values (nnz,)."""
        if len(values) and (float(values.max()) > 65_000 or not np.isfinite(values).all()):
            raise BundleError(f"an activation of {float(np.nanmax(values)):.3g} does not fit into fp16; is this SAE made for this model?")
        path = self.folder / f"part-{part:06d}.npz"
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(
                file,
                counts=np.diff(offsets).astype(np.uint32),
                features=features.astype(self.index_type),
                values=np.maximum(values.astype(np.float16), np.float16(6e-8)),
            )
        partial.replace(path)

    def parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.npz"))

    def finish(self, target: Path, *, seed: int = 0, progress: Callable[[float], None] | None = None) -> FeatureTotals:
        """Write the store to `target`; returns the totals of every feature."""
        parts = self.parts()
        counts = [np.load(p)["counts"] for p in parts]
        per_token = np.concatenate(counts) if counts else np.zeros(0, np.uint32)
        offsets = np.concatenate([[0], np.cumsum(per_token, dtype=np.int64)])
        nnz = int(offsets[-1])
        totals = self._totals(parts)
        starts = np.concatenate([[0], np.cumsum(totals.count)]).astype(np.int64)
        kept = np.where(totals.count > CAP, KEEP_TOP + INTERVALS * KEEP_PER_INTERVAL, totals.count)
        kept_starts = np.concatenate([[0], np.cumsum(np.minimum(kept, totals.count))]).astype(np.int64)
        with TensorWriter(
            target,
            {
                "token_offsets": (np.int64, (len(offsets),)),
                "token_features": (self.index_type, (nnz,)),
                "token_values": (np.float16, (nnz,)),
                "feature_offsets": (np.int64, (self.d_sae + 1,)),
                "feature_tokens": (np.uint32, (int(kept_starts[-1]),)),
                "feature_values": (np.float16, (int(kept_starts[-1]),)),
            },
        ) as out:
            out.map("token_offsets")[:] = offsets
            self._copy_token_major(parts, out)
            scratch = self.folder / "sorted.bin"
            self._counting_sort(out, per_token, starts, scratch)
            self._rank(out, scratch, totals, starts, kept_starts, seed, progress)
            scratch.unlink(missing_ok=True)
        return totals

    def _totals(self, parts: list[Path]) -> FeatureTotals:
        count = np.zeros(self.d_sae, np.int64)
        maximum = np.zeros(self.d_sae, np.float32)
        powers = np.zeros((4, self.d_sae))
        for part in parts:
            data = np.load(part)
            features, values = data["features"], data["values"].astype(np.float64)
            count += np.bincount(features, minlength=self.d_sae)
            np.maximum.at(maximum, features, values.astype(np.float32))
            for power in range(4):
                powers[power] += np.bincount(features, weights=values ** (power + 1), minlength=self.d_sae)
        return FeatureTotals(count, maximum, *powers)

    def _copy_token_major(self, parts: list[Path], out: TensorWriter) -> None:
        features, values, at = out.map("token_features"), out.map("token_values"), 0
        for part in parts:
            data = np.load(part)
            n = len(data["features"])
            features[at : at + n], values[at : at + n] = data["features"], data["values"]
            at += n

    def _counting_sort(self, out: TensorWriter, per_token: np.ndarray, starts: np.ndarray, scratch: Path) -> None:
        """Scatter (token, value) pairs to their features' ranges, stable, a chunk at a time."""
        features, values = out.map("token_features"), out.map("token_values")
        pairs = np.dtype([("token", np.uint32), ("value", np.float16)])
        if not len(features):
            scratch.touch()
            return
        sorted_pairs = np.memmap(scratch, pairs, "w+", shape=(len(features),))
        cursor = starts[:-1].copy()
        token_ends = np.cumsum(per_token, dtype=np.int64)
        for a in range(0, len(features), _CHUNK):
            chunk = np.asarray(features[a : a + _CHUNK])
            order = np.argsort(chunk, kind="stable")
            by_feature = chunk[order]
            counts = np.bincount(by_feature, minlength=self.d_sae)
            first = np.concatenate([[0], np.cumsum(counts)[:-1]])
            position = cursor[by_feature] + np.arange(len(order)) - first[by_feature]
            tokens = np.searchsorted(token_ends, np.arange(a, a + len(chunk)), side="right").astype(np.uint32)
            moved = np.empty(len(order), pairs)
            moved["token"], moved["value"] = tokens[order], values[a : a + _CHUNK][order]
            sorted_pairs[position] = moved
            cursor += counts
        sorted_pairs.flush()

    def _rank(self, out, scratch, totals: FeatureTotals, starts, kept_starts, seed, progress) -> None:
        """Order each feature's pairs by falling value (ties: earlier token), keeping a part of the most frequent ones."""
        out.map("feature_offsets")[:] = kept_starts
        pairs = np.dtype([("token", np.uint32), ("value", np.float16)])
        if not starts[-1]:
            return
        sorted_pairs = np.memmap(scratch, pairs, "r")
        tokens, values = out.map("feature_tokens"), out.map("feature_values")
        a = 0
        while a < self.d_sae:  # as many features at once as fill a chunk
            b = max(a + 1, int(np.searchsorted(starts, starts[a] + _CHUNK, side="right")) - 1)
            block = np.asarray(sorted_pairs[starts[a] : starts[b]])
            feature = np.repeat(np.arange(a, b), totals.count[a:b])
            order = np.lexsort((block["token"], -block["value"].astype(np.float32), feature))
            ranked = block[order]
            if b == a + 1 and totals.count[a] > CAP:
                ranked = ranked[_kept_ranks(ranked["value"], float(totals.max[a]), np.random.default_rng((seed, a)))]
            tokens[kept_starts[a] : kept_starts[b]] = ranked["token"]
            values[kept_starts[a] : kept_starts[b]] = ranked["value"]
            a = b
            if progress:
                progress(float(starts[a]) / float(starts[-1]))


def _kept_ranks(values: np.ndarray, maximum: float, rng: np.random.Generator) -> np.ndarray:
    """The strongest KEEP_TOP and KEEP_PER_INTERVAL of each interval below, filled up in order of value."""
    target = KEEP_TOP + INTERVALS * KEEP_PER_INTERVAL
    interval = interval_of(values, maximum)
    chosen = np.zeros(len(values), bool)
    chosen[:KEEP_TOP] = True
    for i in range(INTERVALS):
        among = np.flatnonzero((interval == i) & ~chosen)
        chosen[rng.choice(among, min(len(among), KEEP_PER_INTERVAL), replace=False)] = True
    missing = np.flatnonzero(~chosen)[: target - int(chosen.sum())]
    chosen[missing] = True
    return np.flatnonzero(chosen)


def interval_of(values: np.ndarray, maximum: float) -> np.ndarray:
    """Which of INTERVALS equal-width intervals of (0, maximum] a value lies in; 0 is the weakest."""
    scaled = np.ceil(values.astype(np.float64) * INTERVALS / max(maximum, 1e-12)).astype(np.int64) - 1
    return np.clip(scaled, 0, INTERVALS - 1)


class ActivationStore:
    """A store opened for reading. Shared by all threads: nothing but memory maps is kept."""

    def __init__(self, path: Path, d_sae: int):
        tensors = read_tensors(path)
        try:
            self.token_offsets = tensors["token_offsets"]
            self.token_features, self.token_values = tensors["token_features"], tensors["token_values"]
            self.feature_offsets = tensors["feature_offsets"]
            self.feature_tokens, self.feature_values = tensors["feature_tokens"], tensors["feature_values"]
        except KeyError as error:
            raise BundleError(f"{path.name} holds no {error.args[0]}: it is not an activation store") from None
        self.n_tokens, self.d_sae = len(self.token_offsets) - 1, d_sae
        self._check(path.name)

    def _check(self, name: str) -> None:
        for offsets, size, what in (
            (self.token_offsets, len(self.token_features), "token_offsets"),
            (self.feature_offsets, len(self.feature_tokens), "feature_offsets"),
        ):
            if len(offsets) < 1 or int(offsets[0]) != 0 or int(offsets[-1]) != size or (np.diff(offsets) < 0).any():
                raise BundleError(f"{name}: {what} does not fit the arrays it points into; the file is damaged")
        if len(self.feature_offsets) != self.d_sae + 1 or len(self.token_features) != len(self.token_values):
            raise BundleError(f"{name}: the arrays do not fit together; the file is damaged")

    def rows(self, start: int, stop: int) -> SparseRows:
        """Activations of tokens start..stop."""
        offsets = np.asarray(self.token_offsets[start : stop + 1])
        a, b = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (0, 0)
        return SparseRows(
            offsets - a, self.token_features[a:b].astype(np.uint32), self.token_values[a:b].astype(np.float32)
        )

    def firings(self, feature: int, start: int = 0, stop: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, values) of a feature's firings by rank, strongest first; a slice of them."""
        a, b = int(self.feature_offsets[feature]), int(self.feature_offsets[feature + 1])
        lo, hi = a + start, b if stop is None else min(b, a + stop)
        return self.feature_tokens[lo:hi], self.feature_values[lo:hi].astype(np.float32)

    def kept(self, feature: int) -> int:
        """How many firings the feature-major side holds."""
        return int(self.feature_offsets[feature + 1] - self.feature_offsets[feature])

    def rank_of_value(self, feature: int, value: float) -> int:
        """How many of a feature's kept firings are stronger than `value`: a binary search that reads a few pages."""
        a, b = int(self.feature_offsets[feature]), int(self.feature_offsets[feature + 1])
        low, high = a, b
        while low < high:
            middle = (low + high) // 2
            if float(self.feature_values[middle]) > value:
                low = middle + 1
            else:
                high = middle
        return low - a
