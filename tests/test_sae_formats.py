"""SAEs in SAELens's format: what is written is read back, and everything wrong is one sentence."""

import json
from dataclasses import replace

import pytest
import torch
from sae_checks import dense, rebuilt
from safetensors.torch import load_file, save_file

from sae_explore.bundles.tracer import bundle_sae
from sae_explore.errors import ExploreError, InputError, SaeError
from sae_explore.saes.sae_formats import load_sae, save_sae

D, M = 16, 40
FAMILIES = ("topk", "standard", "jumprelu", "gated")
SPEC = {"hook": "blocks.3.hook_resid_pre", "context": 64, "prepend_bos": False, "model": "gpt2", "apply_b_dec_to_input": False}
TENSORS = {
    "topk": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "standard": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "jumprelu": {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"},
    "gated": {"W_enc", "b_gate", "W_dec", "b_dec", "r_mag", "b_mag"},
}


@pytest.fixture
def sae_of(random_sae):
    """A function: an SAE of a family with unit decoder rows, unless told."""

    def make(family: str, *, unit: bool = True, **spec):
        sae = random_sae(family, D, M, **{**SPEC, **spec})
        return replace(sae, W_dec=torch.nn.functional.normalize(sae.W_dec, dim=1)) if unit else sae

    return make


X = torch.randn(200, D, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("normalise", ["none", "layer_norm", "constant_norm"])
def test_what_is_written_is_read(sae_of, tmp_path, family, normalise):
    sae = sae_of(family, normalise=normalise)
    save_sae(sae, tmp_path / "sae")
    found = load_sae(tmp_path / "sae", source="here")
    assert found.spec == replace(sae.spec, source="here")
    assert torch.equal(dense(found, X), dense(sae, X))
    assert torch.equal(rebuilt(found, X), rebuilt(sae, X))
    assert set(load_file(tmp_path / "sae" / "sae_weights.safetensors")) == TENSORS[family]
    again = bundle_sae(tmp_path / "sae", {**vars(sae.spec), "center_input": True})
    assert again.spec == replace(sae.spec, center_input=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoder_norms_are_folded_once(sae_of, tmp_path, family):
    """Never for TopK; for the others activations are scaled and nothing that decode says changes."""
    sae = sae_of(family, unit=False)
    save_sae(sae, tmp_path / "raw")
    found = load_sae(tmp_path / "raw")
    assert found.spec.decoder_norms_folded == (family != "topk")
    norms = sae.W_dec.norm(dim=1) if family != "topk" else torch.ones(M)
    torch.testing.assert_close(dense(found, X), dense(sae, X) * norms, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rebuilt(found, X), rebuilt(sae, X), rtol=1e-4, atol=1e-3)
    save_sae(found, tmp_path / "folded")
    kept = bundle_sae(tmp_path / "folded", vars(found.spec))
    assert kept.spec == found.spec
    assert torch.equal(dense(kept, X), dense(found, X))


def test_decoder_rows_of_zero_do_not_change_at_each_reading(sae_of, tmp_path):
    sae = sae_of("standard", unit=False)
    sae.W_dec[3] = 0
    save_sae(sae, tmp_path / "raw")
    found = load_sae(tmp_path / "raw")
    assert torch.isfinite(found.W_dec).all()
    save_sae(found, tmp_path / "kept")
    assert torch.equal(bundle_sae(tmp_path / "kept", vars(found.spec)).W_enc, found.W_enc)


def test_rescaling_by_decoder_norm_is_folded_exactly(sae_of, tmp_path):
    """SAELens's option: TopK over pre * norm, decoded by rows of unit norm."""
    sae = sae_of("topk", unit=False)
    save_sae(sae, tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"rescale_acts_by_decoder_norm": True}))
    found = load_sae(tmp_path)
    norms = sae.W_dec.norm(dim=1)
    pre = (X @ sae.W_enc + sae.b_enc) * norms
    best = pre.topk(5, dim=1)
    expected = torch.zeros_like(pre).scatter(1, best.indices, best.values).relu()
    torch.testing.assert_close(dense(found, X), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rebuilt(found, X), expected @ (sae.W_dec / norms[:, None]) + sae.b_dec, rtol=1e-4, atol=1e-4)
    assert found.spec.notes


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(sae_of, tmp_path, family):
    sae = sae_of(family)
    save_sae(sae, tmp_path / "half", dtype=torch.float16)
    save_sae(sae, tmp_path / "full")
    sizes = [(tmp_path / kind / "sae_weights.safetensors").stat().st_size for kind in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    found = load_sae(tmp_path / "half")
    assert found.W_enc.dtype == torch.float32
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "r_mag", "b_mag"):
        tensor = getattr(sae, name)
        if tensor is not None:
            assert torch.equal(getattr(found, name), tensor.half().float())


def test_what_does_not_fit_into_half_precision_is_refused(sae_of, tmp_path):
    sae = sae_of("topk")
    with pytest.raises(SaeError, match="W_enc does not fit into float16; store it as float32"):
        save_sae(replace(sae, W_enc=1e6 * sae.W_enc), tmp_path, dtype=torch.float16)


def test_files_can_be_read_by_others(sae_of, tmp_path):
    save_sae(sae_of("topk"), tmp_path)
    assert (tmp_path / "sae_weights.safetensors").stat().st_mode == (tmp_path / "cfg.json").stat().st_mode


# ---- everything wrong is one sentence ----------------------------------------------------------------------------------


def set_key(path, *keys, value) -> None:
    config = json.loads((path / "cfg.json").read_text())
    at = config
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    (path / "cfg.json").write_text(json.dumps(config))


def drop_key(path, *keys) -> None:
    config = json.loads((path / "cfg.json").read_text())
    at = config
    for key in keys[:-1]:
        at = at[key]
    del at[keys[-1]]
    (path / "cfg.json").write_text(json.dumps(config))


def set_tensor(path, name, change) -> None:
    tensors = load_file(path / "sae_weights.safetensors")
    tensors[name] = change(tensors.get(name)).contiguous()
    save_file(tensors, path / "sae_weights.safetensors")


def drop_tensor(path, name) -> None:
    tensors = load_file(path / "sae_weights.safetensors")
    del tensors[name]
    save_file(tensors, path / "sae_weights.safetensors")


def cut(path) -> None:
    file = path / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def with_value(value: float):
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[7] = value
        return tensor

    return change


def replaced_by_folder(path) -> None:
    (path / "sae_weights.safetensors").unlink()
    (path / "sae_weights.safetensors").mkdir()


WRONG = {
    "no folder": (lambda p: (p / "cfg.json").unlink(), InputError, "is no SAE folder: it holds no cfg.json"),
    "no weights": (lambda p: (p / "sae_weights.safetensors").unlink(), SaeError, "holds no sae_weights.safetensors"),
    "weights a folder": (replaced_by_folder, SaeError, "sae_weights.safetensors cannot be read"),
    "no JSON": (lambda p: (p / "cfg.json").write_text("{nope"), SaeError, "cannot be read as JSON"),
    "no text": (lambda p: (p / "cfg.json").write_bytes(b"\xff\xfe"), SaeError, "cannot be read as JSON"),
    "JSON without end": (lambda p: (p / "cfg.json").write_text("[" * 200_000), SaeError, "cannot be read as JSON"),
    "a list": (lambda p: (p / "cfg.json").write_text("[]"), SaeError, "holds no JSON object"),
    "an unknown key": (lambda p: set_key(p, "use_fancy_scaling", value=True), SaeError, "the key 'use_fancy_scaling' of a topk SAE is not"),
    "an unknown family": (lambda p: set_key(p, "architecture", value="transcoder"), SaeError, "'transcoder' is not supported; known: topk"),
    "no family": (lambda p: drop_key(p, "architecture"), SaeError, "'None' is not supported"),
    "a list for a family": (lambda p: set_key(p, "architecture", value=["topk"]), SaeError, "is not supported"),
    "a scaling without its factor": (
        lambda p: set_key(p, "normalize_activations", value="expected_average_only_in"),
        SaeError,
        "'expected_average_only_in' needs its factor, norm_scaling_factor, which is 'None'",
    ),
    "an unknown scaling": (
        lambda p: set_key(p, "normalize_activations", value="covariance_whitening"),
        SaeError,
        "not supported; known",
    ),
    "a list for a scaling": (lambda p: set_key(p, "normalize_activations", value=[]), SaeError, "not supported; known"),
    "reshaping": (lambda p: set_key(p, "reshape_activations", value="hook_z"), SaeError, "'hook_z' is not supported"),
    "no hook": (lambda p: drop_key(p, "metadata", "hook_name"), SaeError, "metadata.hook_name is missing"),
    "no metadata": (lambda p: drop_key(p, "metadata"), SaeError, "metadata.hook_name is missing"),
    "metadata a text": (lambda p: set_key(p, "metadata", value="x"), SaeError, "metadata is str, expected an object"),
    "another hook": (
        lambda p: set_key(p, "metadata", "hook_name", value="blocks.1.hook_mlp_out"),
        InputError,
        "'blocks.1.hook_mlp_out' is not",
    ),
    "a BOS of text": (lambda p: set_key(p, "metadata", "prepend_bos", value="no"), SaeError, "prepend_bos is 'no', expected true or false"),
    "a context of text": (
        lambda p: set_key(p, "metadata", "context_size", value="128"),
        SaeError,
        "context_size is '128', expected a whole",
    ),
    "no d_in": (lambda p: drop_key(p, "d_in"), SaeError, "d_in is 'None', expected a whole number"),
    "another d_in": (lambda p: set_key(p, "d_in", value=17), SaeError, r"W_enc has shape \(16, 40\), expected \(17, 40\)"),
    "a fraction": (lambda p: set_key(p, "d_sae", value=40.0), SaeError, "d_sae is '40.0', expected a whole number"),
    "huge": (lambda p: set_key(p, "d_sae", value=10**30), SaeError, "d_sae is '1000"),
    "k of zero": (lambda p: set_key(p, "k", value=0), SaeError, "k is '0'"),
    "k true": (lambda p: set_key(p, "k", value=True), SaeError, "k is 'True'"),
    "k too large": (lambda p: set_key(p, "k", value=41), SaeError, "k is 41, but must be between 1 and the number of latents, 40"),
    "turned around": (lambda p: set_tensor(p, "W_enc", lambda t: t.T), SaeError, r"W_enc has shape \(40, 16\), expected \(16, 40\)"),
    "NaN": (lambda p: set_tensor(p, "W_dec", with_value(float("nan"))), SaeError, "W_dec holds values that are not finite"),
    "infinity": (lambda p: set_tensor(p, "b_enc", with_value(float("inf"))), SaeError, "b_enc holds values that are not finite"),
    "cut short": (cut, SaeError, "sae_weights.safetensors cannot be read"),
    "empty": (lambda p: (p / "sae_weights.safetensors").write_bytes(b""), SaeError, "sae_weights.safetensors cannot be read"),
    "a tensor missing": (lambda p: drop_tensor(p, "b_dec"), SaeError, "missing or unknown: b_dec"),
    "a tensor too many": (
        lambda p: set_tensor(p, "W_skip", lambda _: torch.ones(16, 16)),
        SaeError,
        "missing or unknown: W_skip",
    ),
    "a finetuned scale": (
        lambda p: set_tensor(p, "scaling_factor", lambda _: 2 * torch.ones(40)),
        SaeError,
        "scaling_factor is not 1 throughout",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_told_in_one_sentence(sae_of, tmp_path, what):
    folder = tmp_path / "sae"
    save_sae(sae_of("topk"), folder)
    load_sae(folder)
    spoil, kind, message = WRONG[what]
    spoil(folder)
    with pytest.raises(ExploreError, match=message) as caught:
        load_sae(folder)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_flags_that_are_not_given_are_set(sae_of, tmp_path):
    save_sae(sae_of("topk"), tmp_path)
    drop_key(tmp_path, "metadata", "prepend_bos")
    set_key(tmp_path, "apply_b_dec_to_input", value=None)
    drop_key(tmp_path, "metadata", "context_size")
    spec = load_sae(tmp_path).spec
    assert (spec.prepend_bos, spec.apply_b_dec_to_input, spec.context) == (True, True, 0)


def test_a_scale_of_one_is_of_no_effect(sae_of, tmp_path):
    save_sae(sae_of("topk"), tmp_path)
    before = dense(load_sae(tmp_path), X)
    set_tensor(tmp_path, "scaling_factor", lambda _: torch.ones(M))
    assert torch.equal(dense(load_sae(tmp_path), X), before)
