"""Fetch bundles from a repository of the Hugging Face Hub into the cache folder (see `bundle_repo` for what it looks like there).

A bundle is downloaded into `cache/.pull-NAME/`, file by file, each compared with the size and sha256 of its manifest, opened there once,
and switched in atomically as a build's is: readers see the old bundle or the new one. What was fetched stays for the next try after a
failure. Nothing in a manifest from elsewhere is trusted: names are letters, digits, dots and dashes inside the bundle's own folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sae_explore.bundles.bundle import Bundle
from sae_explore.bundles.bundle_repo import EXTRAS, Listing, RepoSpec, fetch, listing, read_small, read_spec
from sae_explore.errors import BundleError, InputError, SourceError
from sae_explore.files.bundle_files import (
    AGAIN,
    MANIFEST,
    SCHEMA,
    alone,
    check_checksum,
    check_manifest,
    check_name,
    default_cache,
    read_manifest,
    sha256_of,
    switch,
    write_json,
)
from sae_explore.files.hub import hub_access

ORIGIN = ".origin.json"  # beside a fetched bundle's manifest: where it came from
MAX_MANIFEST = 16 << 20
_SPARE = 64 << 20  # bytes that are to stay free on the disk
_MAX_FILES = 500
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,99}){0,3}")  # relative, no `..`
_KINDS = (".json", ".safetensors", ".parquet")  # of files that a bundle can have
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PARTIAL = ".partial"

Report = Callable[[str, float | None], None]
"""What is being done, and the share that is done (None: not known)."""


class Pulled(NamedTuple):
    """What has become of one bundle."""

    bundle: str
    repo: str
    commit: str
    state: str  # "new", "replaced", or "unchanged": it was here already
    files: int
    bytes: int  # of all its files
    fetched: int  # of them, bytes that were downloaded now


def pull(
    source: str | RepoSpec, *, cache: Path | None = None, revision: str | None = None, force: bool = False, report: Report | None = None
) -> list[Pulled]:
    """Fetch the bundle that `source` (`hf:USER/REPO[:NAME][@REVISION]`) names, or all of the repository.

    InputError where there is another bundle of that name, unless `force`; SourceError for what cannot be fetched or is not what its
    manifest says.
    """
    spec, cache = read_spec(source) if isinstance(source, str) else source, cache or default_cache()
    spec = spec._replace(revision=revision or spec.revision)
    report = report or (lambda _text, _share: None)
    with hub_access(str(spec)):
        report(f"looking at hf:{spec.repo}", None)
        found = listing(spec)
        names = wanted_names(found, spec)
        manifests = {name: remote_manifest(found, name) for name in names}
        for name, manifest in manifests.items():  # before anything large is fetched
            if not force and not is_same(cache, name, manifest) and (cache / name / MANIFEST).exists():
                raise InputError(f"there is another bundle {name!r} already; --force replaces it")
        return [pull_bundle(found, name, manifests[name], cache=cache, report=report) for name in names]


def wanted_names(found: Listing, spec: RepoSpec) -> list[str]:
    """Which bundles of the repository are asked for; InputError if there is none."""
    names = found.bundles()
    if spec.name and spec.name not in names:
        held = f"it holds {', '.join(names)}" if names else "it holds none"
        raise InputError(f"the repository hf:{spec.repo} holds no bundle {spec.name!r}; {held}")
    if not names:
        raise InputError(
            f"the repository hf:{spec.repo} holds no bundle (no NAME/{MANIFEST}); push one: python -m sae_explore push NAME hf:{spec.repo}"
        )
    return [spec.name] if spec.name else names


def remote_manifest(found: Listing, name: str) -> dict:
    """The manifest of a bundle in the repository, checked throughout. In `hub_access`."""
    where = f"bundle {check_name(name)!r} of hf:{found.repo}"
    try:
        manifest = json.loads(read_small(found, f"{name}/{MANIFEST}", limit=MAX_MANIFEST).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"the manifest of {where} is no JSON") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise SourceError(
            f"{where} has schema version {str(schema)[:20]}, this program reads version {SCHEMA}; one of the two is older: update it"
        )
    try:
        check_manifest(manifest, name)
        _check_files(manifest["files"])
        check_checksum(manifest, name)
    except (BundleError, ValueError, RecursionError) as error:
        raise SourceError(f"the manifest of {where} is refused: {_short(error)}") from error
    prefix = f"{name}/{manifest['folder']}/"
    for file, entry in manifest["files"].items():
        size = found.sizes.get(prefix + file)
        if size is None:
            raise SourceError(f"{where} is incomplete: {file} is not in the repository; push it again")
        if size != entry["size"]:
            raise SourceError(f"{where} is damaged: {file} has {size:,} bytes instead of {entry['size']:,}; push it again")
    return manifest


def _check_files(files: dict) -> None:
    """ValueError for a manifest's files that a bundle cannot have."""
    if not 0 < len(files) <= _MAX_FILES:
        raise ValueError(f"it names {len(files):,} files, allowed are 1 to {_MAX_FILES}")
    for name, entry in files.items():
        if not _FILE.fullmatch(name) or PurePosixPath(name).suffix not in _KINDS:
            raise ValueError(f"{name[:80]!r} is no name of a bundle's file")
        size, digest = entry.get("size"), entry.get("sha256")
        if type(size) is not int or size < 0 or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise ValueError(f"it gives no size and sha256 of {name}")
    lower = [name.lower() for name in files]  # on some systems A and a are one file
    folders = {str(parent) for name in lower for parent in PurePosixPath(name).parents}
    if len(set(lower)) < len(lower) or folders & set(lower):
        raise ValueError("two of its files would be one")


