"""The residual stream against transformers' own, and the unembedding against its final norm."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_explore.errors import InputError, ModelError
from sae_explore.models.model import load_full_model, load_model, load_tokenizer
from sae_explore.models.model_structure import blocks_of
from sae_explore.models.windows import Window, windows_of
from sae_explore.types import HookPoint

HOOKS = [f"blocks.{b}.hook_resid_{s}" for b in range(4) for s in ("pre", "post")]


@pytest.fixture(params=["gpt2", "llama"])
def kind(request):
    return request.param


@pytest.fixture
def folder(request, kind):
    return request.getfixturevalue(f"{kind}_folder")


@pytest.fixture
def full(request, kind):
    return request.getfixturevalue(f"{kind}_full")


@pytest.fixture
def model(request, kind):
    return request.getfixturevalue(f"{kind}_model")


def some_ids(rows: int = 2, length: int = 20) -> torch.Tensor:
    return torch.randint(1, 600, (rows, length), generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def reference_residual(full: torch.nn.Module, hook: HookPoint, ids: torch.Tensor) -> torch.Tensor:
    """From transformers: its hidden states, or for the last block's output a forward hook on the block."""
    seen = []
    handle = blocks_of(full)[-1].register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
    try:
        states = full(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    finally:
        handle.remove()
    return seen[0] if hook.depth == len(blocks_of(full)) else states[hook.depth]


@pytest.mark.parametrize("name", HOOKS)
def test_residual_equals_transformers_hidden_states(folder, full, name):
    hook, ids = HookPoint.parse(name), some_ids()
    model = load_model(folder, hook=hook)
    found = model.residual(ids)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, reference_residual(full, hook, ids), rtol=1e-5, atol=1e-5)
    assert (model.n_layers, model.d_model, len(blocks_of(model.base))) == (4, 32, hook.depth)  # later blocks are not even loaded


