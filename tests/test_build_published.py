"""`build gpt2` from end to end over a loopback Hub in the published layouts: cold cache, warm cache, and the Hub gone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sae_layouts as layouts
import torch
from hub_server import HubServer
from test_hub_texts import make_hub
from transformers import GPT2Config, GPT2LMHeadModel

from sae_explore import model_sources, sae_sources

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
    model, sae = folder / "models" / model_sources.GPT2, folder / "models" / sae_sources.GPT2_SAES
    save_model(GPT2LMHeadModel(config), model)
    layouts.write_old_saelens(sae / FOLDER, quiet=8.0, hook_point=FOLDER, hook_point_layer=7)
    for path, commit in ((model, model_sources._PINNED[model_sources.GPT2]), (sae, sae_sources._PINNED[sae_sources.GPT2_SAES])):
        (path / ".commit").write_text(commit)
    return folder


def run(environment: dict, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sae_explore", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT, env=environment)


@pytest.mark.slow
def test_build_gpt2(hub_folder, tmp_path):
    cache, home = tmp_path / "cache", tmp_path / "home"
    with HubServer(hub_folder) as server:
        environment = {**server.environment(home), "SAE_EXPLORE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        done = run(environment, "build", "gpt2", "--max-texts", "24", "--json")
        assert done.returncode == 0, done.stderr
        asked = {path for _, path in server.log}
    assert json.loads(done.stdout)["bundle"] == "gpt2"
    assert "stanfordnlp/imdb (reviews) is left out" in done.stderr  # the one data set that is not there
    manifest = json.loads((cache / "gpt2/manifest.json").read_text())
    sae = manifest["sae"]
    assert (sae["source"], sae["revision"]) == (f"{sae_sources.GPT2_SAES}:{FOLDER}", sae_sources._PINNED[sae_sources.GPT2_SAES])
    assert manifest["model"]["revision"] == model_sources._PINNED[model_sources.GPT2]
    assert (manifest["hook"], manifest["context"], manifest["bos"]) == (FOLDER, 64, True)
    assert sae["center_input"]
    assert {s["name"] for s in manifest["corpus"]["sources"]} >= {"fancyzhx/ag_news", "wikimedia/wikipedia", "embedded"}
    assert not any("sparsity" in path for path in asked)
    assert list(home.rglob(f"snapshots/{sae['revision']}/{FOLDER}/cfg.json"))  # in the Hub's own cache, where HF_HOME says

    again = run(environment, "build", "gpt2", "--force", "--max-texts", "24", "--texts", "embedded", "--json")  # the Hub is gone by now
    assert again.returncode == 0, again.stderr
    files = json.loads((cache / "gpt2/manifest.json").read_text())["files"]
    assert files["sae/sae_weights.safetensors"] == manifest["files"]["sae/sae_weights.safetensors"]
    other = run(environment, "build", "other", "--sae", f"{sae_sources.GPT2_SAES}:blocks.8.hook_resid_pre", "--texts", "embedded")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert f"the SAE {sae_sources.GPT2_SAES} would come from the Hugging Face Hub, but http://127.0.0.1" in other.stderr
