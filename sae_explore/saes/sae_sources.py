"""Where an SAE comes from: `HUB_ID[@REVISION][:FOLDER]`, or a folder (or OpenAI's `.pt` file) on this machine.

What comes from the Hub stays in the Hub's own cache, and what is cached is used without asking. Only the files that the format needs
are fetched; a download that was broken off goes on where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from sae_explore.errors import InputError, SaeError
from sae_explore.files.bundle_files import sha256_of
from sae_explore.files.hub import hub_access, one_line
from sae_explore.files.hub_download import fetch_files, list_files, literally
from sae_explore.models.model_sources import Report
from sae_explore.saes.sae_formats import files_of, possible_files, recognise, weights_folder
from sae_explore.saes.sae_names import GPT2_SAES, is_on_hub, local_sae, looks_like_path, read_hub_name
from sae_explore.types import HookPoint


class SaeSource(NamedTuple):
    """An SAE as a local path, and what to write into a manifest about it."""

    path: Path  # a folder, or OpenAI's file
    name: str  # REPOSITORY:FOLDER, or the path
    repository: str  # of the Hub, or ""
    revision: str  # commit of the Hub, or ""
    fingerprint: str  # changes when the SAE does


def resolve_sae(spec: str, *, hook: str | None = None, report: Report | None = None) -> SaeSource:
    """Find or fetch the SAE of a spec. `hook` chooses among the folders of a repository where the spec names none.

    SourceError if it cannot be fetched, InputError if the spec is not understood or names nothing, SaeError if what is there is no SAE.
    """
    if local := local_sae(spec):
        return SaeSource(local, str(local), "", "", "".join(sha256_of(file) for file in recognise(local).files if file.is_file()))
    if looks_like_path(spec):
        raise InputError(f"there is no SAE folder {spec!r}")
    name = read_hub_name(spec)
    if name is None:
        raise InputError(f"SAE {spec[:120]!r} is not understood; give a Hub id (USER/NAME, USER/NAME:FOLDER), a folder or a .pt file")
    repo, revision, folder = name
    wanted = [folder] if folder else ["", *_folders_of(hook)]
    snapshot, found = _cached(repo, revision, wanted) or _fetch(repo, revision, wanted, report or (lambda _text, _share: None))
    return SaeSource(snapshot / found, f"{repo}:{found}" if found else repo, repo, snapshot.name, f"{snapshot.name}:{found}")


def _folders_of(hook: str | None) -> list[str]:
    """Names that the folder of a hook's SAE may have: both names of the same place, and sparsify's."""
    if hook is None:
        return []
    depth = HookPoint.parse(hook).depth
    names = [f"blocks.{depth}.hook_resid_pre"]
    if depth:
        names += [f"blocks.{depth - 1}.hook_resid_post", f"layers.{depth - 1}", f"h.{depth - 1}"]
    return names


def _choose(wanted: list[str], names: set[str]) -> str | None:
    """The first of the wanted folders that holds a whole SAE."""
    return next((folder for folder in wanted if files_of(folder, names)), None)


def _listing(snapshot: Path) -> set[str]:
    return {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}


def _cached(repo: str, revision: str | None, wanted: list[str]) -> tuple[Path, str] | None:
    """(snapshot, folder in it) of the first wanted folder that the Hub's own cache holds whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    for folder in wanted:
        patterns = [literally(name) for name in possible_files(folder)]
        try:
            snapshot = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True))
        except HFValidationError as error:
            raise InputError(f"SAE {repo[:120]!r} is no name of a repository on the Hub: {one_line(error)[:160]}") from error
        except LocalEntryNotFoundError:
            continue
        if files_of(folder, _listing(snapshot)):
            return snapshot, folder
    return None


def _fetch(repo: str, revision: str | None, wanted: list[str], report: Report) -> tuple[Path, str]:
    """(snapshot, folder in it) with the files of the first wanted folder that is there, or of the only SAE that is."""
    with hub_access(f"the SAE {repo}"):
        what = f"downloading the SAE {repo} from the Hugging Face Hub"
        report(what, None)
        names = set(list_files(repo, revision))
        folder = _choose(wanted, names)
        if folder is None:
            folder = _only_one(repo, wanted, names)
        files = files_of(folder, names)
        tell = lambda done, total: report(f"{what}: {done / 1e6:.0f} of {total / 1e6:.0f} MB", done / total)  # noqa: E731
        return fetch_files(repo, files, revision=revision, progress=tell), folder


def _only_one(repo: str, wanted: list[str], names: set[str]) -> str:
    """The one folder of a repository that holds an SAE; an error that lists some where there is none, several, or another was asked for."""
    there = sorted({folder for name in names if (folder := weights_folder(name)) is not None and files_of(folder, names)})
    there += sorted(name for name in names if name.endswith(".pt") and weights_folder(name) is None)
    if not there:
        raise SaeError(f"the repository {repo} on the Hub holds no SAE in a format that is read here")
    if len(there) == 1 and "" in wanted:
        return there[0]
    some = ", ".join(f"{repo}:{folder}" for folder in there[:6]) + (f" and {len(there) - 6} more" if len(there) > 6 else "")
    asked = f"the repository {repo} holds no SAE in {wanted[0][:120]!r}" if wanted[0] else f"the repository {repo} holds {len(there)} SAEs"
    raise InputError(f"{asked}; name one of them: {some}")


__all__ = ["GPT2_SAES", "SaeSource", "is_on_hub", "resolve_sae"]
