"""Where a visitor's notes are kept: in `cache/labels/BUNDLE.json`, or with the session where many visitors share a server.

The file holds a section for each SAE that the bundle has had, so that a rebuilt bundle neither inherits nor loses labels:

    {"format": "sae-explore notes", "version": 1, "saes": {"3f1a...": {the JSON of `notes_json`}}}

A change is read, made and written under a lock of its own file, so that of two processes neither undoes the other's; the file is replaced
in one step, so that a reader sees the old or the new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from sae_explore.errors import InputError
from sae_explore.files.bundle_files import check_name, write_json
from sae_explore.notebook.notes import Notes
from sae_explore.notebook.notes_json import FORMAT, MAX_BYTES, VERSION, from_json, to_json

FOLDER = "labels"  # of the cache
_MAX_SECTIONS = 8  # SAEs of one name whose notes are kept
_changing = threading.Lock()


class NotesStore(Protocol):
    """Reads one bundle's notes and changes them."""

    def read(self) -> Notes: ...

    def change(self, edit: Callable[[Notes], Notes]) -> Notes: ...


@dataclass(frozen=True)
class FileStore:
    """Notes in the cache folder, shared by all processes that use it."""

    cache: Path
    bundle: str
    sae: str
    d_sae: int

    @property
    def path(self) -> Path:
        return self.cache / FOLDER / f"{check_name(self.bundle)}.json"

    def read(self) -> Notes:
        """The notes on this SAE, parsed anew only when the file has changed; InputError names a file that cannot be read, which is
        left as it is."""
        try:
            stat = self.path.stat()
        except OSError:
            return Notes()
        return _read(self, stat.st_mtime_ns, stat.st_size, stat.st_ino)

    def parsed(self) -> Notes:
        """The same, from the file as it is now."""
        section = self._sections().get(self.sae)
        if section is None:
            return Notes()
        try:
            return from_json(section, d_sae=self.d_sae, sae=self.sae)
        except InputError as error:
            raise InputError(f"your notes in {FOLDER}/{self.path.name} cannot be read: {error}") from error

    def change(self, edit: Callable[[Notes], Notes]) -> Notes:
        """Apply `edit` to the newest notes and keep what it returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path.with_name(f".{self.path.name}.lock")):
            sections = self._sections()
            found = edit(self.parsed())
            sections.pop(self.sae, None)
            sections[self.sae] = to_json(found, bundle=self.bundle, sae=self.sae)  # the newest last
            while len(sections) > _MAX_SECTIONS:
                del sections[next(iter(sections))]
            write_json(self.path, {"format": FORMAT, "version": VERSION, "saes": sections})
        return found

    def _sections(self) -> dict:
        shown = f"{FOLDER}/{self.path.name}"
        try:
            with self.path.open("rb") as file:
                data = file.read(_MAX_SECTIONS * MAX_BYTES + 1)
            found = json.loads(data.decode("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"your notes in {shown} cannot be read ({type(error).__name__}); mend or move the file away") from error
        sections = found.get("saes") if isinstance(found, dict) and found.get("version") == VERSION else None
        if not isinstance(sections, dict):
            raise InputError(f"{shown} is not of the form that this program writes; move the file away, or read it in on the page Lists")
        return sections


@lru_cache(maxsize=16)
def _read(store: FileStore, modified: int, size: int, inode: int) -> Notes:
    """An answer for each state of the file: a page asks several times."""
    return store.parsed()


class SessionStore:
    """Notes in one visitor's session: they end with it, unless they are taken away as JSON."""

    def __init__(self, session: MutableMapping, bundle: str, *, sae: str):
        self._session, self._key = session, f"_notes-{bundle}-{sae}"

    def read(self) -> Notes:
        return self._session.get(self._key, Notes())

    def change(self, edit: Callable[[Notes], Notes]) -> Notes:
        self._session[self._key] = found = edit(self.read())
        return found


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, against other threads and other processes. It goes with the process that holds it."""
    with _changing, path.open("ab") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        elif os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        yield
