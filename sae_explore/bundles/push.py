"""Put a bundle into a repository of the Hugging Face Hub, in one commit (see `bundle_repo` for what it looks like there).

Only what the manifest names is sent, with the manifest itself and, where there are such, `showcase.json` and `README.md`; all of it
is checked first. The bundle's earlier generations go from the repository in the same commit.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sae_explore.bundles.bundle import Bundle, open_bundle
from sae_explore.bundles.bundle_repo import EXTRAS, Listing, RepoSpec, api, listing, read_spec
from sae_explore.errors import InputError, SourceError
from sae_explore.files.bundle_files import MANIFEST
from sae_explore.files.hub import hub_access, one_line


class Pushed(NamedTuple):
    """What has become of it."""

    bundle: str
    repo: str
    url: str
    commit: str
    private: bool
    files: int
    bytes: int
    changed: bool  # False: the repository held the same already
    notes: tuple[str, ...]  # what the one who pushed should know


def push(name: str, target: str, *, cache: Path | None = None, public: bool = False, quiet: bool = True) -> Pushed:
    """Upload bundle `name` to `target` (`hf:USER/REPO`), which is made if it is not there: private, or public if asked for.

    BundleError for a bundle that fails its own check, InputError without a token or where it may not write, SourceError without the
    Hub. Unless `quiet`, the Hub's client draws its bars on stderr.
    """
    spec = read_spec(target)
    if spec.name or spec.revision:
        raise InputError(f"{target[:120]!r} says more than a repository; a push goes to hf:{spec.repo}, under the bundle's own name")
    bundle = open_bundle(name, cache=cache)
    bundle.verify()
    files = files_of(bundle)
    with hub_access(f"hf:{spec.repo}", writing=True):
        _require_token(spec)
        _set_bars(not quiet)
        before = _repository(spec, public)
        if not (before.private or public):
            raise InputError(f"hf:{spec.repo} is a public repository; add --public to publish the bundle there, or choose another")
        commit = _commit(bundle, spec, files, before)
    size = sum(path.stat().st_size for path in files.values())
    url = f"{api().endpoint}/{spec.repo}"
    notes = tuple(_notes(bundle))
    return Pushed(name, spec.repo, url, commit, before.private, len(files), size, commit != before.commit, notes)


def files_of(bundle: Bundle) -> dict[str, Path]:
    """What is uploaded: path in the repository -> file, the manifest last."""
    found = {f"{bundle.name}/{bundle.files.name}/{name}": bundle.files / name for name in bundle.manifest["files"]}
    for name, limit in EXTRAS.items():
        path = bundle.folder / name
        if path.is_symlink():
            raise InputError(
                f"{name} of bundle {bundle.name!r} is a link to another file, which is not uploaded; put the file itself there"
            )
        if path.is_file():
            if path.stat().st_size > limit:
                raise InputError(f"{name} of bundle {bundle.name!r} has {path.stat().st_size:,} bytes, the limit is {limit:,}")
            found[f"{bundle.name}/{name}"] = path
    return found | {f"{bundle.name}/{MANIFEST}": bundle.folder / MANIFEST}


def _require_token(spec: RepoSpec) -> None:
    from huggingface_hub import get_token

    if not get_token():
        raise InputError(
            f"writing to hf:{spec.repo} needs a token of the Hub with write access; set HF_TOKEN to one, or log in with `hf auth login`"
        )


def _set_bars(shown: bool) -> None:
    """Let the Hub's client draw its bars or not, and say nothing else."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the environment has the last word on it
        enable_progress_bars() if shown else disable_progress_bars()


def _repository(spec: RepoSpec, public: bool) -> Listing:
    """What is in the repository, which is made first where there is none."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        try:
            return listing(spec)
        except RepositoryNotFoundError:
            api().create_repo(spec.repo, private=not public, exist_ok=True)
            return listing(spec)
    except RepositoryNotFoundError as error:
        raise SourceError(f"hf:{spec.repo} could not be made; check its name and what the token may do") from error
    except HfHubHTTPError as error:
        raise _refused(spec, error) from error


def _commit(bundle: Bundle, spec: RepoSpec, files: dict[str, Path], before: Listing) -> str:
    """One commit on top of what was seen: files that are new or changed, and the earlier generations gone."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    stale = [path for path in before.sizes if path.startswith(f"{bundle.name}/g-") and path not in files]
    operations = [CommitOperationAdd(path, str(file)) for path, file in files.items()] + [CommitOperationDelete(path) for path in stale]
    message = f"Bundle {bundle.name} ({bundle.files.name})"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the client's own, and one about tables, which are part of a bundle
            return api().create_commit(spec.repo, operations, commit_message=message, parent_commit=before.commit).oid
    except HfHubHTTPError as error:
        raise _refused(spec, error) from error


def _refused(spec: RepoSpec, error: Exception) -> Exception:
    """The Hub's refusal in our words, where it has a known reason."""
    status = error.response.status_code
    if status == 401:
        return InputError("the Hub does not accept the token; set HF_TOKEN to a valid one with write access")
    if status == 403:
        return InputError(f"the token may not write to hf:{spec.repo}; use one with write access, or a repository of your own")
    if status in (409, 412):
        return SourceError(f"hf:{spec.repo} was changed meanwhile; push again")
    return SourceError(f"hf:{spec.repo} cannot be written to the Hub: {one_line(error)}")


def _notes(bundle: Bundle) -> Iterator[str]:
    if os.path.isabs(bundle.manifest["model"]["spec"]):
        yield "its model is a folder of this machine: elsewhere everything stored can be explored, but no own text be read"
    paths = sorted({text for text in _strings(bundle.manifest) if os.path.isabs(text)})
    if paths:
        shown = ", ".join(paths[:3]) + (", …" if len(paths) > 3 else "")
        yield f"its manifest names paths of this machine, which readers of the repository see: {shown}"


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, str):
        yield value
    elif not isinstance(value, int | float | None):
        for item in value:
            yield from _strings(item)
