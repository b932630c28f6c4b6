"""Work in the background when the program ends."""

import subprocess
import sys
from pathlib import Path

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
