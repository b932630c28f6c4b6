"""A 2-D map of the dictionary: t-SNE of the unit decoder directions (van der Maaten and Hinton 2008; the library is openTSNE).

Each feature's nearest directions are found exactly, by cosine, with torch; openTSNE turns their distances 1 - cosine into the map. It begins
at the first two principal components, so that far regions keep some of their order, and runs in one thread, where it gives the same map
each time. On the demo (8,192 features) 23 % of the ten nearest points are among the ten nearest directions; umap-learn reaches 6 %.

The library is needed to draw a map, not to look at one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sae_explore.bundles.bundle import SAE_FOLDER, SAE_WEIGHTS, Bundle
from sae_explore.errors import InputError
from sae_explore.files.bundle_files import MAP_FILE, add_file, alone, read_manifest
from sae_explore.files.tensor_file import read_tensors, write_tensors

log = logging.getLogger(__name__)

LIBRARY = "openTSNE"
INSTALL = f"pip install {LIBRARY}"
_PERPLEXITY = 30  # about how many neighbours pull at a point
_EARLY, _LATE = 100, 250  # iterations with and without exaggeration; more change no neighbourhoods on the demo
_EVERY = 25  # iterations between two reports
_FFT_FROM = 2_000  # points from which interpolation is faster than the tree
_LEAST = 12  # features: for fewer there are no neighbourhoods to keep, and the principal components are the map
_KNN_SHARE = 0.3  # of the time

Report = Callable[[str, float | None], None]
"""What is being done, and the share that is done. Raising from it stops the work."""


class Drawn(NamedTuple):
    """What has become of a bundle's map."""

    bundle: str
    features: int
    bytes: int
    state: str  # "new", or "unchanged": it was there already


def can_draw() -> bool:
    """Whether the library is installed."""
    return find_spec(LIBRARY) is not None


def add_map(bundle: Bundle, *, report: Report = lambda _text, _share=None: None) -> Drawn:
    """Draw the map of a bundle that has none and let its manifest name it: readers see the bundle without or with it.

    InputError where the library is missing, or where the bundle is replaced or given a map by others meanwhile.
    """
    with alone(bundle.folder, f"the map of bundle {bundle.name!r} is being drawn already; wait until that has ended"):
        manifest = read_manifest(bundle.folder)
        if MAP_FILE in manifest["files"]:
            return Drawn(bundle.name, bundle.d_sae, manifest["files"][MAP_FILE]["size"], "unchanged")
        require_library(f"python -m sae_explore map {bundle.name}")
        write_map(bundle.folder / manifest["folder"], report=report)
        size = add_file(bundle.folder, manifest, MAP_FILE)["files"][MAP_FILE]["size"]
    return Drawn(bundle.name, bundle.d_sae, size, "new")


def require_library(command: str) -> None:
    """InputError that says how to come to the library, for `command`."""
    if not can_draw():
        raise InputError(
            f"drawing a map needs the package {LIBRARY}, which is not installed; install it and try again: {INSTALL} && {command}"
        )


def write_map(files: Path, *, report: Report = lambda _text, _share=None: None) -> None:
    """Draw the map of the SAE in a generation folder and write it there, in one step."""
    W_dec = read_tensors(files / SAE_FOLDER / SAE_WEIGHTS)["W_dec"]
    write_tensors(files / MAP_FILE, {"xy": directions_to_map(W_dec, report=report).astype(np.float16)})


def directions_to_map(W_dec: np.ndarray, *, seed: int = 0, report: Report = lambda _text, _share=None: None) -> np.ndarray:
    """Directions (d_sae, d_in) of any length -> places (d_sae, 2) float32 in [-1, 1], centred; equal input gives equal output."""
    import torch

    from sae_explore.features.lens import nearest_by_cosine

    unit = np.asarray(W_dec, np.float32)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    begin = _principal(unit)
    if len(unit) < _LEAST:
        return _framed(begin)
    perplexity = min(_PERPLEXITY, (len(unit) - 1) // 3)
    report("which directions are alike", 0.0)
    nearest, cosines = nearest_by_cosine(torch.from_numpy(unit), 3 * perplexity)

    from openTSNE import TSNE
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    def tell(iteration: int, _error: float, _places: np.ndarray) -> None:
        done[0] += _EVERY
        report("drawing the map", min(1.0, _KNN_SHARE + (1 - _KNN_SHARE) * done[0] / (_EARLY + _LATE)))

    done = [0]  # the library counts each of its two phases by itself
    distances = np.clip(1 - cosines.astype(np.float64), 0, None)
    affinities = PerplexityBasedNN(
        knn_index=PrecomputedNeighbors(nearest.astype(np.int64), distances), perplexity=perplexity, random_state=seed, n_jobs=1
    )
    tsne = TSNE(
        early_exaggeration_iter=_EARLY,
        n_iter=_LATE,
        negative_gradient_method="fft" if len(unit) >= _FFT_FROM else "bh",
        n_jobs=1,  # with more the sums differ from run to run
        random_state=seed,
        callbacks=[tell],
        callbacks_every_iters=_EVERY,
    )
    return _framed(np.asarray(tsne.fit(affinities=affinities, initialization=begin)))


def _principal(unit: np.ndarray) -> np.ndarray:
    """(n, 2) first two principal components, small as t-SNE wants its beginning; signs are fixed, so that the map is not mirrored by chance."""
    centred = unit.astype(np.float64) - unit.mean(axis=0, dtype=np.float64)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])] < 0, -1.0, 1.0)
    places = np.zeros((len(unit), 2))
    places[:, : axes.shape[1]] = centred @ axes
    return places * (1e-4 / max(float(places[:, 0].std()), 1e-12))


def _framed(places: np.ndarray) -> np.ndarray:
    """Centred, the farthest coordinate at 1."""
    middle = (places.max(axis=0) + places.min(axis=0)) / 2
    return ((places - middle) / max(float(np.abs(places - middle).max()), 1e-12)).astype(np.float32)
