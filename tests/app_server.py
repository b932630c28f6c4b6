"""The app as a process on a free loopback port, and the browser that drives it: for the browser tests and the README's screenshots."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class App(NamedTuple):
    """A running app."""

    url: str
    log: Path


@contextlib.contextmanager
def running_app(cache: Path) -> Iterator[App]:
    """Start the app on the bundles in `cache`, wait until it answers, and stop it in the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "streamlit_app.py", "--server.headless=true"]
    command += [f"--server.port={port}", "--server.address=127.0.0.1"]
    app = App(f"http://127.0.0.1:{port}", Path(tempfile.mkdtemp()) / "streamlit.log")
    with app.log.open("w") as out:
        environment = {**os.environ, "SAE_EXPLORE_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
        server = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        _wait(app)
        yield app
    finally:
        server.terminate()
        server.wait(20)


def _wait(app: App, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{app.url}/_stcore/health", timeout=1):
            return
        time.sleep(0.2)
    raise TimeoutError(f"the app did not start: {app.log.read_text()[-2000:]}")
