"""Work in the background: begun once, and ended with the program."""

import subprocess
import sys
import threading
from pathlib import Path

from sae_explore.background import BackgroundJob

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import torch
from sae_explore.background import BackgroundJob

class Busy(BackgroundJob):
    def _run(self):
        try:
            n = 0
            while True:
                x = torch.randn(200, 200)
                x @ x
                n += 1
                self._report(f"product {n}", None)
        finally:
            print("tidied up")

job = Busy("busy")
job.start()
while "product" not in job.text:
    job.wait(0.01)
"""


def test_a_program_that_ends_ends_its_work_first():
    """Without that, the process aborts: a thread inside PyTorch cannot be ended from the outside."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "tidied up\n", "")


def test_of_two_that_start_at_once_one_begins_the_work():
    """The second one comes while the first is still asking whether there is anything to do."""
    came, seconds, end = [], [], threading.Event()

    class Job(BackgroundJob):
        def _wanted(self):
            if not seconds:
                seconds.append(threading.Thread(target=self.start))
                seconds[0].start()
                seconds[0].join(0.3)  # it waits for the first one to have begun
            return True

        def _run(self):
            came.append(threading.current_thread())
            end.wait(60)

    job = Job("one")
    job.start()
    seconds[0].join(60)
    end.set()
    assert job.wait(60)
    assert len(came) == 1
