"""Work in a thread of its own, done once for all sessions: pages look at how far it is and never wait for another visitor's.

When the program ends, work that is being done ends at its next report, and is waited for a little: a thread that is still inside PyTorch
when Python goes down takes the process with it ("terminate called without an active exception").
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref

_LAST_WAIT = 10.0  # seconds: loading a small model from a slow disk

_ending = threading.Event()
_jobs: weakref.WeakSet[BackgroundJob] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    _ending.set()
    end = time.monotonic() + _LAST_WAIT
    for job in list(_jobs):
        job.wait(max(0.0, end - time.monotonic()))


class BackgroundJob:
    """A daemon thread that can be started again. A subclass gives `_run`, and may say in `_wanted` whether there is anything to do."""

    def __init__(self, name: str):
        self._name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        _jobs.add(self)
        self.text, self.share = "waiting to start", None  # what is being done, and how much of it (0..1), if that is known

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin, or begin again where there is something left to do; does nothing while it runs."""
        with self._lock:
            if not self.running and self._wanted():
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait a little; whether it has ended."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.running

    def _wanted(self) -> bool:
        return True

    def _run(self) -> None:
        raise NotImplementedError

    def _report(self, text: str, share: float | None) -> None:
        if _ending.is_set():
            raise SystemExit  # which ends a thread without a word
        self.text, self.share = text, share
