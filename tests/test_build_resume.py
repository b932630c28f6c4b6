"""A build that is stopped anywhere goes on and ends with the same files; a reader never sees half a bundle."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from build_checks import CONTEXT, write_corpus

from sae_explore.activations import activation_store, collect, encoding
from sae_explore.building import build_stages, sae_stage
from sae_explore.building.build import build
from sae_explore.building.build_request import BuildRequest
from sae_explore.building.build_work import STAGES, Work, work_folder
from sae_explore.bundles.bundle import open_bundle
from sae_explore.errors import BundleError, InputError
from sae_explore.files.bundle_files import bundle_names, complete_manifest, write_json
from sae_explore.saes.sae_formats import save_sae

HOOK = "blocks.1.hook_resid_post"
ALL = {"texts", "tokens", "sae", "store", "features", "map", "metrics"}


class Stopped(Exception):
    """Raised from a report, as a cancelling page does."""


@pytest.fixture
def small_steps(monkeypatch):
    """Several blocks, shards, parts and checkpoints although the corpus is tiny."""
    monkeypatch.setattr(collect, "BLOCK_TOKENS", 600)
    monkeypatch.setattr(build_stages, "residual_blocks", functools.partial(build_stages.residual_blocks, block_tokens=600))
    monkeypatch.setattr(sae_stage, "train_topk", functools.partial(sae_stage.train_topk, checkpoint_every=7))
    monkeypatch.setattr(activation_store, "_CHUNK", 5_000)


@pytest.fixture
def request_of(tmp_path, corpus_texts, gpt2_folder):
    path = tmp_path / "texts.jsonl"
    write_corpus(path, corpus_texts, 16)
    return BuildRequest("b", str(gpt2_folder), HOOK, texts=(str(path),), latents=32, k=3, epochs=20, batch_tokens=300, context=CONTEXT)


def manifest_of(cache: Path) -> dict:
    return json.loads((cache / "b" / "manifest.json").read_text())


def event_of(stage: str, text: str, share: float | None) -> tuple:
    """A moment of a build: the training steps and texts counted, other numbers left out."""
    kept = text if stage in ("sae", "store") and re.search(r"residuals|texts", text) else re.sub(r"[\d.,]+", "#", text)
    return stage, kept, round((share or 0) * 8) if "epoch" in text else None


def test_stopped_at_every_report_a_build_still_ends_the_same(request_of, small_steps, tmp_path):
    build(request_of, cache=tmp_path / "undisturbed")
    expected = manifest_of(tmp_path / "undisturbed")
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
    assert manifest_of(tmp_path / "cache") == expected
    reached = [stage for stage, *_ in stops]
    assert {"texts", "tokens", "sae", "store", "features", "metrics", "publish"} <= set(reached)
    assert sum("residuals of" in text for _, text, _ in stops) >= 4  # blocks of residuals to train on
    assert sum("epoch" in text for _, text, _ in stops) >= 5
    assert sum(stage == "store" and "texts" in text for stage, text, _ in stops) >= 4
    assert not work_folder(tmp_path / "cache", "b").exists()


def test_stopped_before_a_part_of_the_store_is_written_a_build_writes_it_later(request_of, small_steps, tmp_path, monkeypatch):
    """And goes on in the precision that it was begun in, without measuring again."""
    build(request_of, cache=tmp_path / "undisturbed")
    write, calls = encoding.write_block, []

    def stop(*args) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise Stopped
        write(*args)

    monkeypatch.setattr(encoding, "write_block", stop)
    with pytest.raises(Stopped):
        build(request_of, cache=tmp_path / "cache")
    monkeypatch.setattr(encoding, "store_dtype", lambda *_args, **_options: pytest.fail("measured again"))
    build(request_of, cache=tmp_path / "cache")
    assert manifest_of(tmp_path / "cache") == manifest_of(tmp_path / "undisturbed")


def test_killed_with_no_chance_to_tidy_up_a_build_still_ends_the_same(request_of, small_steps, tmp_path):
    """SIGKILL in each stage and between the steps of publishing."""
    build(request_of, cache=tmp_path / "undisturbed")
    tests, cache = Path(__file__).parent, tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, str(tests / "killed_builds.py"), str(cache), request_of.model, request_of.texts[0], str(CONTEXT)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tests.parent), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == 9 * ["signal 9"] + ["signal 9 b", "exit 0 b"], done.stderr
    assert manifest_of(cache) == manifest_of(tmp_path / "undisturbed")
    open_bundle("b", cache=cache).verify()
    assert not work_folder(cache, "b").exists()


def test_a_bundle_stays_readable_while_it_is_built_again(request_of, small_steps, tmp_path):
    build(request_of, cache=tmp_path)
    old, generation = open_bundle("b", cache=tmp_path), manifest_of(tmp_path)["folder"]
    cards = [old.card(f).top for f in range(4)]
    events = []

    def report(stage, _text, _share):
        events.append(stage)
        found = open_bundle("b", cache=tmp_path)
        assert found.manifest["folder"] == generation
        found.verify()

    build(replace(request_of, seed=1), cache=tmp_path, force=True, report=report)
    assert set(events) >= {"texts", "sae", "store", "features", "metrics", "publish"}
    assert open_bundle("b", cache=tmp_path).manifest["folder"] != generation
    old.verify()
    assert [[e.values.tolist() for e in old.card(f).top] for f in range(4)] == [[e.values.tolist() for e in top] for top in cards]


def stopped(request: BuildRequest, cache: Path, stage: str) -> None:
    """Build until the first report of a stage."""

    def report(found, _text, _share):
        if found == stage:
            raise Stopped

    with pytest.raises(Stopped):
        build(request, cache=cache, report=report)


def stages_of(request: BuildRequest, cache: Path, **options) -> set[str]:
    """The stages that a build reports."""
    seen = []
    build(request, cache=cache, report=lambda stage, _text, _share: seen.append(stage), **options)
    return set(seen[1:]) - {"model", "publish"}  # the first only says that the build has begun


def test_unfinished_work_of_other_options_is_not_used(request_of, tmp_path):
    stopped(request_of, tmp_path / "cache", "features")
    other = replace(request_of, k=2, max_texts=10)
    assert stages_of(other, tmp_path / "cache") == ALL
    build(other, cache=tmp_path / "fresh")
    assert manifest_of(tmp_path / "cache") == manifest_of(tmp_path / "fresh")


def test_what_is_done_is_not_done_again_unless_forced(request_of, tmp_path):
    stopped(request_of, tmp_path, "features")
    stopped(request_of, tmp_path, "metrics")
    assert stages_of(request_of, tmp_path) == {"tokens", "metrics"}  # texts are tokenised anew to be evaluated
    stopped(replace(request_of, name="c"), tmp_path, "metrics")
    assert stages_of(replace(request_of, name="c"), tmp_path, force=True) == ALL


@pytest.mark.parametrize(("stage", "text"), [("sae", "residuals"), ("sae", "epoch"), ("store", "texts")])
def test_a_stage_of_many_steps_goes_on_where_it_was(request_of, small_steps, tmp_path, stage, text):
    """Not at its beginning: residuals, training steps and activations that were kept are not worked out again."""
    shares: list[float] = []

    def stop_half_way(found, said, share):
        if found == stage and text in said and share > 0.5:
            shares.append(share)
            raise Stopped

    with pytest.raises(Stopped):
        build(request_of, cache=tmp_path, report=stop_half_way)
    again = []
    build(request_of, cache=tmp_path, report=lambda found, said, share: again.append(share) if found == stage and text in said else None)
    assert again[0] > 0.4
    if text != "epoch":  # training goes on from a checkpoint, the others from the very step
        assert again[0] > shares[0]


def test_a_build_killed_while_it_tidies_up_is_no_unfinished_one(request_of, tmp_path, monkeypatch):
    work = Work(tmp_path / "work", request_of, fresh=False)
    for name in STAGES:
        work.stage(name, dict)
    monkeypatch.setattr(shutil, "rmtree", lambda *_args, **_options: None)
    work.remove()
    monkeypatch.undo()
    assert Work(tmp_path / "work", request_of, fresh=False).state["done"] == {}


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"request": 1}', '{"schema": 0, "done": {"texts": {}}}'])
def test_state_that_cannot_be_read_is_not_used(request_of, tmp_path, text):
    folder = tmp_path / "work"
    work = Work(folder, request_of, fresh=False)
    assert work.stage("texts", lambda: {"documents": 3}) == {"documents": 3}
    (work.out / "sae").mkdir()
    assert Work(folder, request_of, fresh=False).state["done"] == {"texts": {"documents": 3}}
    (folder / "state.json").write_text(text)
    again = Work(folder, request_of, fresh=False)
    assert again.state["done"] == {}
    assert sorted(p.name for p in folder.rglob("*")) == ["out", "state.json"]


def test_inputs_that_change_under_an_unfinished_build_are_noticed(request_of, random_sae, tmp_path):
    sae = random_sae("topk", 32, 48, k=3, hook=HOOK, context=CONTEXT)
    save_sae(sae, tmp_path / "sae")
    request = replace(request_of, sae=str(tmp_path / "sae"))
    stopped(request, tmp_path, "features")
    save_sae(replace(sae, b_enc=sae.b_enc + 1), tmp_path / "sae")
    with pytest.raises(
        InputError, match=r"the SAE in .*/sae has changed since this build was begun; start it from the beginning with --force"
    ):
        build(request, cache=tmp_path)
    build(request, cache=tmp_path, force=True)

    model = tmp_path / "model"
    shutil.copytree(request_of.model, model)
    request = replace(request_of, name="m", model=str(model))
    stopped(request, tmp_path, "store")
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-2_000:] = bytes(2_000)
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match=r"the model .*/model has changed since this build was begun"):
        build(request, cache=tmp_path)


def test_files_lost_from_unfinished_work_do_not_become_a_bundle(request_of, tmp_path):
    """Someone tidied up after the files were listed."""
    stopped(request_of, tmp_path, "publish")
    work = Work(work_folder(tmp_path, "b"), request_of.checked(), fresh=False)
    assert set(work.state["done"]) == set(STAGES)
    manifest = complete_manifest(work.out, {})
    write_json(work.folder / "manifest.json", manifest)
    (work.out / "lens.safetensors").unlink()
    with pytest.raises(BundleError, match="changed before they could be published; build it again with --force"):
        build(request_of, cache=tmp_path)
    assert bundle_names(tmp_path) == []


def test_one_build_of_a_name_at_a_time(request_of, tmp_path):
    refused = []

    def report(stage, _text, _share):
        if stage == "sae" and not refused:
            with pytest.raises(InputError, match="bundle 'b' is being built already; wait until that has ended") as caught:
                build(request_of, cache=tmp_path, force=True)
            refused.append(caught)

    build(request_of, cache=tmp_path, report=report)
    assert refused
    open_bundle("b", cache=tmp_path).verify()


DISK_FULL = """
import resource, sys
from pathlib import Path
import torch
from transformers import GPT2LMHeadModel
from sae_explore import command_line
from sae_explore.__main__ import main
torch.set_num_threads(1)
for kilobytes in map(int, sys.argv[1].split(",")):
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes << 10, resource.RLIM_INFINITY))
    print(command_line.run(main, sys.argv[2:]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs Linux")
def test_files_that_cannot_grow_are_one_line(request_of, tmp_path):
    """As on a full disk: whatever file meets the limit, the build says so and goes on when there is room."""
    command = ["build", "b", "--json", "--model", request_of.model, "--hook", HOOK, "--texts", *request_of.texts, "--context", str(CONTEXT)]
    command += ["--latents", "32", "--k", "3", "--epochs", "2", "--batch-tokens", "300"]
    limits = (1, 8, 20, 40, 100, 100_000)
    done = subprocess.run(
        [sys.executable, "-c", DISK_FULL, ",".join(map(str, limits)), *command], capture_output=True, text=True,
        cwd=Path(__file__).parents[1], env={**os.environ, "SAE_EXPLORE_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    codes = [line for line in done.stdout.splitlines() if not line.startswith("{")]
    failed = codes.index("0")
    assert codes[:failed] == ["2"] * failed
    assert failed >= 4
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) >= failed
    assert "Traceback" not in done.stderr
    assert all("File too large" in line or "disk full" in line for line in errors[:failed])
    open_bundle("b", cache=tmp_path).verify()