def is_same(cache: Path, name: str, manifest: dict) -> bool:
    """Whether the bundle is here, whole, and the one of this manifest."""
    try:
        return read_manifest(cache / name) == manifest
    except BundleError:
        return False


def came_from(cache: Path, name: str) -> str | None:
    """The repository that the bundle which is here was fetched from; None if it was not, or has been built anew since."""
    try:
        origin = json.loads((cache / name / ORIGIN).read_text(encoding="utf-8"))
        return origin["repo"] if origin["checksum"] == read_manifest(cache / name)["checksum"] else None
    except (OSError, ValueError, LookupError, TypeError, BundleError):
        return None


def pull_bundle(found: Listing, name: str, manifest: dict, *, cache: Path, report: Report) -> Pulled:
    """Fetch one bundle and switch it in, whatever is there under its name. In `hub_access`."""
    files, total = manifest["files"], sum(entry["size"] for entry in manifest["files"].values())
    work = cache / f".pull-{check_name(name)}"
    with alone(work, f"bundle {name!r} is being fetched already; wait until that has ended"):
        if is_same(cache, name, manifest):
            _remove(work)
            return Pulled(name, found.repo, found.commit, "unchanged", len(files), total, 0)
        generation = _prepare(work, name, manifest)
        kept = {file for file, entry in files.items() if _is_right(generation / file, entry)}
        missing = total - sum(files[file]["size"] for file in kept)
        _check_space(cache, name, missing, generation)
        done, fetched = total - missing, missing
        for file in sorted(files.keys() - kept):
            _fetch_right(found, f"{name}/{manifest['folder']}/{file}", generation / file, files[file], _counter(report, name, done, total))
            done += files[file]["size"]
        report(f"checking {name}", 1.0)
        extras = [extra for extra in EXTRAS if f"{name}/{extra}" in found.sizes]
        for extra in extras:
            (generation.parent / extra).write_bytes(read_small(found, f"{name}/{extra}", limit=EXTRAS[extra]))
        write_json(generation.parent / MANIFEST, manifest)
        _check_opens(generation.parent, found.repo)
        target, state = cache / name, "replaced" if (cache / name / MANIFEST).exists() else "new"
        target.mkdir(parents=True, exist_ok=True)
        for extra in extras:
            os.replace(generation.parent / extra, target / extra)
        write_json(target / ORIGIN, {"repo": found.repo, "commit": found.commit, "checksum": manifest.get("checksum")})
        switch(generation, target, manifest)
        _remove(work)
    return Pulled(name, found.repo, found.commit, state, len(files), total, fetched)


def _prepare(work: Path, name: str, manifest: dict) -> Path:
    """The folder for the generation's files, with nothing else beside them: what an earlier try left of it stays."""
    generation = work / name / manifest["folder"]
    for path in sorted(work.rglob("*"), reverse=True):  # what is in a folder before the folder
        inside = path.relative_to(generation).as_posix() if path.is_relative_to(generation) else None
        wanted = inside is not None and inside.removesuffix(_PARTIAL) in manifest["files"] and path.is_file()
        if path.is_symlink() or (path.is_file() and not wanted):
            path.unlink()
    generation.mkdir(parents=True, exist_ok=True)
    return generation


def _is_right(path: Path, entry: dict) -> bool:
    return path.is_file() and path.stat().st_size == entry["size"] and sha256_of(path) == entry["sha256"]


def _check_space(cache: Path, name: str, missing: int, generation: Path) -> None:
    free = shutil.disk_usage(cache).free + sum(path.stat().st_size for path in generation.rglob(f"*{_PARTIAL}"))
    if missing + _SPARE > free:
        raise InputError(
            f"bundle {name!r} needs {missing / 1e6:,.0f} MB more, and {free / 1e6:,.0f} MB are free where the cache folder is; "
            "make room, or set SAE_EXPLORE_CACHE to another folder"
        )


def _counter(report: Report, name: str, before: int, total: int) -> Callable[[int], None]:
    def count(so_far: int) -> None:
        report(f"downloading {name}: {(before + so_far) / 1e6:.0f} of {total / 1e6:.0f} MB", (before + so_far) / max(total, 1))

    return count


def _fetch_right(found: Listing, path: str, target: Path, entry: dict, count: Callable[[int], None]) -> None:
    """Fetch a file whose hash is known; once more from its beginning if an earlier try had left a part that does not belong to it."""
    partial = target.with_name(target.name + _PARTIAL)
    for resumed in (partial.exists(), False):
        fetch(found, path, partial, count)
        if _is_right(partial, entry):
            os.replace(partial, target)
            return
        partial.unlink()
        if not resumed:
            break
    raise SourceError(f"{path} of hf:{found.repo} is not what the manifest says (sha256); it was thrown away; push the bundle again")


def _check_opens(folder: Path, repo: str) -> None:
    """Open the fetched bundle where it is, before it takes the place of another."""
    try:
        bundle = Bundle(folder)
        bundle.verify()
        bundle.card(0)
    except Exception as error:  # it comes from elsewhere: anything can be in it
        raise SourceError(f"bundle {folder.name!r} of hf:{repo} cannot be opened: {_short(error)}") from error


def _remove(work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)


def _short(error: BaseException) -> str:
    return str(error).removesuffix(f"; {AGAIN}")[:300]
