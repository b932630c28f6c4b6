"""Bundles from SAEs of every format: what the store holds is what the SAE's own equations make of the model's residuals."""

import json

import numpy as np
import pytest
import sae_layouts as layouts
import torch
from build_checks import dense_store
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_explore.building.build import build
from sae_explore.building.build_request import BuildRequest
from sae_explore.building.presets import PRESETS, published_sae, request_for
from sae_explore.bundles.bundle import open_bundle
from sae_explore.bundles.tracer import Tracer
from sae_explore.errors import InputError, SaeError
from sae_explore.saes.sae_conventions import units_of
from sae_explore.types import HookPoint, SaeSpec

TEXT = "Nobody knows why the river bends twice before the old bridge."


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, corpus_texts):
    """Texts that fit into a window, so that a plain run of the model is their reference."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    texts = [text[:90].rpartition(" ")[0] for text in corpus_texts[:14]]
    path.write_text("".join(json.dumps({"text": text, "category": "short"}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def built(tmp_path_factory, gpt2_folder, corpus):
    """A function: (bundle, manifest) of a request."""
    cache = tmp_path_factory.mktemp("cache")

    def make(name: str, sae, **options):
        build(BuildRequest(name, str(gpt2_folder), sae=str(sae), texts=(corpus,), **options), cache=cache)
        bundle = open_bundle(name, cache=cache)
        return bundle, json.loads((bundle.folder / "manifest.json").read_text())

    return make


@pytest.fixture(scope="module")
def residuals(gpt2_folder):
    """A function: (tokens, D) residuals of a text of at most a window, without the BOS's, from transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(gpt2_folder).eval(), AutoTokenizer.from_pretrained(gpt2_folder)

    def read(text: str, depth: int, *, bos: bool, window: int) -> np.ndarray:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) + bos <= window
        with torch.no_grad():
            states = model(torch.tensor([[0] * bos + ids]), output_hidden_states=True).hidden_states
        return states[depth][0, int(bos) :].double().numpy()

    return read


def check(bundle, manifest, equations, residuals, depth: int, *, center: bool = False) -> int:
    """Every short document of the store against the format's equations; how many there were."""
    bos, window, checked = manifest["bos"], manifest["context"], 0
    for i, (dense, text) in enumerate(zip(dense_store(bundle), map(bundle.document_text, range(bundle.n_documents)), strict=True)):
        if len(dense) + bos > window:
            continue
        x = residuals(text, depth, bos=bos, window=window)
        acts, _ = equations(x - x.mean(1, keepdims=True) if center else x)
        a, b = bundle.doc_offsets[i : i + 2]
        counted = ~np.asarray(bundle.ignored[a:b])
        np.testing.assert_allclose(dense[counted], acts[counted], rtol=4e-3, atol=4e-3)
        assert not dense[~counted].any()
        checked += 1
    return checked


def test_the_published_layout_is_read_centred_folded_and_with_a_bos(built, tmp_path, residuals):
    folder = tmp_path / "models--jbloom--GPT2-Small-SAEs-Reformatted/snapshots/5/blocks.2.hook_resid_pre"
    equations = layouts.write_old_saelens(folder, quiet=6.0)
    bundle, manifest = built("published", folder)
    assert check(bundle, manifest, equations, residuals, 2, center=True) > 8
    assert (manifest["hook"], manifest["context"], manifest["bos"]) == ("blocks.2.hook_resid_pre", 64, True)
    assert manifest["units"] == "the SAE's own units, for decoder directions of length 1"
    assert manifest["sae"]["center_input"]
    assert manifest["sae"]["decoder_norms_folded"]
    notes = "; ".join(manifest["sae"]["notes"])
    assert "mean over the dimensions subtracted (known of the repository jbloom/GPT2-Small-SAEs-Reformatted)" in notes
    assert "decoder directions were scaled to length 1" in notes
    trace = Tracer.load(bundle).trace(TEXT)  # pasted texts are read the same way
    x = residuals(TEXT, 2, bos=True, window=64)
    found = np.stack([trace.rows.column(f) for f in range(layouts.M)], 1)
    expected = equations(x - x.mean(1, keepdims=True))[0]
    np.testing.assert_allclose(found[~trace.ignored], expected[~trace.ignored], rtol=4e-3, atol=4e-3)
    again, plain = built("published-plain", folder, center="no", hook="blocks.1.hook_resid_post")
    assert not plain["sae"]["center_input"]
    assert "residuals are read as they are, not centred (as was asked for)" in plain["sae"]["notes"]
    assert check(again, plain, equations, residuals, 2) > 8


def test_a_layer_normed_sae_says_its_units_and_follows_the_tokenizer(built, tmp_path, residuals):
    """GPT-2's tokenizer puts no BOS in front, so each window's first token counts for nothing."""
    equations = layouts.write_openai(tmp_path / "resid_post_mlp_v5_32k/autoencoders/1.pt")
    bundle, manifest = built("openai", tmp_path / "resid_post_mlp_v5_32k/autoencoders/1.pt")
    assert check(bundle, manifest, equations, residuals, 2) > 8
    assert (manifest["hook"], manifest["bos"], manifest["sae"]["prepend_bos"]) == ("blocks.1.hook_resid_post", False, False)
    assert "standard deviation" in manifest["units"]
    assert any("times that token's standard deviation" in note for note in manifest["sae"]["notes"])
    assert any("do not say whether windows begin with a BOS; they are read without one" in note for note in manifest["sae"]["notes"])
    assert manifest["metrics"]["l0"] <= layouts.K
    assert bundle.ignored[int(bundle.doc_offsets[1])]


