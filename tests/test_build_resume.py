"""A build that is stopped anywhere goes on and ends with the same files; a reader never sees half a bundle."""

import functools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from build_checks import CONTEXT, write_corpus

from sae_explore import activation_store, build_stages, collect
from sae_explore import build as build_module
from sae_explore.build import BuildRequest, Work, build, work_folder
from sae_explore.bundle import open_bundle
from sae_explore.bundle_files import bundle_names
from sae_explore.errors import BundleError, InputError
from sae_explore.sae_formats import save_sae

HOOK = "blocks.1.hook_resid_post"


class Stopped(Exception):
    """Raised from a report, as a cancelling page does."""


@pytest.fixture
def small_steps(monkeypatch):
    """Several blocks, shards, parts and checkpoints although the corpus is tiny."""
    monkeypatch.setattr(collect, "BLOCK_TOKENS", 600)
    monkeypatch.setattr(build_stages, "residual_blocks", functools.partial(build_stages.residual_blocks, block_tokens=600))
    monkeypatch.setattr(build_stages, "train_topk", functools.partial(build_stages.train_topk, checkpoint_every=7))
    monkeypatch.setattr(activation_store, "_CHUNK", 5_000)


@pytest.fixture
def request_of(tmp_path, corpus_texts, gpt2_folder):
    path = tmp_path / "texts.jsonl"
    write_corpus(path, corpus_texts, 20)
    return BuildRequest("b", str(gpt2_folder), HOOK, texts=(str(path),), latents=32, k=3, epochs=20, batch_tokens=300, context=CONTEXT)


def files_of(cache: Path, name: str = "b") -> dict:
    return json.loads((cache / name / "manifest.json").read_text())


def event_of(stage: str, text: str, share: float | None) -> tuple:
    """A moment of a build: the training steps and texts counted, other numbers left out."""
    kept = text if stage in ("sae", "store") and re.search(r"residuals|texts", text) else re.sub(r"[\d.,]+", "#", text)
    return stage, kept, round((share or 0) * 8) if "epoch" in text else None


def test_stopped_at_every_report_a_build_still_ends_the_same(request_of, small_steps, tmp_path):
    build(request_of, cache=tmp_path / "undisturbed")
    expected = files_of(tmp_path / "undisturbed")
    stops: list[tuple] = []

    def report(*event):
        assert bundle_names(tmp_path / "cache") == []
        if event_of(*event) not in stops:
            stops.append(event_of(*event))
            raise Stopped

    while True:
        assert len(stops) < 100
        try:
            build(request_of, cache=tmp_path / "cache", report=report)
            break
        except Stopped:
            continue
    assert files_of(tmp_path / "cache") == expected
    reached = [stage for stage, *_ in stops]
    assert {"texts", "tokens", "sae", "store", "features", "metrics", "publish"} <= set(reached)
    assert sum("residuals of" in text for _, text, _ in stops) >= 4  # blocks of residuals to train on
    assert sum("epoch" in text for _, text, _ in stops) >= 5
    assert sum(stage == "store" and "texts" in text for stage, text, _ in stops) >= 4
    assert not work_folder(tmp_path / "cache", "b").exists()


DRIVER = """
import functools, os, signal, sys
from pathlib import Path
from sae_explore import build as build_module, build_stages, bundle_files, collect
from sae_explore.build import BuildRequest, build
import torch
torch.set_num_threads(1)
cache, model, texts = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
collect.BLOCK_TOKENS = 600
build_stages.residual_blocks = functools.partial(build_stages.residual_blocks, block_tokens=600)
build_stages.train_topk = functools.partial(build_stages.train_topk, checkpoint_every=7)
request = BuildRequest("b", model, "blocks.1.hook_resid_post", texts=(texts,), latents=32, k=3, epochs=20, batch_tokens=300, context=%d)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def at(stage, part, share=0.0):
    return lambda s, text, done: die() if s == stage and part in text and (done or 0) >= share else None

def killed_in(module, name, after):
    # the `after`-th call of a function of the file system is made, and is the last thing that happens
    original, calls = getattr(module, name), [0]
    def call(*args, **options):
        calls[0] += 1
        done = original(*args, **options)
        if calls[0] == after:
            die()
        return done
    setattr(module, name, call)

def attempt(report=None, patch=None):
    child = os.fork()
    if not child:
        if patch:
            killed_in(*patch)
        build(request, cache=cache, report=report)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    visible = bundle_files.bundle_names(cache)
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else "ended %%d" %% os.WEXITSTATUS(status), *visible, flush=True)

attempt(at("tokens", "reading"))
attempt(at("sae", "residuals", 0.5))
attempt(at("sae", "epoch", 0.5))
attempt(patch=(build_stages, "save_sae", 1))
attempt(at("store", "texts", 0.5))
attempt(at("store", "ordering", 0.1))
attempt(at("features", "labels"))
attempt(patch=(build_module, "complete_manifest", 1))
attempt(patch=(bundle_files, "_is_whole", 2))
attempt(patch=(bundle_files, "_generation_of", 1))
real_replace = os.replace
def replace(source, target):
    real_replace(source, target)
    if str(target).endswith(KILL):
        die()
os.replace = replace
KILL = bundle_files.complete_manifest.__module__ and "/b/" + "g-"
class Generation(str):
    pass
def moved(source, target):
    real_replace(source, target)
    if Path(target).parent.name == "b" and Path(target).name.startswith(PREFIX):
        die()
os.replace = moved
PREFIX = "g-"
attempt()
PREFIX = "manifest.json"
attempt()
PREFIX = "nothing"
attempt()
"""


def test_killed_with_no_chance_to_tidy_up_a_build_still_ends_the_same(request_of, small_steps, tmp_path):
    """SIGKILL in each stage and between the steps of publishing, in processes of their own."""
    build(request_of, cache=tmp_path / "undisturbed")
    expected = files_of(tmp_path / "undisturbed")
    cache = tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-c", DRIVER % CONTEXT, str(cache), request_of.model, request_of.texts[0]],
        capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[1], env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")[:-1]
    assert lines == ["9"] * (len(lines) - 2) + ["9 b", "ended 0 b"], done.stderr
    assert len(lines) == 13
    assert files_of(cache) == expected
    open_bundle("b", cache=cache).verify()
    assert not work_folder(cache, "b").exists()