def test_padding_changes_nothing_whatever_it_holds(model):
    long, short = some_ids(1, 20)[0], some_ids(1, 9)[0]
    alone = model.residual(short[None])[0]
    for filler in (0, 7, 599):
        padded = torch.full((2, 20), filler)
        padded[0], padded[1, :9] = long, short
        found = model.residual(padded)
        torch.testing.assert_close(found[1, :9], alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[0], model.residual(long[None])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bos", [True, False])
def test_windows_give_each_token_the_residual_of_its_window(model, bos):
    """Every token from the window that keeps it, at its own position: no shift by the BOS, no mixing of rows."""
    ids_of = [some_ids(1, n)[0].numpy() for n in (13, 5, 8)]
    windows = [w for d, ids in enumerate(ids_of) for w in windows_of(len(ids), 8, document=d)]
    seen = {}
    for window, rows in model.window_residuals(windows, ids_of, bos=bos):
        for at, row in zip(range(window.keep, window.stop), rows, strict=True):
            seen[window.document, at] = (window, row)
    assert sorted(seen) == [(d, t) for d, ids in enumerate(ids_of) for t in range(len(ids))]
    for (d, t), (window, row) in seen.items():
        before = ids_of[d][window.start : t + 1].astype(np.int64)
        prompt = np.concatenate([[0], before]) if bos else before
        torch.testing.assert_close(row, model.residual(torch.from_numpy(prompt)[None])[0, -1], rtol=1e-5, atol=1e-5)


def test_a_bos_changes_the_residuals(model):
    ids_of, window = [some_ids(1, 6)[0].numpy()], Window(0, 0, 6, 0)
    (_, plain), (_, led) = (next(model.window_residuals([window], ids_of, bos=bos)) for bos in (False, True))
    assert plain.shape == led.shape == (6, 32)
    assert not torch.allclose(plain, led, atol=1e-2)


def test_autocast_keeps_the_residual_stream_in_fp32(model):
    ids, kinds = some_ids(), []
    handles = [b.register_forward_hook(lambda _m, _i, out: kinds.append(out.dtype)) for b in blocks_of(model.base)]
    try:
        half = model.residual(ids, autocast=torch.bfloat16)
    finally:
        for handle in handles:
            handle.remove()
    assert kinds == [torch.float32] * 2
    assert half.dtype == torch.float32
    exact = model.residual(ids)
    relative = float((half - exact).norm() / exact.norm())
    assert 0 < relative < 0.02


def test_many_sessions_at_once_get_the_answers_of_one_alone(model):
    inputs = [some_ids(1 + i % 3, 5 + 4 * i) for i in range(8)]
    alone = [model.residual(ids) for ids in inputs]
    with ThreadPoolExecutor(8) as pool:
        for i, found in enumerate(pool.map(model.residual, inputs * 4)):
            assert torch.equal(found, alone[i % 8])


def test_the_final_norm_is_read_off(gpt2_model, gpt2_full, llama_model, llama_full):
    torch.testing.assert_close(gpt2_model.unembedding.gain, gpt2_full.transformer.ln_f.weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(llama_model.unembedding.gain, llama_full.model.norm.weight, rtol=1e-5, atol=1e-5)
    assert gpt2_model.unembedding.centred_norm
    assert not llama_model.unembedding.centred_norm
    torch.testing.assert_close(llama_model.unembedding.W_U, llama_full.model.embed_tokens.weight)  # tied


def test_facts_of_the_model(gpt2_model, llama_model, corpus_texts):
    for model in (gpt2_model, llama_model):
        assert (model.bos_id, model.max_positions, len(model.vocabulary)) == (0, 128, 600)
        assert "".join(model.tokenize(corpus_texts[0]).texts) == corpus_texts[0]


def test_layers_that_are_not_there_are_refused(folder):
    with pytest.raises(InputError, match=r"4 blocks \(0 to 3\); there is no blocks.4.hook_resid_post"):
        load_model(folder, hook=HookPoint.parse("transformer.h.4"))


def test_contexts_beyond_the_models_positions_are_refused(gpt2_model):
    with pytest.raises(InputError, match="129 tokens is more than tiny-gpt2 can read, 128"):
        gpt2_model.window_ids([Window(0, 0, 128, 0)], [np.ones(128, np.int32)], bos=True)


def test_a_wanted_bos_that_the_model_lacks_is_refused(gpt2_model):
    with pytest.raises(ModelError, match="no BOS token"):
        replace(gpt2_model, bos_id=None).window_ids([Window(0, 0, 2, 0)], [np.ones(2, np.int32)], bos=True)


@pytest.fixture
def copied(gpt2_folder, tmp_path):
    return shutil.copytree(gpt2_folder, tmp_path / "copy")


@pytest.mark.parametrize("load", [lambda f: load_model(f, hook=HookPoint(1)), load_full_model])
def test_missing_weights_are_refused_and_not_drawn_at_random(copied, load):
    weights = load_file(copied / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 of the model's weights \(transformer.h.1.mlp.c_fc.weight"):
        load(copied)


@pytest.mark.parametrize("damage", ["no config", "config no JSON", "config of no model", "weights cut", "no tokenizer"])
def test_damaged_folders_give_one_sentence(copied, damage):
    config, weights = copied / "config.json", copied / "model.safetensors"
    if damage == "no config":
        config.unlink()
    elif damage == "config no JSON":
        config.write_text("{")
    elif damage == "config of no model":
        config.write_text(json.dumps({"model_type": "unheard-of"}))
    elif damage == "weights cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    else:
        (copied / "tokenizer.json").unlink()
    with pytest.raises(ModelError) as caught:
        load_model(copied, hook=HookPoint(1))
    assert "\n" not in str(caught.value)


def test_the_tokenizer_loads_without_the_model(gpt2_folder):
    assert load_tokenizer(gpt2_folder).bos_token_id == 0


def test_models_that_load_at_once_are_whole(gpt2_folder):
    """transformers patches torch while it loads: threads must take turns, or tied weights are missing then and ever after."""
    with ThreadPoolExecutor(4) as threads:
        models = list(threads.map(lambda _: load_full_model(gpt2_folder), range(8)))
    for model in [*models, load_full_model(gpt2_folder)]:
        assert model.lm_head.weight is model.transformer.wte.weight
