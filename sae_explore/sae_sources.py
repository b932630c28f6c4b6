"""Where an SAE comes from: `HUB_ID[@REVISION][:FOLDER]`, or a folder (or OpenAI's `.pt` file) on this machine.

What comes from the Hub stays in the Hub's own cache, and what is cached is used without asking. Only the files that the format needs
are fetched; a download that was broken off goes on where it was.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from sae_explore.bundle_files import sha256_of
from sae_explore.errors import InputError, SaeError
from sae_explore.hub import byte_counter, hub_access, one_line
from sae_explore.hub_download import prefetch
from sae_explore.model_sources import Report
from sae_explore.sae_formats import files_of, possible_files, recognise, weights_folder
from sae_explore.types import HookPoint

GPT2_SAES = "jbloom/GPT2-Small-SAEs-Reformatted"

# What a repository stands for unless a revision is given: the commit that this program was written against.
_PINNED = {
    GPT2_SAES: "57d08a4fd333fbf18caf3fbea63ceeb88e2f50d9",
    "jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs": "21df74db7b9f690cd2403a20485cf75f46330d0d",
}
_SPEC = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]{1,120}))?(?::(?P<folder>[^:\\]{1,300}))?", re.ASCII
)


class SaeSource(NamedTuple):
    """An SAE as a local path, and what to write into a manifest about it."""

    path: Path  # a folder, or OpenAI's file
    name: str  # REPOSITORY:FOLDER, or the path
    repository: str  # of the Hub, or ""
    revision: str  # commit of the Hub, or ""
    fingerprint: str  # changes when the SAE does


def is_on_hub(spec: str) -> bool:
    """Whether the SAE would come from the Hub."""
    return not _local(spec) and not _looks_like_path(spec) and _SPEC.fullmatch(spec) is not None


def resolve_sae(spec: str, *, hook: str | None = None, report: Report | None = None) -> SaeSource:
    """Find or fetch the SAE of a spec. `hook` chooses among the folders of a repository where the spec names none.

    SourceError if it cannot be fetched, InputError if the spec is not understood or names nothing, SaeError if what is there is no SAE.
    """
    if local := _local(spec):
        return SaeSource(local, str(local), "", "", "".join(sha256_of(file) for file in recognise(local).files if file.is_file()))
    if _looks_like_path(spec):
        raise InputError(f"there is no SAE folder {spec!r}")
    match = _SPEC.fullmatch(spec)
    if match is None or not _is_inside(match["folder"] or ""):
        raise InputError(f"SAE {spec[:120]!r} is not understood; give a Hub id (USER/NAME, USER/NAME:FOLDER) or a folder")
    repo, folder = match["repo"], (match["folder"] or "").strip("/")
    revision = match["revision"] or _PINNED.get(repo)
    wanted = [folder] if match["folder"] else ["", *_folders_of(hook)]
    snapshot, found = _cached(repo, revision, wanted) or _fetch(repo, revision, wanted, report or (lambda _text, _share: None))
    return SaeSource(snapshot / found, f"{repo}:{found}" if found else repo, repo, snapshot.name, f"{snapshot.name}:{found}")


def _local(spec: str) -> Path | None:
    """The folder or file that a spec names, if there is one. (`Path.expanduser` raises for an unknown user.)"""
    try:
        path = Path(os.path.expanduser(spec))
        return path.resolve() if spec and (path.is_dir() or (path.is_file() and path.suffix == ".pt")) else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def _looks_like_path(spec: str) -> bool:
    repo = spec.partition(":")[0]
    return spec.startswith((".", "/", "~")) or repo.count("/") > 1 or (os.sep != "/" and os.sep in spec)


def _is_inside(folder: str) -> bool:
    return not folder.startswith("/") and ".." not in folder.split("/")


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
        patterns = [_literally(name) for name in possible_files(folder)]
        try:
            snapshot = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True))
        except HFValidationError as error:
            raise InputError(f"SAE {repo[:120]!r} is no name of a repository on the Hub: {one_line(error)[:160]}") from error
        except LocalEntryNotFoundError:
            continue
        if files_of(folder, _listing(snapshot)):
            return snapshot, folder
    return None


def _literally(name: str) -> str:
    """The pattern that matches this name alone."""
    return re.sub(r"([\[?*])", r"[\1]", name)


def _fetch(repo: str, revision: str | None, wanted: list[str], report: Report) -> tuple[Path, str]:
    """(snapshot, folder in it) with the files of the first wanted folder that is there, or of the only SAE that is."""
    with hub_access(f"the SAE {repo}"):
        from huggingface_hub import HfApi, snapshot_download

        what = f"downloading the SAE {repo} from the Hugging Face Hub"
        report(what, None)
        names = set(HfApi().list_repo_files(repo, revision=revision))
        folder = _choose(wanted, names)
        if folder is None:
            folder = _only_one(repo, wanted, names)
        files = files_of(folder, names)
        tell = lambda done, total: report(f"{what}: {done / 1e6:.0f} of {total / 1e6:.0f} MB", done / total)  # noqa: E731
        prefetch(repo, files, revision=revision, progress=tell)
        patterns = [_literally(name) for name in files]
        snapshot = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, tqdm_class=byte_counter(tell)))
    return snapshot, folder


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
