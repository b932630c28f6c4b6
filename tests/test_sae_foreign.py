"""SAEs in others' formats: their own equations, their place in the model, and everything unsupported refused by name."""

import json
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import sae_layouts as layouts
import torch
from sae_checks import dense, rebuilt
from safetensors.torch import load_file, save_file

from sae_explore.errors import ExploreError, InputError, SaeError
from sae_explore.saes.sae_formats import load_sae, recognise, save_sae

X = 1.5 * torch.randn(150, layouts.D, generator=torch.Generator().manual_seed(4)) + 0.3
WRITERS = {
    "old saelens": (lambda p: layouts.write_old_saelens(p / "sae"), "sae", "saelens"),
    "openai in saelens": (lambda p: layouts.write_openai_in_saelens(p / "v5_32k_layer_1.pt"), "v5_32k_layer_1.pt", "saelens"),
    "openai": (
        lambda p: layouts.write_openai(p / "resid_post_mlp_v5_32k/autoencoders/1.pt"),
        "resid_post_mlp_v5_32k/autoencoders/1.pt",
        "openai",
    ),
    "openai relu": (lambda p: layouts.write_openai(p / "only.pt", kind="ReLU"), "", "openai"),
    "sparsify": (lambda p: layouts.write_sparsify(p / "layers.1"), "layers.1", "sparsify"),
    "gemma scope": (
        lambda p: layouts.write_gemma_scope(p / "layer_1/width_16k/average_l0_71"),
        "layer_1/width_16k/average_l0_71",
        "gemma_scope",
    ),
    **{
        f"dictionary_learning {kind}": (
            lambda p, kind=kind: layouts.write_dictionary_learning(p / "trainer_0", kind),
            "trainer_0",
            "dictionary_learning",
        )
        for kind in layouts.DICTIONARIES
    },
}


