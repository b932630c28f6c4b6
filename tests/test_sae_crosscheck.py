"""The real packages beside this program: they load what it writes, it loads what they write, and both encode to the same values.

The packages are not needed to run or to develop this program; where one is not installed its tests are skipped. SAELens, for instance:
`pip install -r requirements.txt sae-lens pytest hypothesis pyyaml` in an environment of its own.
"""

import json
from dataclasses import replace

import pytest
import sae_layouts as layouts
import torch
from sae_checks import dense, rebuilt

from sae_explore.saes.sae_formats import load_sae, save_sae

D, M, K = layouts.D, layouts.M, layouts.K
FAMILIES = ("topk", "standard", "jumprelu", "gated")
X = 1.5 * torch.randn(200, D, generator=torch.Generator().manual_seed(9)) + 0.2
EXACT = {"rtol": 1e-5, "atol": 1e-5}  # activations; reconstructions sum many of them
SUMMED = {"rtol": 1e-4, "atol": 1e-4}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def sae_lens():
    return pytest.importorskip("sae_lens", reason="the package sae-lens is not installed")


@pytest.fixture(scope="module")
def dictionaries():
    """Their classes by name."""
    pytest.importorskip("dictionary_learning", reason="the package dictionary-learning is not installed")
    from dictionary_learning import dictionary
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    return {name: getattr(module, name) for module in (dictionary, top_k, batch_top_k, matryoshka_batch_top_k) for name in layouts.DICTIONARIES
            if hasattr(module, name)}  # fmt: skip


@pytest.fixture(scope="module")
def sparsify():
    return pytest.importorskip("sparsify", reason="the package eai-sparsify is not installed")


