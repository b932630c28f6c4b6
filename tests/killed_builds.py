"""Builds killed with SIGKILL, one process after the other: python killed_builds.py CACHE MODEL TEXTS CONTEXT

Prints a line per process: the signal that ended it or its exit status, and the bundles that a reader sees then.
"""

import functools
import os
import signal
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel  # noqa: F401 (here once, not in each process)

from sae_explore import build as build_module
from sae_explore import build_stages, bundle_files, collect
from sae_explore.build import BuildRequest, build

torch.set_num_threads(1)
cache, model, texts, context = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
collect.BLOCK_TOKENS = 600
build_stages.residual_blocks = functools.partial(build_stages.residual_blocks, block_tokens=600)
build_stages.train_topk = functools.partial(build_stages.train_topk, checkpoint_every=7)
REQUEST = BuildRequest(
    "b", model, "blocks.1.hook_resid_post", texts=(texts,), latents=32, k=3, epochs=20, batch_tokens=300, context=context
)


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


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


def attempt(*, report=None, patch=lambda: None) -> None:
    child = os.fork()
    if not child:
        patch()
        build(REQUEST, cache=cache, report=report)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    ended = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
    print(ended, *bundle_files.bundle_names(cache), flush=True)


attempt(report=at("tokens", "reading"))
attempt(report=at("sae", "residuals", 0.5))
attempt(report=at("sae", "epoch", 0.5))
attempt(patch=after(build_stages, "save_sae"))
attempt(report=at("store", "texts", 0.5))
attempt(report=at("store", "ordering", 0.1))
attempt(report=at("features", "labels"))
attempt(patch=after(build_module, "complete_manifest"))
attempt(patch=after(os, "replace", lambda _, target: Path(target).name.startswith("g-")))  # moved, but not yet named by a manifest
attempt(patch=after(os, "replace", lambda _, target: target == cache / "b" / "manifest.json"))
attempt()
