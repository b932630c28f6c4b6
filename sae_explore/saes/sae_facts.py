"""How large an SAE is, from the heads of its files alone: for estimating a build before anything is loaded or fetched. Imports no torch.

Nothing is checked here: what is wrong with an SAE, reading it says (`sae_formats`).
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sae_explore.saes.sae_names import local_sae, read_hub_name

_MAX_HEAD = 1 << 24  # bytes of a header or a configuration


class SaeFacts(NamedTuple):
    """Latents, and how many of them are active on a token (None: the files do not say)."""

    latents: int
    k: int | None = None


def facts_of_sae(spec: str) -> SaeFacts | None:
    """The sizes of an SAE that is on this machine, in a folder or in the Hub's cache; None for others, and for what is not understood."""
    path = local_sae(spec) or _cached(spec)
    try:
        return _of_file(path) if path and path.is_file() else _of_folder(path) if path else None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, zipfile.BadZipFile):
        return None


def _cached(spec: str) -> Path | None:
    """The folder (or file) in the Hub's own cache that a download of the SAE has filled."""
    name = read_hub_name(spec)
    if name is None or not name.folder:
        return None
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    home = Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=name.repo, repo_type="model")
    try:
        commit = (home / "refs" / (name.revision or "main")).read_text().strip()
    except (OSError, ValueError):
        commit = name.revision or ""
    path = home / "snapshots" / commit / name.folder
    return path if commit and path.exists() else None


def _of_folder(folder: Path) -> SaeFacts | None:
    for name in ("sae_weights.safetensors", "sae.safetensors"):  # SAELens, sparsify
        if (folder / name).is_file():
            config = _json(folder / "cfg.json")
            k = config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k")  # the latter in SAELens's old files
            return SaeFacts(_safetensors_shape(folder / name, "W_dec")[0], _whole(k))
    if (folder / "ae.pt").is_file():  # dictionary_learning
        trainer = _json(folder / "config.json")["trainer"]
        return SaeFacts(_whole(trainer["dict_size"]) or _none(), _whole(trainer.get("k")))
    if (folder / "params.npz").is_file():  # Gemma Scope
        with zipfile.ZipFile(folder / "params.npz") as archive, archive.open("w_dec.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return SaeFacts(read(file)[0][0])
    pickles = list(folder.glob("*.pt"))
    return _of_file(pickles[0]) if len(pickles) == 1 else None


def _of_file(path: Path) -> SaeFacts:
    """Of OpenAI's `.pt` file, an archive with a file a tensor: the largest is a matrix, the smallest a vector of its other side."""
    with zipfile.ZipFile(path) as archive:
        sizes = [entry.file_size for entry in archive.infolist() if "/data/" in entry.filename and entry.file_size]
    return SaeFacts(max(sizes) // min(sizes))


def _safetensors_shape(path: Path, tensor: str) -> list[int]:
    with path.open("rb") as file:
        return json.loads(file.read(min(_MAX_HEAD, int.from_bytes(file.read(8), "little"))))[tensor]["shape"]


def _json(path: Path) -> dict:
    with path.open("rb") as file:
        return json.loads(file.read(_MAX_HEAD))


def _whole(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None


def _none() -> int:
    raise ValueError("a size is missing")
