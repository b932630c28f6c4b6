"""Which large files of the bundles in a cache folder have been hashed and found right: so that each is read through once, not at each start.

    cache/.hashed.json     {"/path/of/cache/NAME/GENERATION/FILE": [size, modification time in ns, sha256]}

A file counts as known while path, size, modification time and the manifest's sha256 are those of its entry. The record is a convenience:
where it cannot be read or written, the files are hashed again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path

from sae_explore.files.bundle_files import write_json

log = logging.getLogger(__name__)

FILE = ".hashed.json"
_MAX_BYTES = 1 << 22
_MAX_ENTRIES = 2_000


def known(folder: Path, manifest: dict, *, at_least: int) -> set[str]:
    """Names of the bundle's files of `at_least` so many bytes that the record says are right."""
    large = [name for name, entry in manifest["files"].items() if entry["size"] >= at_least]
    record = _read(folder.parent / FILE) if large else {}
    return {name for name in large if record.get(_key(folder, manifest, name)) == _entry(folder, manifest, name)}


def keep(folder: Path, manifest: dict, names: Collection[str]) -> None:
    """Remember that these files of the bundle are what the manifest says."""
    if not names:
        return
    path = folder.parent / FILE
    record = {key: value for key, value in _read(path).items() if Path(key).is_file()}
    record |= {_key(folder, manifest, name): _entry(folder, manifest, name) for name in names}
    try:
        write_json(path, dict(list(record.items())[-_MAX_ENTRIES:]))
    except (OSError, UnicodeEncodeError) as error:  # a read-only folder, a full disk, a path that is no text
        log.info("hashes are not remembered: %s", error)


def _key(folder: Path, manifest: dict, name: str) -> str:
    return str((folder / manifest["folder"] / name).absolute())


def _entry(folder: Path, manifest: dict, name: str) -> list | None:
    """None for a file that is not there any more."""
    try:
        stat = (folder / manifest["folder"] / name).stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns, manifest["files"][name].get("sha256")]


def _read(path: Path) -> dict:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
