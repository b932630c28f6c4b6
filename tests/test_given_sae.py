"""SAEs as they are named on the Build page: what is understood, what would come from the Hub, and how large they are."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sae_layouts as layouts

from sae_explore.building import build_choices
from sae_explore.building.build_choices import ASSUMED_LATENTS, given_sae, sizes_for_estimate, what_needs_the_hub
from sae_explore.building.build_request import BuildRequest
from sae_explore.errors import InputError
from sae_explore.saes.sae_facts import SaeFacts, facts_of_sae
from sae_explore.saes.sae_sources import GPT2_SAES, resolve_sae

pytest_plugins = ["hub_fixtures"]
ROOT = Path(__file__).resolve().parents[1]
K, M = layouts.K, layouts.M
FORMATS = {
    "saelens": (layouts.write_old_saelens, "sae", SaeFacts(M)),
    "saelens of openai": (layouts.write_openai_in_saelens, "sae", SaeFacts(M, K)),
    "sparsify": (layouts.write_sparsify, "layers.1", SaeFacts(M, K)),
    "dictionary_learning": (lambda path: layouts.write_dictionary_learning(path, "AutoEncoderTopK"), "trainer_0", SaeFacts(M, K)),
    "gemma_scope": (layouts.write_gemma_scope, "layer_1", SaeFacts(M)),
    "openai": (layouts.write_openai, "6.pt", SaeFacts(M)),
    "openai in a folder": (lambda path: layouts.write_openai(path / "6.pt"), "autoencoders", SaeFacts(M)),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_taken_and_measured(kind, tmp_path, monkeypatch):
    write, name, facts = FORMATS[kind]
    write(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert given_sae(name) == given_sae(f"./{name}") == given_sae(str(tmp_path / name)) == str(tmp_path / name)
    assert facts_of_sae(str(tmp_path / name)) == facts
    request = BuildRequest("b", str(tmp_path), sae=str(tmp_path / name), texts=("embedded",))
    assert what_needs_the_hub(request, models=tmp_path) == []
    assert sizes_for_estimate(request.sae) == {"sae_latents": M, "sae_here": True} | ({"sae_firing": K} if facts.k else {})
    assert f"{M} features" in build_choices.sae_words(facts)


def test_a_link_keeps_its_name(tmp_path):
    """The Hub's cache holds links to files that are named by their hashes; names say the format and the layer."""
    layouts.write_openai(tmp_path / "blobs/0123abcd")
    (tmp_path / "6.pt").symlink_to(tmp_path / "blobs/0123abcd")
    assert given_sae(str(tmp_path / "6.pt")) == str(tmp_path / "6.pt")
    assert resolve_sae(str(tmp_path / "6.pt")).path == tmp_path / "6.pt"
    assert facts_of_sae(str(tmp_path / "6.pt")) == SaeFacts(M)


@pytest.mark.parametrize("spec", ["user/sae", "user/sae:a/folder", "user/sae@rev:folder", "user/sae:file.pt"])
def test_one_of_the_hub_stays_as_it_is_written(tmp_path, spec, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert given_sae(spec) == spec
    request = BuildRequest("b", str(tmp_path), sae=spec, texts=("embedded",))
    assert what_needs_the_hub(request, models=tmp_path) == ["the SAE"]
    assert sizes_for_estimate(spec) == {"sae_latents": ASSUMED_LATENTS, "sae_here": False}
    assert "24,576" in build_choices.sae_words(facts_of_sae(spec))


def test_one_in_the_hubs_cache_needs_no_hub(served, tmp_path, monkeypatch):
    folder = served.folder / "models" / GPT2_SAES
    layouts.write_old_saelens(folder / "blocks.2.hook_resid_pre", hook_point="blocks.2.hook_resid_pre", hook_point_layer=2)
    pinned, newest = f"{GPT2_SAES}@main:blocks.2.hook_resid_pre", "u/other:x"
    layouts.write_sparsify(served.folder / "models/u/other/x")
    for spec, facts in ((pinned, SaeFacts(M)), (newest, SaeFacts(M, K))):
        request = BuildRequest("b", str(tmp_path), sae=spec, texts=("embedded",))
        assert what_needs_the_hub(request, models=tmp_path) == ["the SAE"]
        resolve_sae(spec)
        served.log.clear()
        assert facts_of_sae(spec) == facts
        assert what_needs_the_hub(request, models=tmp_path) == []
        assert served.log == []
    assert facts_of_sae("u/other:y") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("./nowhere", "there is no SAE folder './nowhere': nothing lies there"),
        ("~/nowhere", "there is no SAE folder"),
        ("a/b/c", "there is no SAE folder"),
        ("/nowhere/6.pt", "there is no SAE folder"),
        ("./notes.txt", "only .pt files are SAEs by themselves"),
        ("gpt2", "is not understood; give a Hub id"),
        ("a b/c", "is not understood"),
        ("a/b:../c", "is not understood"),
        ("x\0/y", "is not understood"),
        ("./x\0", "there is no SAE folder"),
        ("x" * 5_000, "is not understood"),
    ],
)
def test_what_names_no_sae(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(InputError, match=message) as caught:
        given_sae(text)
    assert len(str(caught.value)) < 300


def test_what_is_damaged_is_not_measured(tmp_path):
    for name, content in {
        "sae_weights.safetensors": b"\xff" * 40,
        "sae.safetensors": b"",
        "params.npz": b"PK",
        "ae.pt": b"x",
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(content)
        for config in ("cfg.json", "config.json"):
            (folder / config).write_text("[]")
        assert facts_of_sae(str(folder)) is None
        assert sizes_for_estimate(str(folder)) == {"sae_latents": ASSUMED_LATENTS, "sae_here": True}
    (tmp_path / "6.pt").write_bytes(b"no archive")
    assert facts_of_sae(str(tmp_path / "6.pt")) is None
    np.savez(tmp_path / "params.npz/params.npz", other=np.zeros(3))
    assert facts_of_sae(str(tmp_path / "params.npz")) is None
    (tmp_path / "ae.pt/config.json").write_text(json.dumps({"trainer": {"dict_size": "many"}}))
    assert facts_of_sae(str(tmp_path / "ae.pt")) is None


def test_nothing_of_it_imports_torch(tmp_path):
    layouts.write_openai(tmp_path / "6.pt")
    code = (
        "import sys; from sae_explore.building import build_choices, estimate, presets\n"
        f"print(build_choices.sizes_for_estimate({str(tmp_path / '6.pt')!r})['sae_latents'], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == [str(M), "False"]
