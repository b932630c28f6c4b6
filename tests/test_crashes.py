"""The crash test of `soak/crashes.py`, small: a few kills of a build, a download and a fetch, and of two processes that save labels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parent / "soak"


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
def test_killed_at_random_moments_nothing_is_lost_and_readers_see_whole_bundles():
    command = [sys.executable, str(SOAK / "crashes.py"), "--kills=4", "--label-kills=4", "--variants=1", "--seed=3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.stdout, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert (done.returncode, found["problems"], found["labels"]["problems"]) == (0, [], []), done.stderr[-3000:]
    assert (found["kills"], found["labels"]["kills"]) == (4, 4)
    assert found["reader"]["reads"] > 0
    assert found["labels"]["saved"] > 0
