"""The front door to SAEs on disk: which format a folder is in, and how its SAE is read; one module reads each format.

    saelens               cfg.json + sae_weights.safetensors      sparsify       cfg.json + sae.safetensors
    dictionary_learning   config.json + ae.pt                     gemma_scope    params.npz
    openai                a .pt file

What is read is checked tensor by tensor and key by key; what is not understood is refused by name. Written is SAELens's format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sae_explore.errors import InputError
from sae_explore.saes import sae_dictionary_learning, sae_gemma_scope, sae_openai, sae_saelens, sae_sparsify
from sae_explore.saes.sae import Sae
from sae_explore.saes.sae_conventions import centring, repository_of
from sae_explore.saes.sae_saelens import CONFIG_FILE, WEIGHTS_FILE, save_sae

_FOLDERS = (sae_saelens, sae_sparsify, sae_dictionary_learning, sae_gemma_scope)
_UNIT = 1e-3  # how far from 1 a decoder row's length may be to count as 1


class Found(NamedTuple):
    """An SAE on disk: how to read it, and the files that it consists of."""

    format: str
    path: Path  # the folder, or OpenAI's file
    files: tuple[Path, ...]
    read: Callable[[Path, str], Sae]


def weights_folder(name: str) -> str | None:
    """The folder that a repository's file makes a folder of an SAE, "" for the repository itself; None if it makes none. By name alone."""
    folder, _, file = name.rpartition("/")
    return folder if file in {kind.FILES[-1] for kind in _FOLDERS} else None


def files_of(folder: str, names: set[str]) -> list[str]:
    """Of a repository's files (paths in it) those that are needed to read the SAE in a folder, or that is the file itself."""
    if folder in names:  # OpenAI's
        return [folder]
    inside = f"{folder}/" if folder else ""
    kind = next((kind for kind in _FOLDERS if all(inside + name in names for name in kind.FILES)), None)
    if kind is None:
        return []
    beside = f"{folder.rpartition('/')[0]}/{sae_sparsify.RUN_FILE}".lstrip("/")
    return [inside + name for name in kind.FILES] + [beside] * (kind is sae_sparsify and beside in names)


def possible_files(folder: str) -> list[str]:
    """Paths of all files that an SAE in this folder of a repository could consist of, whatever its format."""
    inside = f"{folder}/" if folder else ""
    return sorted({inside + name for kind in _FOLDERS for name in kind.FILES} | ({folder} if folder.endswith(".pt") else set()))


def recognise(path: Path) -> Found:
    """What kind of SAE lies there, by the names of its files; InputError if it is none that is read here."""
    if path.is_file() and path.suffix == ".pt":
        return Found(sae_openai.FORMAT, path, (path,), sae_openai.read)
    if not path.is_dir():
        raise InputError(f"there is no SAE folder {str(path)!r}")
    for kind in _FOLDERS:
        if (path / kind.FILES[-1]).is_file():
            return Found(kind.FORMAT, path, tuple(path / name for name in kind.FILES), kind.read)
    if (path / CONFIG_FILE).is_file():  # it is SAELens's that says what is missing
        return Found(sae_saelens.FORMAT, path, (path / CONFIG_FILE, path / WEIGHTS_FILE), sae_saelens.read)
    pickles = sorted(path.glob("*.pt"))
    if len(pickles) == 1 and pickles[0].is_file():
        return Found(sae_openai.FORMAT, pickles[0], (pickles[0],), sae_openai.read)
    wanted = ", ".join(" + ".join(kind.FILES) for kind in _FOLDERS)
    several = f"; it holds {len(pickles)} .pt files, name one of them" if len(pickles) > 1 else ""
    raise InputError(
        f"{path} is no SAE folder: it holds no {CONFIG_FILE}, nor the other files of a known format ({wanted}, or one .pt){several}"
    )


def load_sae(path: Path, *, source: str = "", repository: str = "", fold: bool = True, center: str = "auto") -> Sae:
    """Read an SAE in whatever format. SaeError in one sentence if it is not understood, InputError if it is none.

    `source` names it for people: REPOSITORY:FOLDER of the Hub, or a path; `repository` is the one that it comes from, if it does. Names of
    repositories and folders say what the files do not: which hook, whether the input is centred (`center`; see `sae_conventions`).
    With `fold`, families whose selection does not depend on it get unit decoder rows, activations scaled to compensate (SAELens#463).
    """
    found = recognise(path)
    sae = found.read(found.path, source or str(path))
    centred, _why = centring(center, sae.spec, repository or repository_of(str(path)))
    sae = replace(sae, spec=replace(sae.spec, center_input=centred))
    foldable = sae.spec.architecture not in ("topk", "batchtopk")
    if fold and foldable and float((sae.W_dec.norm(dim=-1) - 1).abs().max()) > _UNIT:
        sae = sae.fold_decoder_norms().checked()  # numbers near the end of their range may not stay finite
    return sae


__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "Found", "files_of", "load_sae", "recognise", "save_sae", "weights_folder"]
