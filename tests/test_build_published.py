"""`build gpt2` from end to end over a loopback Hub in the published layouts: cold cache, warm cache, and the Hub gone; by the button too."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sae_layouts as layouts
import torch
from app_driver import open_page, run, texts_of, unescaped
from hub_server import HubServer
from test_hub_texts import make_hub
from transformers import GPT2Config, GPT2LMHeadModel

from sae_explore import resources
from sae_explore.building import build_jobs, estimate
from sae_explore.building.presets import request_for
from sae_explore.files import hub
from sae_explore.models import model_sources
from sae_explore.saes import sae_names

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "blocks.7.hook_resid_pre"


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory, save_model) -> Path:
    """GPT-2 of eight blocks, the SAE of block 7's input, and three of the four diverse data sets, under the pinned commits."""
    folder = tmp_path_factory.mktemp("hub")
    make_hub(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=600, n_positions=128, n_embd=layouts.D, n_layer=8, n_head=2, bos_token_id=0, eos_token_id=0, initializer_range=0.2
    )
    model, sae = folder / "models" / model_sources.GPT2, folder / "models" / sae_names.GPT2_SAES
    save_model(GPT2LMHeadModel(config), model)
    layouts.write_old_saelens(sae / FOLDER, quiet=8.0, hook_point=FOLDER, hook_point_layer=7)
    for path, commit in ((model, model_sources._PINNED[model_sources.GPT2]), (sae, sae_names.PINNED[sae_names.GPT2_SAES])):
        (path / ".commit").write_text(commit)
    return folder


def command(environment: dict, *arguments: str) -> subprocess.CompletedProcess:
    asked = [sys.executable, "-m", "sae_explore", *arguments]
    return subprocess.run(asked, capture_output=True, text=True, timeout=900, cwd=ROOT, env=environment)


@pytest.mark.slow
def test_build_gpt2(hub_folder, tmp_path):
    cache, home = tmp_path / "cache", tmp_path / "home"
    with HubServer(hub_folder) as server:
        environment = {**server.environment(home), "SAE_EXPLORE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        done = command(environment, "build", "gpt2", "--max-texts", "24", "--json")
        assert done.returncode == 0, done.stderr
        asked = {path for _, path in server.log}
    assert json.loads(done.stdout)["bundle"] == "gpt2"
    assert "stanfordnlp/imdb (reviews) is left out" in done.stderr  # the one data set that is not there
    manifest = json.loads((cache / "gpt2/manifest.json").read_text())
    sae = manifest["sae"]
    assert (sae["source"], sae["revision"]) == (f"{sae_names.GPT2_SAES}:{FOLDER}", sae_names.PINNED[sae_names.GPT2_SAES])
    assert manifest["model"]["revision"] == model_sources._PINNED[model_sources.GPT2]
    assert (manifest["hook"], manifest["context"], manifest["bos"]) == (FOLDER, 64, True)
    assert sae["center_input"]
    assert {s["name"] for s in manifest["corpus"]["sources"]} >= {"fancyzhx/ag_news", "wikimedia/wikipedia", "embedded"}
    assert not any("sparsity" in path for path in asked)
    assert list(home.rglob(f"snapshots/{sae['revision']}/{FOLDER}/cfg.json"))  # in the Hub's own cache, where HF_HOME says

    again = command(environment, "build", "gpt2", "--force", "--max-texts", "24", "--texts", "embedded", "--json")  # the Hub is gone by now
    assert again.returncode == 0, again.stderr
    files = json.loads((cache / "gpt2/manifest.json").read_text())["files"]
    assert files["sae/sae_weights.safetensors"] == manifest["files"]["sae/sae_weights.safetensors"]
    other = command(environment, "build", "other", "--sae", f"{sae_names.GPT2_SAES}:blocks.8.hook_resid_pre", "--texts", "embedded")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert f"the SAE {sae_names.GPT2_SAES} would come from the Hugging Face Hub, but http://127.0.0.1" in other.stderr


@pytest.mark.slow
def test_the_button_sets_up_gpt2(hub_folder, tmp_path, monkeypatch):
    """From an app without any bundle to GPT-2's, by a click: the build runs in its own process, and its bundle opens first."""
    cache = tmp_path / "cache"
    with HubServer(hub_folder) as server:
        for name, value in {**server.environment(tmp_path / "home"), "SAE_EXPLORE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home/hub"))
        monkeypatch.setattr(hub, "_problems", {})
        monkeypatch.setattr(estimate, "this_machine", lambda _cache: estimate.Machine(1e12, 1 << 40, 1 << 40))
        # as the button asks, but over fewer texts
        monkeypatch.setattr("sae_explore.views.setup_gpt2.request_for", lambda name: request_for(name, max_texts=24))
        cache.mkdir()
        at = run(open_page("").sidebar.button(key="setup_gpt2").click())
        assert "Building gpt2" in unescaped(texts_of(at))
        assert build_jobs.running(cache).name == "gpt2"
        assert [b.key for b in open_page("").button if b.key == "setup_gpt2"] == []  # a second visitor begins no second one
        end = time.monotonic() + 600
        while build_jobs.running(cache) and time.monotonic() < end:
            time.sleep(0.1)
    job = build_jobs.job_named(cache, "gpt2")
    assert (job.state, job.error) == (build_jobs.DONE, "")
    assert resources.bundle_names() == ["gpt2"]
    manifest = json.loads((cache / "gpt2/manifest.json").read_text())
    assert manifest["sae"]["source"] == f"{sae_names.GPT2_SAES}:{FOLDER}"
    at = open_page("build", bundle="gpt2")
    assert "gpt2 is ready" in unescaped(texts_of(at))
    assert "It opens first from now on" in texts_of(at)
    at = run(at.button(key="build_open_gpt2").click())
    assert at.session_state["bundle"] == "gpt2"
    assert not at.error