@pytest.mark.parametrize("what", WRITERS)
def test_activations_and_reconstructions_are_those_of_the_formats_own_equations(tmp_path, what):
    write, folder, form = WRITERS[what]
    equations = write(tmp_path)
    sae = load_sae(tmp_path / folder)
    acts, x_hat = equations(X.double().numpy())
    np.testing.assert_allclose(dense(sae, X).numpy(), acts, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(rebuilt(sae, X).numpy(), x_hat, rtol=1e-4, atol=1e-4)
    assert 0 < (acts > 0).mean() < 0.9
    assert (sae.spec.format, recognise(tmp_path / folder).format) == (form, form)
    assert sae.spec.source == str(tmp_path / folder)
    assert sae.spec.decoder_norms_folded == (what in FOLDED)
    assert sae.W_enc.is_contiguous()
    assert sae.W_dec.is_contiguous()


FOLDED = {"old saelens", "openai relu", *(f"dictionary_learning {kind}" for kind in layouts.DICTIONARIES[:4])}


@pytest.mark.parametrize("what", WRITERS)
def test_each_can_be_written_in_saelens_format(tmp_path, what):
    write, folder, _ = WRITERS[what]
    write(tmp_path)
    sae = load_sae(tmp_path / folder)
    sae = replace(sae, spec=replace(sae.spec, hook=sae.spec.hook or "blocks.1.hook_resid_post"))
    save_sae(sae, tmp_path / "written")
    again = load_sae(tmp_path / "written", fold=False)
    assert torch.equal(dense(again, X), dense(sae, X))
    assert torch.equal(rebuilt(again, X), rebuilt(sae, X))


HOOKS = {
    "old saelens": ("blocks.2.hook_resid_pre", 64, True),
    "openai in saelens": ("blocks.1.hook_resid_post", 64, False),
    "openai": ("blocks.1.hook_resid_post", 64, None),
    "openai relu": ("", 64, None),
    "sparsify": ("blocks.1.hook_resid_post", 0, None),
    "gemma scope": ("blocks.1.hook_resid_post", 0, True),
    **{f"dictionary_learning {kind}": ("blocks.1.hook_resid_post", 64, None) for kind in layouts.DICTIONARIES},
}


@pytest.mark.parametrize("what", WRITERS)
def test_the_place_in_the_model_is_what_the_files_and_their_names_say(tmp_path, what):
    write, folder, _ = WRITERS[what]
    write(tmp_path)
    spec = load_sae(tmp_path / folder).spec
    assert (spec.hook, spec.context, spec.prepend_bos) == HOOKS[what]


def test_a_name_on_the_hub_says_what_the_folder_does_not(tmp_path):
    layouts.write_gemma_scope(tmp_path / "x")
    layouts.write_openai(tmp_path / "6.pt")
    spec = load_sae(tmp_path / "x", source="google/gemma-scope-2b-pt-res:layer_20/width_16k/average_l0_71").spec
    assert (spec.hook, spec.model) == ("blocks.20.hook_resid_post", "google/gemma-2-2b")
    assert (
        load_sae(tmp_path / "6.pt", source="u/r:gpt2-small/resid_post_mlp_v5_128k/autoencoders/6.pt").spec.hook
        == "blocks.6.hook_resid_post"
    )


def test_sparsify_reads_the_run_beside_its_folders(tmp_path):
    layouts.write_sparsify(tmp_path / "h.4", num_latents=0, expansion_factor=layouts.M // layouts.D)
    (tmp_path / "config.json").write_text(json.dumps({"model": "openai-community/gpt2", "ctx_len": 256, "dataset": "x"}))
    with pytest.raises(SaeError, match="expansion_factor"):  # 48 is no multiple of 32
        load_sae(tmp_path / "h.4")
    layouts.write_sparsify(tmp_path / "h.4")
    spec = load_sae(tmp_path / "h.4").spec
    assert (spec.hook, spec.context, spec.model) == ("blocks.4.hook_resid_post", 256, "openai-community/gpt2")


def test_input_scales_are_folded_into_weights_and_biases_together(tmp_path):
    """x * s goes in, the output is divided by s; activations keep their units. Checked by hand for a ReLU SAE of unit rows."""
    for apply in (True, False):
        layouts.write_old_saelens(
            tmp_path, normalize_activations="expected_average_only_in", norm_scaling_factor=0.25, apply_b_dec_to_input=apply
        )
        t = {name: tensor.double().numpy() for name, tensor in load_file(tmp_path / "sae_weights.safetensors").items()}
        x = 0.25 * X.double().numpy()
        acts = np.maximum((x - apply * t["b_dec"]) @ t["W_enc"] + t["b_enc"], 0)
        sae = load_sae(tmp_path, fold=False)
        np.testing.assert_allclose(dense(sae, X).numpy(), acts, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rebuilt(sae, X).numpy(), (acts @ t["W_dec"] + t["b_dec"]) / 0.25, rtol=1e-4, atol=1e-4)
        assert "0.25 of its training folded" in sae.spec.notes[0]


def test_a_batch_topk_checkpoint_of_saelens_is_read_with_its_threshold(tmp_path):
    """The one threshold is in units of pre * decoder norm where the norms are rescaled."""
    draw = layouts.Weights(3)
    tensors = {
        "W_enc": draw(layouts.D, layouts.M),
        "b_enc": draw(layouts.M),
        "W_dec": 3 * draw(layouts.M, layouts.D),
        "b_dec": draw(layouts.D),
    }
    config = {"architecture": "batchtopk", "d_in": layouts.D, "d_sae": layouts.M, "k": 5.0, "topk_threshold_lr": 0.01,
              "rescale_acts_by_decoder_norm": True, "metadata": {"hook_name": "blocks.1.hook_resid_post"}}  # fmt: skip
    layouts.save_json(tmp_path / "cfg.json", config)
    save_file(tensors | {"topk_threshold": torch.tensor(2.5, dtype=torch.float64)}, tmp_path / "sae_weights.safetensors")
    sae = load_sae(tmp_path)
    t = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    norms = np.linalg.norm(t["W_dec"], axis=1)
    pre = ((X.double().numpy() - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms
    acts = np.where(pre > 2.5, pre, 0)
    np.testing.assert_allclose(dense(sae, X).numpy(), acts, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rebuilt(sae, X).numpy(), acts @ (t["W_dec"] / norms[:, None]) + t["b_dec"], rtol=1e-4, atol=1e-3)
    save_file(tensors | {"topk_threshold": torch.tensor(0.0)}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(SaeError, match="learned no threshold yet"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("repository", "center", "expected"),
    [
        ("jbloom/GPT2-Small-SAEs-Reformatted", "auto", True),
        ("jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8", "auto", True),
        ("someone/else", "auto", False),
        ("", "auto", False),
        ("jbloom/GPT2-Small-SAEs-Reformatted", "no", False),
        ("", "yes", True),
    ],
)
def test_centring_is_decided_by_repository_unless_it_is_chosen(tmp_path, repository, center, expected):
    equations = layouts.write_old_saelens(tmp_path)
    sae = load_sae(tmp_path, repository=repository, center=center)
    assert sae.spec.center_input == expected
    x = X.double().numpy()
    np.testing.assert_allclose(dense(sae, X), equations(x - x.mean(1, keepdims=True) if expected else x)[0], rtol=1e-4, atol=2e-5)


def test_a_folder_in_the_hubs_cache_and_a_configuration_say_it_too(tmp_path):
    folder = tmp_path / "models--jbloom--GPT2-Small-SAEs-Reformatted/snapshots/57d0/blocks.2.hook_resid_pre"
    layouts.write_old_saelens(folder)
    assert load_sae(folder).spec.center_input
    layouts.write_old_saelens(tmp_path / "own", model_from_pretrained_kwargs={"center_writing_weights": True, "n_devices": 1})
    assert load_sae(tmp_path / "own").spec.center_input
    assert not load_sae(tmp_path / "own", center="no").spec.center_input
    save_sae(load_sae(tmp_path / "own"), tmp_path / "written")
    assert load_sae(tmp_path / "written").spec.center_input


def test_decoding_a_layer_normed_sae_multiplies_the_tokens_std_back(tmp_path):
    """A feature moves the residual by its activation times its row times the token's own standard deviation."""
    layouts.write_openai(tmp_path / "1.pt")
    sae = load_sae(tmp_path / "1.pt")
    _, info = sae.prepare(X)
    torch.testing.assert_close(info.scale[:, 0], X.std(1), rtol=1e-6, atol=1e-6)
    acts, info = sae.encode(X)
    more = acts._replace(values=acts.values + 1.0)
    first = acts.features[acts.offsets[:-1].long()]
    moved = (sae.decode(more, info) - sae.decode(acts, info)) / X.std(1, keepdim=True)
    rows = torch.stack([sae.W_dec[acts.features[a:b]].sum(0) for a, b in zip(acts.offsets[:-1], acts.offsets[1:], strict=True)])
    torch.testing.assert_close(moved, rows, rtol=1e-3, atol=1e-3)
    assert len(first) == len(X)


# ---- refused by name ---------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return (print, ("run!",))


def evil(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pickle.dump({"pre_bias": Evil()}, file)


def spoilt(write, spoil):
    def make(folder):
        write(folder)
        spoil(folder)

    return make


def old(**changed):
    return lambda p: layouts.write_old_saelens(p, **changed)


def npz(change):
    def make(folder):
        layouts.write_gemma_scope(folder)
        arrays = dict(np.load(folder / "params.npz"))
        change(arrays)
        np.savez(folder / "params.npz", **arrays)

    return make


def dictionary(kind, *, state=lambda s: None, **changed):
    def make(folder):
        layouts.write_dictionary_learning(folder, kind, **changed)
        found = torch.load(folder / "ae.pt", weights_only=True)
        state(found)
        torch.save(found, folder / "ae.pt")

    return make


def header(text: bytes, *, length: int | None = None):
    def make(folder):
        layouts.write_old_saelens(folder)
        size = len(text) if length is None else length
        (folder / "sae_weights.safetensors").write_bytes(size.to_bytes(8, "little") + text + bytes(64))

    return make


REFUSED = {
    "old: unknown key": (old(use_wonder_scaling=True), SaeError, "the key 'use_wonder_scaling' of an SAE from before SAELens 6 is not"),
    "old: activation": (old(activation_fn_str="tanh-relu"), SaeError, "activation_fn_str 'tanh-relu' is not supported; known: relu, topk"),
    "old: topk without k": (old(activation_fn_str="topk"), SaeError, "k is 'None', expected a whole number"),
    "old: k beside relu": (old(activation_fn_str="relu", activation_fn_kwargs={"k": 5}), SaeError, "do not agree whether this is a TopK SAE"),
    "old: gated topk": (old(architecture="gated", activation_fn_str="topk", activation_fn_kwargs={"k": 5}), SaeError, "do not agree"),
    "old: signed topk": (old(activation_fn_str="topk", activation_fn_kwargs={"k": 5, "signed": True}), SaeError, "the key 'signed' of activ"),
    "old: finetuned": (old(finetuning_scaling_factor=True), SaeError, "finetuning_scaling_factor 'True' is not supported"),
    "old: a head": (old(hook_point_head_index=3), SaeError, "hook_point_head_index '3' is not supported: SAEs of single attention heads"),
    "old: scaled": (old(normalize_activations=True), SaeError, "'expected_average_only_in' needs its factor, norm_scaling_factor, which is"),
    "old: scale of text": (old(normalize_activations=True, norm_scaling_factor="2"), SaeError, "needs its factor"),
    "old: whitened": (old(normalize_activations="covariance_whitening"), SaeError, "normalize_activations 'covariance_whitening' is not supp"),
    "old: another hook": (old(hook_point="blocks.2.hook_mlp_out"), InputError, "hook 'blocks.2.hook_mlp_out' is not understood"),
    "old: another d_in": (old(d_in=31), SaeError, r"W_enc has shape \(32, 48\), expected \(31, 48\)"),
    "safetensors: header too long": (header(b"{}", length=1 << 62), SaeError, "sae_weights.safetensors cannot be read"),
    "safetensors: no JSON": (header(b"{nope  }"), SaeError, "sae_weights.safetensors cannot be read"),
    "safetensors: outside the file": (
        header(b'{"W_enc":{"dtype":"F32","shape":[32,48],"data_offsets":[0,6144]}}'),
        SaeError,
        "sae_weights.safetensors cannot be read",
    ),
    "safetensors: overlapping": (
        header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}'),
        SaeError,
        "sae_weights.safetensors cannot be read",
    ),
    "safetensors: whole numbers": (
        spoilt(old(), lambda p: save_file({n: t.int() for n, t in load_file(p / "sae_weights.safetensors").items()}, p / "sae_weights.safetensors")),
        SaeError,
        "W_dec is int32, expected a tensor of floating-point numbers|W_enc is int32|b_dec is int32|b_enc is int32",
    ),
    "sparsify: groupmax": (lambda p: layouts.write_sparsify(p, activation="groupmax"), SaeError, "activation 'groupmax' is not supported"),
    "sparsify: transcoder": (lambda p: layouts.write_sparsify(p, transcode=True), SaeError, "transcode is true: transcoders are not read here"),
    "sparsify: skip": (lambda p: layouts.write_sparsify(p, skip_connection=True), SaeError, "skip_connection is true"),
    "sparsify: signed": (lambda p: layouts.write_sparsify(p, signed=True), SaeError, "signed is true: signed activations are not read"),
    "sparsify: unknown key": (lambda p: layouts.write_sparsify(p, jump=True), SaeError, "the key 'jump' of a sparsify SAE is not understood"),
    "sparsify: d_in": (lambda p: layouts.write_sparsify(p, d_in=31), SaeError, "d_in '31' is not supported: encoder.weight has 32 columns"),
    "sparsify: num_latents": (lambda p: layouts.write_sparsify(p, num_latents=47), SaeError, "num_latents '47' is not supported: encoder.w"),
    "sparsify: k": (lambda p: layouts.write_sparsify(p, k=49), SaeError, "k is 49, but must be between 1 and the number of latents, 48"),
    "gemma: pickles": (npz(lambda a: a.update(w_enc=np.array([Evil()], dtype=object))), SaeError, "params.npz cannot be read"),
    "gemma: a tensor too many": (npz(lambda a: a.update(scale=np.ones(3, np.float32))), SaeError, "missing or unknown: scale"),
    "gemma: no threshold": (npz(lambda a: a.pop("threshold")), SaeError, "missing or unknown: threshold"),
    "gemma: turned round": (npz(lambda a: a.update(w_dec=a["w_dec"].T)), SaeError, r"W_dec has shape \(32, 48\), expected \(48, 32\)"),
    "gemma: text": (npz(lambda a: a.update(b_dec=np.array(["a"] * 32))), SaeError, "params.npz cannot be read"),
    "gemma: infinite": (npz(lambda a: a.update(b_dec=np.full(32, np.inf, np.float32))), SaeError, "b_dec holds values that are not finite"),
    "gemma: cut short": (
        spoilt(layouts.write_gemma_scope, lambda p: (p / "params.npz").write_bytes((p / "params.npz").read_bytes()[:3000])),
        SaeError,
        "params.npz cannot be read",
    ),
    "dictionary: unknown class": (
        dictionary("AutoEncoder", dict_class="CrossCoder"), SaeError, "dict_class 'CrossCoder' is not supported; known: AutoEncoder",
    ),
    "dictionary: input of a module": (dictionary("AutoEncoder", buffer={"io": "in"}), SaeError, "io 'in' is not supported: only SAEs of a"),
    "dictionary: mlp": (dictionary("AutoEncoder", submodule_name="mlp_layer_1"), InputError, "the SAE reads 'mlp_layer_1'; only SAEs of a bl"),
    "dictionary: layer": (dictionary("AutoEncoder", layer="1"), SaeError, "layer is '1', expected the number of a block"),
    "dictionary: sides": (dictionary("AutoEncoder", dict_size=47), SaeError, r"W_enc has shape \(32, 48\), expected \(32, 47\)"),
    "dictionary: k": (dictionary("AutoEncoderTopK", k=6), SaeError, "config.json: k is 6, but ae.pt says 5"),
    "dictionary: no threshold yet": (dictionary("BatchTopKSAE", threshold=-1.0), SaeError, "this BatchTopK SAE has learned no threshold"),
    "dictionary: another tensor": (
        dictionary("AutoEncoder", state=lambda s: s.update(W_skip=torch.ones(3))), SaeError, "a AutoEncoder are .* missing or unknown: W_skip",
    ),
    "dictionary: code": (spoilt(dictionary("AutoEncoder"), lambda p: evil(p / "ae.pt")), SaeError, "ae.pt is no file of tensors that PyTorch wrote, or holds"),
    "dictionary: cut short": (
        spoilt(dictionary("AutoEncoder"), lambda p: (p / "ae.pt").write_bytes((p / "ae.pt").read_bytes()[:2000])), SaeError, "ae.pt cannot be read",
    ),
    "openai: code": (lambda p: evil(p / "1.pt"), SaeError, "1.pt is no file of tensors that PyTorch wrote, or holds other objects"),
    "openai: no file of torch": (
        lambda p: (p.mkdir(parents=True), zipfile.ZipFile(p / "1.pt", "w").close()), SaeError, "1.pt is no file of tensors that PyTorch wrote",
    ),
    "openai: a list": (lambda p: (p.mkdir(parents=True), torch.save([1], p / "1.pt")), SaeError, "1.pt holds list, expected tensors by name"),
    "openai: identity": (lambda p: layouts.write_openai(p / "1.pt", kind="Identity"), SaeError, "activation 'Identity' is not supported; know"),
    "openai: tied": (lambda p: layouts.write_openai(p / "1.pt", **{"decoder.weight": None}), SaeError, "not tied .* unknown: decoder.weight"),
    "openai: postact": (
        lambda p: layouts.write_openai(p / "1.pt", options={"k": 5, "postact_fn": "Identity"}), SaeError, "postact_fn 'Identity' is not supp",
    ),
    "openai: no k": (lambda p: layouts.write_openai(p / "1.pt", options={}), SaeError, "k is 'None', expected a whole number"),
    "openai: other options": (
        lambda p: layouts.write_openai(p / "1.pt", options={"k": 5, "tau": 1}), SaeError, r"activation_state_dict holds \['k', 'tau'\]",
    ),
    "openai: another place": (
        lambda p: layouts.write_openai(p / "mlp_post_act_v5_32k/autoencoders/6.pt"), InputError, "it holds no cfg.json, nor the other files",
    ),
    "two pickles": (
        lambda p: (layouts.write_openai(p / "1.pt"), layouts.write_openai(p / "2.pt")), InputError, "it holds 2 .pt files, name one of them",
    ),
    "nothing": (lambda p: p.mkdir(), InputError, "is no SAE folder: it holds no cfg.json, nor the other files of a known format"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_what_is_not_understood_is_refused_in_one_sentence(tmp_path, capsys, what):
    make, kind, message = REFUSED[what]
    make(tmp_path / "layers.1")
    with pytest.raises(ExploreError, match=message) as caught:
        load_sae(tmp_path / "layers.1")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "run!" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("google/gemma-scope-2b-pt-mlp:layer_1/width_16k/average_l0_71", "reads mlp; only those of a block's output"),
        ("google/gemma-scope-2b-pt-res:embedding/width_4k/average_l0_6", "reads embedding; only those"),
        ("u/r:layers.3.mlp", "'layers.3.mlp' does not read the output of a block"),
        ("u/r:embed_tokens", "'embed_tokens' does not read the output of a block"),
        ("u/r:mlp_post_act_v5_32k/autoencoders/6.pt", "reads mlp_post_act; only those of resid_post_mlp"),
    ],
)
def test_names_that_say_another_place_are_refused(tmp_path, name, message):
    if "gemma" in name:
        layouts.write_gemma_scope(tmp_path)
    elif name.endswith(".pt"):
        layouts.write_openai(tmp_path / "6.pt")
    else:
        layouts.write_sparsify(tmp_path)
    with pytest.raises(InputError, match=message):
        load_sae(tmp_path, source=name)