def fill(module: torch.nn.Module, *, seed: int = 2) -> None:
    """Random parameters; thresholds are positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * (0.3 if name == "r_mag" else 0.7)
            parameter.copy_(drawn.abs() if "threshold" in name else drawn)


# ---- SAELens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, "batchtopk"])
@pytest.mark.parametrize("normalise", ["none", "layer_norm", "constant_norm"])
@pytest.mark.parametrize("apply", [True, False])
def test_sae_lens_reads_what_is_written(sae_lens, random_sae, tmp_path, family, normalise, apply):
    """Numbers and metadata; at half precision too."""
    spec = {"hook": "blocks.3.hook_resid_pre", "context": 64, "prepend_bos": False, "model": "gpt2"}
    sae = random_sae(family, D, M, normalise=normalise, apply_b_dec_to_input=apply, **spec)
    for dtype in (torch.float32, torch.float16):
        folder = tmp_path / str(dtype)
        save_sae(sae, folder, dtype=dtype)
        theirs, ours = sae_lens.SAE.load_from_disk(folder), load_sae(folder, fold=False)
        with torch.no_grad():
            acts = theirs.encode(X)
            torch.testing.assert_close(dense(ours, X), acts, **EXACT)
            torch.testing.assert_close(rebuilt(ours, X), theirs.decode(acts), **SUMMED)
    metadata = theirs.cfg.metadata
    assert (metadata.hook_name, metadata.context_size, metadata.prepend_bos, metadata.model_name) == (spec["hook"], 64, False, "gpt2")


def saelens_sae(sae_lens, family: str, **options):
    kind, config = {
        "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig),
        "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig),
        "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig),
        "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig),
    }[family]
    theirs = kind(config(d_in=D, d_sae=M, **options))
    theirs.cfg.metadata.hook_name, theirs.cfg.metadata.model_name = "blocks.2.hook_resid_post", "gpt2"
    fill(theirs)
    return theirs


@pytest.mark.parametrize("normalise", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize(
    ("family", "options"), [*((f, {}) for f in FAMILIES[1:]), ("topk", {"k": K}), ("topk", {"k": K, "rescale_acts_by_decoder_norm": True})]
)
def test_what_sae_lens_writes_is_read(sae_lens, tmp_path, family, options, normalise):
    """As it is, and with the decoder norms folded by both."""
    theirs = saelens_sae(sae_lens, family, apply_b_dec_to_input=family != "jumprelu", normalize_activations=normalise, **options)
    theirs.save_model(tmp_path)
    as_it_is, folded = load_sae(tmp_path, fold=False), load_sae(tmp_path)
    assert (as_it_is.spec.architecture, as_it_is.spec.hook, as_it_is.spec.model) == (family, "blocks.2.hook_resid_post", "gpt2")
    with torch.no_grad():
        acts = theirs.encode(X)
        torch.testing.assert_close(dense(as_it_is, X), acts, **EXACT)
        torch.testing.assert_close(rebuilt(as_it_is, X), theirs.decode(acts), **SUMMED)
        if family != "topk":
            theirs.fold_W_dec_norm()
        acts = theirs.encode(X)
        torch.testing.assert_close(dense(folded, X), acts, rtol=1e-5, atol=3e-5)
        torch.testing.assert_close(rebuilt(folded, X), theirs.decode(acts), **SUMMED)


@pytest.mark.parametrize("kind", ["BatchTopK", "MatryoshkaBatchTopK"])
@pytest.mark.parametrize("rescale", [False, True])
def test_a_batch_topk_sae_is_read_as_the_jumprelu_that_sae_lens_makes_of_it(sae_lens, tmp_path, kind, rescale):
    """From the checkpoint of its training and from the file for inference alike."""
    options = {"matryoshka_widths": [M // 2, M]} if kind.startswith("M") else {}
    config = getattr(sae_lens, f"{kind}TrainingSAEConfig")(d_in=D, d_sae=M, k=K, rescale_acts_by_decoder_norm=rescale, **options)
    training = getattr(sae_lens, f"{kind}TrainingSAE")(config)
    training.cfg.metadata.hook_name = "blocks.2.hook_resid_post"
    fill(training)
    training.topk_threshold = torch.tensor(1.5, dtype=torch.float64)
    training.save_model(tmp_path / "training")
    training.save_inference_model(tmp_path / "inference")
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "inference")
    with torch.no_grad():
        acts = theirs.encode(X)
        for folder in ("training", "inference"):
            ours = load_sae(tmp_path / folder, fold=False)
            assert ours.spec.architecture == ("batchtopk" if folder == "training" else "jumprelu")
            torch.testing.assert_close(dense(ours, X), acts, rtol=1e-5, atol=3e-5)
            torch.testing.assert_close(rebuilt(ours, X), theirs.decode(acts), **SUMMED)


@pytest.mark.parametrize("changed", [{}, {"normalize_activations": "layer_norm"}, {"apply_b_dec_to_input": False}])
def test_old_configurations_are_read_as_sae_lens_reads_them(sae_lens, tmp_path, changed):
    layouts.write_old_saelens(tmp_path / "relu", **changed)
    layouts.write_openai_in_saelens(tmp_path / "topk", **changed)
    for folder in ("relu", "topk"):
        config = json.loads((tmp_path / folder / "cfg.json").read_text())
        (tmp_path / folder / "cfg.json").write_text(json.dumps(config | {"device": "cpu"}))
        theirs, ours = sae_lens.SAE.load_from_disk(tmp_path / folder), load_sae(tmp_path / folder, fold=False)
        with torch.no_grad():
            acts = theirs.encode(X)
            torch.testing.assert_close(dense(ours, X), acts, **EXACT)
            torch.testing.assert_close(rebuilt(ours, X), theirs.decode(acts), **SUMMED)


def test_the_input_scale_is_folded_as_sae_lens_folds_it(sae_lens, tmp_path):
    theirs = saelens_sae(sae_lens, "jumprelu")
    theirs.save_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(
        json.dumps(config | {"normalize_activations": "expected_average_only_in", "norm_scaling_factor": 0.37})
    )
    theirs.fold_activation_norm_scaling_factor(0.37)
    with torch.no_grad():
        acts = theirs.encode(X)
        ours = load_sae(tmp_path, fold=False)
        torch.testing.assert_close(dense(ours, X), acts, rtol=1e-5, atol=3e-5)
        torch.testing.assert_close(rebuilt(ours, X), theirs.decode(acts), **SUMMED)


def test_foreign_saes_reach_sae_lens_through_this_program(sae_lens, tmp_path):
    for number, kind in enumerate(layouts.DICTIONARIES):
        layouts.write_dictionary_learning(tmp_path / kind, kind, seed=number)
        sae = load_sae(tmp_path / kind)
        save_sae(replace(sae, spec=replace(sae.spec, prepend_bos=True)), tmp_path / f"{kind}-written")
        theirs = sae_lens.SAE.load_from_disk(tmp_path / f"{kind}-written")
        with torch.no_grad():
            acts = theirs.encode(X)
        torch.testing.assert_close(dense(sae, X), acts, **EXACT)


# ---- dictionary_learning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", layouts.DICTIONARIES)
def test_what_dictionary_learning_writes_is_read(dictionaries, tmp_path, kind):
    """The state dict of the real class, as its trainers save it; and the real class loads our fixtures."""
    options = {"k": K} if "TopK" in kind else {}
    groups = {"group_sizes": [M // 4, M - M // 4]} if kind.startswith("Matryoshka") else {}
    theirs = dictionaries[kind](D, M, **options, **groups)
    fill(theirs)
    if "BatchTopK" in kind:
        theirs.threshold.fill_(0.6)
    layouts.write_dictionary_learning(tmp_path, kind)
    torch.save({name: tensor.cpu() for name, tensor in theirs.state_dict().items()}, tmp_path / "ae.pt")
    ours = load_sae(tmp_path, fold=False)
    with torch.no_grad():
        acts = theirs.encode(X)
        torch.testing.assert_close(dense(ours, X), acts, **EXACT)
        torch.testing.assert_close(rebuilt(ours, X), theirs.decode(acts), **SUMMED)


@pytest.mark.parametrize("kind", layouts.DICTIONARIES)
def test_dictionary_learning_reads_the_fixtures(dictionaries, tmp_path, kind):
    layouts.write_dictionary_learning(tmp_path, kind, seed=5)
    theirs = dictionaries[kind].from_pretrained(str(tmp_path / "ae.pt"))
    ours = load_sae(tmp_path, fold=kind == "AutoEncoder")  # the only one whose decoder they normalise
    with torch.no_grad():
        torch.testing.assert_close(dense(ours, X), theirs.encode(X), rtol=1e-5, atol=3e-5)


# ---- sparsify ----------------------------------------------------------------------------------------------------------


def test_what_sparsify_writes_is_read(sparsify, tmp_path):
    theirs = sparsify.SparseCoder(D, sparsify.SparseCoderConfig(num_latents=M, k=K))
    fill(theirs)
    theirs.save_to_disk(tmp_path / "layers.3")
    ours = load_sae(tmp_path / "layers.3")
    assert ours.spec.hook == "blocks.3.hook_resid_post"
    with torch.no_grad():
        found = theirs.encode(X)
        acts = torch.zeros(len(X), M).scatter_(1, found.top_indices, found.top_acts)
        torch.testing.assert_close(dense(ours, X), acts, **EXACT)
        torch.testing.assert_close(rebuilt(ours, X), acts @ theirs.W_dec + theirs.b_dec, **SUMMED)


def test_sparsify_reads_the_fixture(sparsify, tmp_path):
    layouts.write_sparsify(tmp_path / "layers.3")
    theirs, ours = sparsify.SparseCoder.load_from_disk(tmp_path / "layers.3"), load_sae(tmp_path / "layers.3")
    with torch.no_grad():
        found = theirs.encode(X)
    torch.testing.assert_close(dense(ours, X), torch.zeros(len(X), M).scatter_(1, found.top_indices, found.top_acts), **EXACT)
