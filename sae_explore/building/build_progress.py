"""How far a build is, as a small file that its own process keeps writing: `cache/.jobs/NAME/progress.json`.

The file is beside the working folder, not in it: a build empties that folder when it begins anew and removes it when it is done, and
what became of a build must be readable after that. Written atomically about once a second, whether or not anything new is reported, so
that its age is the process's sign of life.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path

from sae_explore.errors import ExploreError
from sae_explore.files.bundle_files import write_json

log = logging.getLogger(__name__)

FILE = "progress.json"
RUNNING, DONE, FAILED, CANCELLED = "running", "done", "failed", "cancelled"
_EVERY = 1.0  # seconds between two looks at what has been reported
_SIGN_OF_LIFE = 5.0  # seconds after which the file is written although nothing was reported
_SILENT = 60.0  # seconds without a sign of life after which a process that cannot be looked at counts as ended


def job_folder(cache: Path, name: str) -> Path:
    """Where a build's progress, its request and its log are kept."""
    return cache / ".jobs" / name


class ProgressFile:
    """Callable as a build's `report`; what ends the `with` block decides the last state: done, failed or cancelled.

    Nothing is written before the first report, which a build makes once it holds its lock: a second build of the same name, refused,
    leaves the file of the first one alone.
    """

    def __init__(self, folder: Path):
        self._folder, self._lock, self._ended = folder, threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._changed = False
        self._state: dict = {}

    def __enter__(self) -> ProgressFile:
        return self

    def __call__(self, stage: str, text: str, share: float | None) -> None:
        with self._lock:
            if not self._state:
                self._begin()
            now = time.time()
            state = self._state
            new_stage = stage != state["stage"]
            if new_stage:
                _end_stage(state, now)
                state["stage_started"] = now
            before = state["share"]
            if new_stage or (share is None) != (before is None) or (share or 0.0) < (before or 0.0):  # the next part of a stage
                state["part_started"] = now
            state |= {"stage": stage, "text": text, "share": share}
            self._changed = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        self._ended.set()
        if self._thread is None:
            return
        self._thread.join()
        with self._lock:
            _end_stage(self._state, time.time())
            if kind is None:
                self._state |= {"state": DONE, "share": 1.0}
            elif issubclass(kind, KeyboardInterrupt):
                self._state["state"] = CANCELLED
            else:
                self._state |= {"state": FAILED, "error": str(error) if isinstance(error, ExploreError) else f"{kind.__name__}: {error}"}
            if (read_progress(self._folder) or {}).get("pid") in (None, self._state["pid"]):  # not that of a build begun since
                self._write()

    def _begin(self) -> None:
        pid, now = os.getpid(), time.time()
        self._state = {"state": RUNNING, "pid": pid, "mark": process_mark(pid), "cwd": os.getcwd(), "started": now}
        self._state |= {"stage": "", "stage_started": now, "text": "", "share": None, "seconds": {}}
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write()
        self._thread = threading.Thread(target=self._keep_writing, name="build progress", daemon=True)
        self._thread.start()

    def _keep_writing(self) -> None:
        written = time.time()
        while not self._ended.wait(_EVERY):
            with self._lock:
                if self._changed or time.time() - written > _SIGN_OF_LIFE:
                    self._write()
                    written, self._changed = time.time(), False

    def _write(self) -> None:
        try:
            write_json(self._folder / FILE, {**self._state, "heartbeat": time.time()})
        except OSError as error:  # a full disk: the build itself will say so
            log.warning("the progress cannot be written: %s", error)


def _end_stage(state: dict, now: float) -> None:
    """Add the time of the stage that ends to its seconds; a stage may be entered more than once."""
    if state["stage"]:
        state["seconds"][state["stage"]] = state["seconds"].get(state["stage"], 0.0) + now - state["stage_started"]


def read_progress(folder: Path) -> dict | None:
    """The file's contents; None where there is none, or none that can be read."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("pid"), int) else None


def write_end(folder: Path, progress: dict, **changes) -> None:
    """Say for a process that has ended what became of it, because it could not."""
    write_json(folder / FILE, {**progress, **changes})


def process_mark(pid: int) -> str | None:
    """What tells a process from a later one with the same number: when it started, in the system's ticks. None where that is not known,
    and for a process that has ended but was not waited for.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def is_alive(progress: dict) -> bool:
    """Whether the process of this `{"pid", "mark", "heartbeat"}` runs still."""
    pid, mark = progress["pid"], progress.get("mark")
    if mark is not None or Path("/proc/self/stat").exists():
        return mark is not None and process_mark(pid) == mark
    if os.name == "nt":  # no harmless signal there
        return time.time() - progress.get("heartbeat", 0.0) < _SILENT
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