def test_a_batch_topk_sae_is_read_with_its_threshold(built, tmp_path, residuals):
    equations = layouts.write_dictionary_learning(tmp_path / "t", "BatchTopKSAE", threshold=4.0)
    bundle, manifest = built("batch", tmp_path / "t")
    assert check(bundle, manifest, equations, residuals, 2) > 8
    assert manifest["sae"]["architecture"] == "batchtopk"
    assert manifest["sae"]["format"] == "dictionary_learning"
    assert json.loads((bundle.files / "sae/cfg.json").read_text())["architecture"] == "jumprelu"
    assert Tracer.load(bundle).sae.spec.k == layouts.K


def test_more_active_latents_than_k_are_refused(built, tmp_path):
    layouts.write_dictionary_learning(tmp_path / "t", "BatchTopKSAE", threshold=0.0)
    with pytest.raises(
        SaeError, match=r"\d+\.\d latents of the batchtopk SAE are active on a token, but its k is 5: its files are not what"
    ):
        built("wrong", tmp_path / "t")


def test_the_hook_is_the_files_own_or_the_requests(built, tmp_path):
    layouts.write_old_saelens(tmp_path / "sae", quiet=6.0)
    with pytest.raises(
        InputError, match=r"reads blocks\.2\.hook_resid_pre, but blocks\.2\.hook_resid_post was asked for; leave --hook out"
    ):
        built("no", tmp_path / "sae", hook="transformer.h.2")
    layouts.write_openai(tmp_path / "own.pt")
    with pytest.raises(InputError, match=r"own\.pt do not say where in the model it reads; say it with --hook"):
        built("no", tmp_path / "own.pt")
    _, manifest = built("said", tmp_path / "own.pt", hook="blocks.0.hook_resid_post", context=32)
    assert (manifest["hook"], manifest["context"]) == ("blocks.0.hook_resid_post", 64)  # OpenAI's windows are known
    layouts.write_sparsify(tmp_path / "layers.0")
    _, manifest = built("window", tmp_path / "layers.0", context=32)
    assert (manifest["hook"], manifest["context"]) == ("blocks.0.hook_resid_post", 32)


@pytest.mark.parametrize(
    ("spec", "units"),
    [
        (SaeSpec("topk", 4, 8, 2), "the SAE's own units"),
        (SaeSpec("standard", 4, 8, decoder_norms_folded=True), "the SAE's own units, for decoder directions of length 1"),
        (SaeSpec("topk", 4, 8, 2, normalise="layer_norm"), "units of each token's standard deviation over the residual's dimensions"),
        (SaeSpec("topk", 4, 8, 2, normalise="constant_norm"), "units of each token's root mean square over the residual's dimensions"),
    ],
)
def test_units_in_words(spec, units):
    assert units_of(spec) == units


# ---- presets -----------------------------------------------------------------------------------------------------------


def test_the_preset_gpt2_is_the_published_sae_at_the_output_of_block_6():
    request = request_for("gpt2").checked()
    assert request.model == "openai-community/gpt2"
    assert request.sae == "jbloom/GPT2-Small-SAEs-Reformatted:blocks.7.hook_resid_pre"
    assert request.hook == "blocks.7.hook_resid_pre"
    assert request.texts == ("diverse", "embedded")
    assert HookPoint.parse(request.hook).depth == HookPoint.parse("blocks.6.hook_resid_post").depth == 7
    own = request_for("gpt2-topk").checked()
    assert (own.sae, own.hook, own.latents, own.k, own.epochs) == (None, "blocks.6.hook_resid_post", 2_048, 32, 15)
    assert request_for("mine").checked().sae is None


def test_options_change_a_preset_in_the_obvious_way():
    assert request_for("gpt2", hook="transformer.h.8").sae == published_sae("blocks.9.hook_resid_pre")
    assert request_for("gpt2", hook="blocks.11.hook_resid_post").sae.endswith(":blocks.11.hook_resid_post")
    assert request_for("gpt2", sae="some/folder").hook is None
    assert request_for("mine", sae="some/folder", hook="blocks.1.hook_resid_pre").hook == "blocks.1.hook_resid_pre"
    with pytest.raises(InputError, match="--latents is for training, but the preset gpt2 reads a published SAE; use --preset gpt2-topk"):
        request_for("gpt2", latents=512)
    with pytest.raises(InputError, match=r"no published SAE at blocks\.12\.hook_resid_post: GPT-2 has 12 blocks"):
        request_for("gpt2", hook="blocks.12.hook_resid_post")
    assert request_for("gpt2", preset="gpt2-topk", latents=512).latents == 512
    assert set(PRESETS) == {"gpt2", "gpt2-topk", "demo"}
