"""Work in a thread of its own, done once for all sessions: pages look at how far it is and never wait for another visitor's."""

from __future__ import annotations

import threading


class BackgroundJob:
    """A daemon thread that can be started again. A subclass gives `_run`, and may say in `_wanted` whether there is anything to do."""

    def __init__(self, name: str):
        self._name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
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
        self.text, self.share = text, share
