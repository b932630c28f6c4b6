"""Bundles in a repository of the Hugging Face Hub: how one is named, which there are, and how a file of one is fetched.

    NAME/manifest.json                     as in `cache/NAME/`, so that a repository mirrors a cache folder
    NAME/g-0123456789ab/...                the generation that the manifest names; its `sae/` is a folder in SAELens's format
    NAME/showcase.json, NAME/README.md     where there are such

It is a model repository, because that is where other tools look for SAEs. A listing belongs to one commit: what is fetched by it fits
together, whatever is pushed meanwhile.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from sae_explore.bundles import curated
from sae_explore.errors import InputError, SourceError
from sae_explore.files.bundle_files import MANIFEST, check_name
from sae_explore.files.hub import hub_endpoint

EXTRAS = {curated.FILE: curated.MAX_BYTES, "README.md": 1 << 20}  # files beside the manifest that travel with it, and their largest sizes
_SPEC = re.compile(r"hf:(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<name>[^@/:]+))?(?:@(?P<revision>[^@:\s]+))?", re.ASCII)
_MAX_ENTRIES = 50_000  # of a repository that is looked through
_TIMEOUT = 20.0  # seconds without a byte
_PIECE = 1 << 18
_NO_PROGRESS = 3  # times in a row that a file may break off without a new byte


class RepoSpec(NamedTuple):
    """`hf:USER/REPO`, one bundle of it, or all; at a branch, tag or commit."""

    repo: str
    name: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf:{self.repo}" + (f":{self.name}" if self.name else "") + (f"@{self.revision}" if self.revision else "")


class Listing(NamedTuple):
    """What a repository holds at one commit."""

    repo: str
    commit: str
    private: bool
    sizes: dict[str, int]  # bytes of each file by its path

    def bundles(self) -> list[str]:
        """Names of the bundles in it, sorted."""
        return sorted(
            path.split("/")[0] for path in self.sizes if path.count("/") == 1 and path.endswith(f"/{MANIFEST}") and _is_name(path)
        )


def read_spec(text: str) -> RepoSpec:
    """Parse `hf:USER/REPO[:NAME][@REVISION]`; InputError if it is something else."""
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{text[:80]!r} is no repository with bundles; write hf:USER/REPO or hf:USER/REPO:NAME")
    return RepoSpec(match["repo"], check_name(match["name"]) if match["name"] else None, match["revision"])


def api():
    """The Hub's client at the address that is set now."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub_endpoint())


def listing(spec: RepoSpec) -> Listing:
    """Look at the repository; to be called in `hub_access`."""
    from huggingface_hub.errors import RevisionNotFoundError

    client = api()
    try:
        info = client.model_info(spec.repo, revision=spec.revision, timeout=_TIMEOUT)
    except RevisionNotFoundError as error:
        raise InputError(f"the repository hf:{spec.repo} has no revision {spec.revision!r}") from error
    entries = client.list_repo_tree(spec.repo, recursive=True, revision=info.sha)
    sizes = {e.path: e.size for e in itertools.islice(entries, _MAX_ENTRIES) if hasattr(e, "size")}  # folders have none
    return Listing(spec.repo, info.sha, bool(info.private), sizes)


def read_small(found: Listing, path: str, *, limit: int) -> bytes:
    """A small file's contents; SourceError if it is larger than `limit` bytes. In `hub_access`."""
    size = found.sizes[path]
    if size > limit:
        raise SourceError(f"{path} of hf:{found.repo} has {size:,} bytes, more than such a file can have ({limit:,})")
    pieces = []
    for _ in range(_NO_PROGRESS):
        try:
            pieces = list(_stream(found, path, 0, size))
        except _BrokenOff:
            continue
        return b"".join(pieces)
    raise SourceError(f"{path} of hf:{found.repo} arrives incomplete; try again")


def fetch(found: Listing, path: str, target: Path, report: Callable[[int], None]) -> None:
    """Download a file to `target`, going on after the bytes that it holds already; `report` gets the bytes so far. In `hub_access`."""
    size, failures = found.sizes[path], 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("ab") as file:
        if file.tell() > size:
            file.truncate(0)
        while (start := file.seek(0, 2)) < size:
            report(start)
            try:
                for piece in _stream(found, path, start, size):
                    file.write(piece)
                    report(file.tell())
            except _BrokenOff as error:
                failures = failures + 1 if file.tell() == start else 0
                if failures == _NO_PROGRESS:
                    raise SourceError(
                        f"{path} of hf:{found.repo} breaks off after {start:,} of {size:,} bytes; the same command goes on there"
                    ) from error


class _BrokenOff(Exception):
    """A download that ended before its time."""


def _stream(found: Listing, path: str, start: int, size: int) -> Iterator[bytes]:
    """Pieces of the file from byte `start` to its end at `size`, never more; _BrokenOff if fewer come."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(found.repo, path, revision=found.commit, endpoint=hub_endpoint())
    headers = build_hf_headers() | {"Accept-Encoding": "identity", "Range": f"bytes={start}-"}  # compressed bytes could not be counted
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT) as response:
        hf_raise_for_status(response)
        skip = start if response.status_code == 200 else 0  # a server that sends everything again
        try:
            for piece in response.iter_bytes(_PIECE):
                piece, skip = piece[skip:], max(0, skip - len(piece))
                piece = piece[: size - start]
                start += len(piece)
                if piece:
                    yield piece
                if start == size:
                    return
        except HTTPError as error:
            raise _BrokenOff from error
    if start < size:
        raise _BrokenOff


def _is_name(path: str) -> bool:
    try:
        return bool(check_name(path.split("/")[0]))
    except InputError:
        return False
