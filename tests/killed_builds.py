"""Builds killed with SIGKILL, one process after the other: python killed_builds.py CACHE MODEL TEXTS CONTEXT

Prints a line per process: the signal that ended it or its exit status, and the bundles that a reader sees then. Here the moments are
chosen; `soak/crashes.py` kills at random ones, with what is here. A process is forked from this one, which has imported everything that
takes long, and works with few texts in several blocks, shards and checkpoints all the same.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel  # noqa: F401 (here once, not in each process)

from sae_explore.activations import collect
from sae_explore.building import build_stages, build_work, sae_stage
from sae_explore.building.build import build
from sae_explore.building.build_request import BuildRequest
from sae_explore.files import bundle_files

torch.set_num_threads(1)


def small_steps() -> None:
    """Several blocks and checkpoints although the corpus is tiny."""
    collect.BLOCK_TOKENS = 600
    build_stages.residual_blocks = functools.partial(build_stages.residual_blocks, block_tokens=600)
    sae_stage.train_topk = functools.partial(sae_stage.train_topk, checkpoint_every=7)


def training(name: str, model: str, texts: str, context: int, **options) -> BuildRequest:
    """A build that trains an SAE of 32 latents in a second or two."""
    options = {"hook": "blocks.1.hook_resid_post", "latents": 32, "k": 3, "epochs": 20, "batch_tokens": 300, **options}
    return BuildRequest(name, model, texts=(texts,), context=context, **options)


def forked(run: Callable[[], object]) -> int:
    """Run a function in a process of its own, which ends with it and tidies nothing up; its number."""
    child = os.fork()
    if not child:
        try:
            run()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return child


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def how(status: int) -> str:
    """What `os.waitpid` says, in words."""
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"


def at(stage: str, part: str, share: float = 0.0):
    """A report that kills at this moment."""
    return lambda s, text, done: die() if s == stage and part in text and (done or 0) >= share else None


def after(module, name: str, when=lambda *_: True):
    """The first call of a function of which `when` is true is made, and is the last thing that happens."""
    original = getattr(module, name)

    def call(*args, **options):
        done = original(*args, **options)
        if when(*args):
            die()
        return done

    return lambda: setattr(module, name, call)


def main(cache: Path, model: str, texts: str, context: int) -> None:
    """Kill one build in each stage and between the steps of publishing, and let it end."""

    def attempt(*, report=None, patch=lambda: None) -> None:
        def run() -> None:
            patch()
            build(training("b", model, texts, context), cache=cache, report=report)

        print(how(os.waitpid(forked(run), 0)[1]), *bundle_files.bundle_names(cache), flush=True)

    small_steps()
    attempt(report=at("tokens", "reading"))
    attempt(report=at("sae", "residuals", 0.5))
    attempt(report=at("sae", "epoch", 0.5))
    attempt(patch=after(sae_stage, "save_sae"))
    attempt(report=at("store", "texts", 0.5))
    attempt(report=at("store", "ordering", 0.1))
    attempt(report=at("features", "labels"))
    attempt(patch=after(build_work, "complete_manifest"))
    attempt(patch=after(os, "replace", lambda _, target: Path(target).name.startswith("g-")))  # moved, but not yet named by a manifest
    attempt(patch=after(os, "replace", lambda _, target: target == cache / "b" / "manifest.json"))
    attempt()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
