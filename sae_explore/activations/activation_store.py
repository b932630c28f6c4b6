"""The activation store: which features fire on a token, and on which tokens a feature fires, strongest first.

Token-major: CSR over all tokens of all documents. Feature-major: for each feature the entries of the token-major arrays that are
its own, in order of falling activation, made by a counting sort on memory-mapped files; an entry's value is read where it
stands, its token found by bisecting the offsets. Values are fp16 (overflow is refused). Opening and querying need numpy only and
touch only the pages that a query reads.

Past `cap` firings of a feature, the feature-major side keeps the strongest `KEEP_TOP` and a seeded reservoir of
`KEEP_PER_INTERVAL` for each of ten equal-width intervals; counts, moments and histograms are of all firings.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sae_explore.errors import BundleError
from sae_explore.files.tensor_file import TensorWriter, read_tensors, reserve
from sae_explore.types import SparseRows

STORE_FILE = "activations.safetensors"
INTERVALS = 10
CAP = 2_000_000
KEEP_TOP = 4_096
KEEP_PER_INTERVAL = 512
_MAX_ENTRIES = 1 << 32  # entries are numbered in 32 bits: about 134 million tokens at 32 active features
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

    def __init__(self, folder: Path, d_sae: int, *, cap: int = CAP):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.d_sae, self.cap = folder, d_sae, cap
        self.index_type = np.uint16 if d_sae <= 1 << 16 else np.uint32

    def write_part(
        self, part: int, offsets: np.ndarray, features: np.ndarray, values: np.ndarray, ignored: np.ndarray | None = None
    ) -> None:
        """One block of tokens as a file of its own, atomically: offsets (n + 1,), features and values (nnz,), ignored (n,) bool."""
        if len(values) and not float(values.max()) <= 65_000:  # NaN too
            raise BundleError(f"an activation of {float(values.max()):.3g} does not fit into fp16; is this SAE made for this model?")
        path = self.folder / f"part-{part:06d}.npz"
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(
                file,
                counts=np.diff(offsets).astype(np.uint32),
                features=features.astype(self.index_type),
                values=np.maximum(values.astype(np.float16), np.float16(6e-8)),
                ignored=np.zeros(len(offsets) - 1, bool) if ignored is None else ignored,
            )
        partial.replace(path)

    def ignored(self) -> np.ndarray:
        """(tokens,) bool: the tokens that the parts were told to ignore."""
        found = [np.load(p)["ignored"] for p in self.parts()]
        return np.concatenate(found) if found else np.zeros(0, bool)

    def parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.npz"))

    def finish(self, target: Path, *, seed: int = 0, progress: Callable[[float], None] | None = None) -> FeatureTotals:
        """Write the store to `target`; returns the totals of every feature."""
        parts = self.parts()
        counts = [np.load(p)["counts"] for p in parts]
        per_token = np.concatenate(counts) if counts else np.zeros(0, np.uint32)
        offsets = np.concatenate([[0], np.cumsum(per_token, dtype=np.int64)])
        nnz = int(offsets[-1])
        if nnz >= _MAX_ENTRIES:
            raise BundleError(f"{nnz:,} activations are more than a store holds ({_MAX_ENTRIES:,}); explore fewer texts")
        totals = self._totals(parts)
        starts = np.concatenate([[0], np.cumsum(totals.count)]).astype(np.int64)
        kept = np.where(totals.count > self.cap, min(self.cap, KEEP_TOP + INTERVALS * KEEP_PER_INTERVAL), totals.count)
        kept_starts = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
        with TensorWriter(
            target,
            {
                "token_offsets": (np.int64, (len(offsets),)),
                "token_features": (self.index_type, (nnz,)),
                "token_values": (np.float16, (nnz,)),
                "feature_offsets": (np.int64, (self.d_sae + 1,)),
                "feature_entries": (np.uint32, (int(kept_starts[-1]),)),
            },
        ) as out:
            out.map("token_offsets")[:] = offsets
            self._copy_token_major(parts, out)
            scratch = self.folder / "sorted.bin"
            self._counting_sort(out, starts, scratch)
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

    def _counting_sort(self, out: TensorWriter, starts: np.ndarray, scratch: Path) -> None:
        """Scatter every entry's key to its feature's range, a chunk at a time.

        A key is (65,535 - the fp16 value's bits) << 32 | entry: the bits of positive fp16 numbers rise with their values, so
        rising keys are falling values, ties in the order of tokens.
        """
        features, values = out.map("token_features"), out.map("token_values")
        if not len(features):
            return
        with scratch.open("wb") as file:
            reserve(file, 8 * len(features))
        keys = np.memmap(scratch, np.uint64, "r+", shape=(len(features),))
        cursor = starts[:-1].copy()
        for a in range(0, len(features), _CHUNK):
            chunk = np.asarray(features[a : a + _CHUNK])
            order = np.argsort(chunk, kind="stable")
            by_feature = chunk[order]
            counts = np.bincount(by_feature, minlength=self.d_sae)
            first = np.concatenate([[0], np.cumsum(counts)[:-1]])
            position = cursor[by_feature] + np.arange(len(order)) - first[by_feature]
            falling = np.uint16(0xFFFF) - np.asarray(values[a : a + _CHUNK]).view(np.uint16)
            keys[position] = (falling.astype(np.uint64) << np.uint64(32) | np.arange(a, a + len(chunk), dtype=np.uint64))[order]
            cursor += counts
        keys.flush()

    def _rank(self, out, scratch, totals: FeatureTotals, starts, kept_starts, seed, progress) -> None:
        """Order each feature's entries by falling value (ties: earlier token), keeping a part of the most frequent ones."""
        out.map("feature_offsets")[:] = kept_starts
        if not starts[-1]:
            return
        keys, entries, values = np.memmap(scratch, np.uint64, "r"), out.map("feature_entries"), out.map("token_values")
        a = 0
        while a < self.d_sae:  # as many features at once as fill a chunk, or as 16 bits number
            b = min(max(a + 1, int(np.searchsorted(starts, starts[a] + _CHUNK, side="right")) - 1), a + (1 << 16), self.d_sae)
            local = np.repeat(np.arange(b - a, dtype=np.uint64) << np.uint64(48), totals.count[a:b])
            ranked = (np.sort(keys[starts[a] : starts[b]] | local) & np.uint64(0xFFFFFFFF)).astype(np.uint32)
            if (totals.count[a:b] > self.cap).any():
                parts = np.split(ranked, starts[a + 1 : b] - starts[a])
                ranked = np.concatenate([self._kept(part, f, values, totals, seed) for f, part in enumerate(parts, a)])
            entries[kept_starts[a] : kept_starts[b]] = ranked
            a = b
            if progress:
                progress(float(starts[a]) / float(starts[-1]))

    def _kept(self, ranked: np.ndarray, feature: int, values: np.ndarray, totals: FeatureTotals, seed: int) -> np.ndarray:
        """The ranked entries of a feature; past the cap the strongest, a seeded sample of each interval, and the next strongest."""
        if len(ranked) <= self.cap:
            return ranked
        target = min(self.cap, KEEP_TOP + INTERVALS * KEEP_PER_INTERVAL)
        top, rng = target * 4 // 9, np.random.default_rng((seed, feature))
        interval = interval_of(values[ranked], float(totals.max[feature]))
        chosen = np.zeros(len(ranked), bool)
        chosen[:top] = True
        for i in range(INTERVALS):
            among = np.flatnonzero((interval == i) & ~chosen)
            chosen[rng.choice(among, min(len(among), (target - top) // INTERVALS), replace=False)] = True
        chosen[np.flatnonzero(~chosen)[: target - int(chosen.sum())]] = True
        return ranked[chosen]


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
            self.feature_offsets, self.feature_entries = tensors["feature_offsets"], tensors["feature_entries"]
        except KeyError as error:
            raise BundleError(f"{path.name} holds no {error.args[0]}: it is not an activation store") from None
        self.d_sae = d_sae
        self._check(path.name)
        self.n_tokens = len(self.token_offsets) - 1

    def _check(self, name: str) -> None:
        kinds = {"token_offsets": "i8", "token_features": "u", "token_values": "f2", "feature_offsets": "i8", "feature_entries": "u4"}
        for what, kind in kinds.items():
            array = getattr(self, what)
            if array.ndim != 1 or kind not in (array.dtype.kind, array.dtype.str[1:]):
                raise BundleError(f"{name}: {what} is no list of the expected type; the file is damaged")
        for offsets, size, what in (
            (self.token_offsets, len(self.token_features), "token_offsets"),
            (self.feature_offsets, len(self.feature_entries), "feature_offsets"),
        ):
            if len(offsets) < 1 or int(offsets[0]) != 0 or int(offsets[-1]) != size or (np.diff(offsets) < 0).any():
                raise BundleError(f"{name}: {what} does not fit the arrays it points into; the file is damaged")
        if len(self.feature_offsets) != self.d_sae + 1 or len(self.token_features) != len(self.token_values):
            raise BundleError(f"{name}: the arrays do not fit together; the file is damaged")

    def rows(self, start: int, stop: int) -> SparseRows:
        """Activations of tokens start..stop."""
        offsets = np.asarray(self.token_offsets[start : stop + 1])
        a, b = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (0, 0)
        return SparseRows(offsets - a, self.token_features[a:b].astype(np.uint32), self.token_values[a:b].astype(np.float32))

    def values_of(self, feature: int, start: int, stop: int) -> np.ndarray:
        """Activations of one feature on tokens start..stop, (stop - start,) float32, zeros where it is silent."""
        offsets = self.token_offsets[start : stop + 1]
        first, last = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (0, 0)
        at = first + (self.token_features[first:last] == feature).nonzero()[0]
        out = np.zeros(stop - start, np.float32)
        out[offsets.searchsorted(at, side="right") - 1] = self.token_values[at]
        return out

    def firings(self, feature: int, start: int = 0, stop: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, values) of a feature's firings by rank, strongest first; a slice of them."""
        a, b = int(self.feature_offsets[feature]), int(self.feature_offsets[feature + 1])
        entries = np.asarray(self.feature_entries[a + start : b if stop is None else min(b, a + stop)])
        if len(entries) and int(entries.max()) >= len(self.token_features):
            raise BundleError(f"the activation store points feature {feature} outside itself; the file is damaged")
        tokens = np.searchsorted(self.token_offsets, entries, side="right") - 1
        return tokens.astype(np.uint32), self.token_values[entries].astype(np.float32)

    def kept(self, feature: int) -> int:
        """How many firings the feature-major side holds."""
        return int(self.feature_offsets[feature + 1] - self.feature_offsets[feature])

    def rank_of_value(self, feature: int, value: float) -> int:
        """How many of a feature's kept firings are stronger than `value`: a binary search that reads a few pages."""
        low = start = int(self.feature_offsets[feature])
        high = int(self.feature_offsets[feature + 1])
        while low < high:
            middle = (low + high) // 2
            if float(self.token_values[self.feature_entries[middle]]) > value:
                low = middle + 1
            else:
                high = middle
        return low - start
