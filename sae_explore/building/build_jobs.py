"""Builds in the background: each is a process of its own, so that neither a reload nor the end of the app stops it.

    cache/.jobs/NAME/job.json        what was asked for: the request, the process that was started for it, and what it was expected to take
    cache/.jobs/NAME/progress.json   how far it is, or what became of it (`build_progress`), written by the process
    cache/.jobs/NAME/log.txt         what the process printed
    cache/.build-NAME/               its finished stages, with which it goes on (`build`)
    cache/uploads/NAME/              texts that were uploaded for it

The process is the command of the terminal, `python -m sae_explore build NAME ...`, so a build begun there is seen here as well. What is
on disk is all there is to know: nothing is kept in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from sae_explore.building.build_progress import (
    CANCELLED,
    DONE,
    FAILED,
    RUNNING,
    is_alive,
    job_folder,
    process_mark,
    read_progress,
    write_end,
)
from sae_explore.building.build_request import BuildRequest
from sae_explore.building.build_work import work_folder
from sae_explore.building.presets import PRESETS, request_for
from sae_explore.errors import ExploreError, InputError
from sae_explore.files.bundle_files import MANIFEST, alone, check_name, write_json
from sae_explore.texts.uploads import UPLOADS, Upload

STOPPED = "stopped"  # the process ended without a word: killed, or the machine was switched off
_JOB, _LOG = "job.json", "log.txt"
_GRACE = 10.0  # seconds in which a cancelled process may tidy up
_LOG_TAIL = 64 << 10  # bytes
_NICE = 5  # of a build, so that pages stay quick


@dataclass(frozen=True)
class Job:
    """A build that runs, ended, or can be gone on with."""

    name: str
    state: str  # running, done, failed, cancelled or stopped
    request: BuildRequest | None  # None where it cannot be read: such a build can only be removed
    process: dict = field(default_factory=dict)  # pid, mark, heartbeat and working directory of what runs or ran
    started: float = 0.0  # seconds since 1970
    ended: float = 0.0  # or, while it runs, its last sign of life
    stage: str = ""
    text: str = ""
    share: float | None = None
    part_started: float = 0.0  # when the part of the stage began whose `share` is done
    seconds: dict[str, float] = field(default_factory=dict)  # that the stages so far took
    expected: dict[str, float] = field(default_factory=dict)  # that all stages were expected to take
    error: str = ""
    launched: bool = True  # from here, not in a terminal

    @property
    def running(self) -> bool:
        return self.state == RUNNING

    @property
    def unfinished(self) -> bool:
        """Whether it has ended without a bundle."""
        return self.state in (FAILED, CANCELLED, STOPPED)


# ---- looking -----------------------------------------------------------------------------------------------------------


def jobs(cache: Path) -> list[Job]:
    """All builds, the running one first, then those that ended last. Finished ones are kept until they or their bundles are removed."""
    folders = _folders(cache / ".jobs") + [p for p in _folders(cache) if p.name.startswith(".build-")]
    names = {p.name.removeprefix(".build-") for p in folders}
    found = [job for name in sorted(names) if _is_name(name) and (job := job_named(cache, name))]
    return sorted(found, key=lambda job: (not job.running, -job.ended))


def job_named(cache: Path, name: str) -> Job | None:
    """The build of this name, if there is one that runs, ended, or can be gone on with."""
    folder = job_folder(cache, check_name(name))
    asked, progress = _read(folder / _JOB), read_progress(folder)
    kept = _read(work_folder(cache, name) / "state.json")
    if asked and progress and progress["pid"] != asked["pid"] and progress["started"] < asked["started"]:
        progress = None  # of the process before
    launched = bool(asked) and (progress is None or progress["pid"] == asked["pid"])
    process = progress or asked
    state = _state(progress, asked)
    if not (process or kept) or (state == DONE and not (launched and (cache / name / MANIFEST).is_file())):
        return None
    requests = [_request(found.get("request")) for found in ((asked, kept) if launched else (kept, asked))]
    return Job(
        name,
        state,
        next(filter(None, requests), None),
        process={key: process.get(key) for key in ("pid", "mark", "heartbeat", "cwd")},
        started=process.get("started", 0.0),
        ended=process.get("heartbeat", 0.0),
        stage=process.get("stage", ""),
        text=process.get("text", "starting"),
        share=process.get("share"),
        part_started=process.get("part_started", process.get("started", 0.0)),
        seconds=process.get("seconds", {}),
        expected=asked.get("expected", {}) if launched else {},
        error=_error(cache, name, state, process),
        launched=launched,
    )


def running(cache: Path) -> Job | None:
    """The build that runs now."""
    return next((job for job in jobs(cache) if job.running), None)


def _state(progress: dict | None, asked: dict) -> str:
    if progress:
        return STOPPED if progress["state"] == RUNNING and not is_alive(progress) else progress["state"]
    if asked and is_alive(asked):
        return RUNNING
    return FAILED if asked.get("exit", 0) > 0 else STOPPED


def _error(cache: Path, name: str, state: str, process: dict) -> str:
    if state == FAILED:
        if process.get("error"):
            return process["error"]
        said = [line for line in log_tail(cache, name) if line.startswith("error: ")]
        return said[-1].removeprefix("error: ") if said else "the process ended with an error; the log says more"
    if state == STOPPED:
        return "the process ended without a word: it was killed, as systems do when memory runs out, or the machine was switched off"
    return ""


def log_tail(cache: Path, name: str, lines: int = 30) -> list[str]:
    """The last lines that the build printed."""
    try:
        with (job_folder(cache, check_name(name)) / _LOG).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-lines:]


# ---- acting ------------------------------------------------------------------------------------------------------------


def start(
    request: BuildRequest,
    *,
    cache: Path,
    uploads: Sequence[Upload] = (),
    replace: bool = False,
    expected: dict[str, float] | None = None,
) -> Job:
    """Start a build, or go on with an unfinished one of the same request. InputError says why it cannot be.

    `uploads` are kept for it; `replace` builds a bundle anew that is there already; `expected` is what each stage may take, in seconds.
    """
    request = request.checked()
    with _only_one(cache, request.name):
        before, kept = job_named(cache, request.name), _read(work_folder(cache, request.name) / "state.json")
        unfinished = bool(before and before.unfinished and kept.get("done"))
        if unfinished and before.request not in (None, request):
            raise InputError(
                f"there is an unfinished build {request.name!r} with other settings; go on with it, remove it, or choose another name"
            )
        there = (cache / request.name / MANIFEST).is_file()
        if there and not (replace or unfinished):
            raise InputError(f"there is a bundle {request.name!r} already; replace it, or choose another name")
        if not unfinished:
            shutil.rmtree(job_folder(cache, request.name), ignore_errors=True)
        for upload in uploads:
            upload.save(cache, request.name)
        how = "--resume" if unfinished else "--force" if there else None
        return _launch(request, cache, [how] if how else [], expected or {})


def resume(cache: Path, name: str) -> Job:
    """Go on with a build that was cancelled, killed or failed; its finished stages are kept."""
    with _only_one(cache, name):
        job = job_named(cache, name)
        if job is None or not job.unfinished:
            raise InputError(f"there is no unfinished build {name!r}")
        if job.request is None:
            raise InputError(f"the settings of the unfinished build {name!r} cannot be read; remove it and begin anew")
        folder = Path(job.process["cwd"]) if not job.launched and job.process.get("cwd") else None  # its files may be named from there
        return _launch(job.request, cache, ["--resume"] if work_folder(cache, name).is_dir() else [], job.expected, folder=folder)


def cancel(cache: Path, name: str) -> None:
    """End a running build, with its own children; its finished stages are kept. Waits until it has ended, seconds at most."""
    job = job_named(cache, name)
    if job is None or not job.running:
        return
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        _signal(job, number)
        if _ended(job, _GRACE):
            break
    progress = read_progress(job_folder(cache, name)) or {}
    if progress.get("pid") != job.process["pid"]:
        progress = {"pid": job.process["pid"], "started": job.started, "text": job.text, "state": RUNNING}
    if progress["state"] == RUNNING:  # it could not say so itself
        write_end(job_folder(cache, name), progress, state=CANCELLED, heartbeat=time.time())


def remove(cache: Path, name: str) -> None:
    """Forget a build that has ended: its finished stages, its log and its uploads. Its bundle, if there is one, stays."""
    job = job_named(cache, name)
    if job and job.running:
        raise InputError(f"bundle {name!r} is being built; cancel that first")
    (work_folder(cache, name) / "state.json").unlink(missing_ok=True)
    for folder in (work_folder(cache, name), job_folder(cache, name), cache / UPLOADS / name):
        shutil.rmtree(folder, ignore_errors=True)


def tidy(cache: Path) -> None:
    """Remove the uploads of builds that are done or gone."""
    with _starting:  # a build that is being started has its uploads before it is known
        for folder in _folders(cache / UPLOADS):
            job = job_named(cache, folder.name) if _is_name(folder.name) else None
            if job is None or job.state == DONE:
                shutil.rmtree(folder, ignore_errors=True)


def command_of(request: BuildRequest) -> list[str]:
    """The arguments after `python -m sae_explore` that ask for this request: as few as its name or a preset allows."""
    wanted = {f.name: getattr(request, f.name) for f in fields(request)}
    for preset in (None, *PRESETS):
        base = request_for(request.name, preset=preset)
        changed = {name: value for name, value in wanted.items() if value != getattr(base, name)}
        for also in ((), ("hook",), ("hook", "sae")):  # an SAE may bring a hook of its own, and a hook a published SAE
            options = changed | {name: wanted[name] for name in also}
            if _is_asked_for(request, preset, options):
                return ["build", request.name, *([f"--preset={preset}"] if preset else []), *_said(options)]
    raise InputError("these settings cannot be said on the command line")


def _is_asked_for(request: BuildRequest, preset: str | None, options: dict) -> bool:
    if any(value in (None, ()) for value in options.values()):  # no option says that
        return False
    try:
        return request_for(request.name, preset=preset, **options) == request
    except InputError:
        return False


def _said(options: dict) -> Iterator[str]:
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        yield from [option, *value] if isinstance(value, tuple) else [f"{option}={value}"]


# ---- processes ---------------------------------------------------------------------------------------------------------

_starting = threading.Lock()
_noting = threading.Lock()  # a job's file, so that the end of one process is not noted over the next one's beginning


@contextlib.contextmanager
def _only_one(cache: Path, name: str) -> Iterator[None]:
    """Refuse a second build beside a running one, whoever asks and from whatever process."""
    with _starting, alone(cache / ".jobs", "another build is being started at this moment; look again"):
        if now := running(cache):
            already = "already" if now.name == name else "now, and one build at a time is enough for a machine"
            raise InputError(f"bundle {now.name!r} is being built {already}; wait until it has ended, or cancel it")
        yield


def _launch(request: BuildRequest, cache: Path, how: list[str], expected: dict[str, float], *, folder: Path | None = None) -> Job:
    cache = cache.resolve()
    own = job_folder(cache, request.name)
    own.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "sae_explore", *command_of(request), *how]
    package = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ,
        "SAE_EXPLORE_CACHE": str(cache),
        "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    started = time.time()
    with (own / _LOG).open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder or cache, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    with contextlib.suppress(OSError, AttributeError):  # not everywhere
        os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
    asked = {"request": asdict(request), "expected": expected, "pid": process.pid, "mark": process_mark(process.pid)}
    asked |= {"started": started, "heartbeat": started}
    _begun(own / _JOB, asked)
    threading.Thread(target=_wait_for, args=(process, own / _JOB, asked), name=f"build {request.name}", daemon=True).start()
    return job_named(cache, request.name)


def _begun(file: Path, asked: dict) -> None:
    with _noting:
        write_json(file, asked)


def _wait_for(process: subprocess.Popen, file: Path, asked: dict) -> None:
    """Take leave of the process when it ends, and note how it did; if the app has gone before, nobody needs to."""
    code = process.wait()
    with contextlib.suppress(OSError), _noting:
        if _read(file).get("pid") == process.pid:  # not removed, and not begun again since
            write_json(file, {**asked, "exit": code})


def _signal(job: Job, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if is_alive(job.process):
            if job.launched and hasattr(os, "killpg"):  # it leads a session of its own
                os.killpg(job.process["pid"], number)
            else:
                os.kill(job.process["pid"], number)


def _ended(job: Job, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while is_alive(job.process):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _folders(parent: Path) -> list[Path]:
    return [p for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []


def _is_name(name: str) -> bool:
    try:
        return bool(check_name(name))
    except InputError:
        return False


def _read(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _request(kept: object) -> BuildRequest | None:
    """The request as it was kept in a file; None if it is none."""
    if not isinstance(kept, dict):
        return None
    try:
        return BuildRequest(**{key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()}).checked()
    except (TypeError, ExploreError):
        return None
