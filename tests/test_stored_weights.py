"""Weights read where they lie: half-precision files give exactly the numbers of their fp32 copies, and upper blocks are not needed."""

import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPTNeoXConfig, OPTConfig

from sae_explore.errors import InputError, ModelError
from sae_explore.memory import FilePages
from sae_explore.models import stored_weights
from sae_explore.models.model import load_full_model, load_model
from sae_explore.models.model_structure import blocks_of
from sae_explore.models.splice import logits_from
from sae_explore.types import HookPoint

SMALL = {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "initializer_range": 0.2}
KINDS = {
    "gemma3 bf16": (torch.bfloat16, Gemma3TextConfig(**SMALL, intermediate_size=64, num_key_value_heads=2, head_dim=16)),  # tied, scaled
    "gpt_neox fp16": (torch.float16, GPTNeoXConfig(**SMALL, intermediate_size=64, max_position_embeddings=128)),  # untied
    "opt bf16": (torch.bfloat16, OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32)),  # its embedding has a padding row
}
HOOK = HookPoint(1)
IDS = torch.randint(0, 600, (3, 14), generator=torch.Generator().manual_seed(8))


@pytest.fixture(scope="module", params=KINDS)
def half(request, save_model, tmp_path_factory):
    """(folder in shards, dtype, transformers' own fp32 copy of it)."""
    dtype, config = KINDS[request.param]
    torch.manual_seed(0)
    folder = save_model(AutoModelForCausalLM.from_config(config).to(dtype), tmp_path_factory.mktemp("half"))
    weights = {name: tensor.contiguous() for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    index = {}
    for i, name in enumerate(sorted(weights)):
        index[name] = f"model-{i % 3}.safetensors"
    for shard in sorted(set(index.values())):
        save_file({n: weights[n] for n in weights if index[n] == shard}, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder, dtype, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def states(reference):
    out = reference(input_ids=IDS, output_hidden_states=True, use_cache=False)
    return out.hidden_states[2], out.logits


@pytest.mark.parametrize("weights", ["stored", "float32"])
def test_half_precision_files_give_the_numbers_of_their_fp32_copies(half, weights):
    folder, dtype, reference = half
    expected, logits = states(reference)
    model, full = load_model(folder, hook=HOOK, weights=weights), load_full_model(folder, weights=weights)
    residual = model.residual(IDS)
    assert torch.equal(residual, expected)
    assert torch.equal(logits_from(full, HOOK, IDS, residual), logits)
    assert full(input_ids=IDS, use_cache=False).logits.dtype == model.base.dtype == torch.float32
    how = "block by block in each run" if weights == "stored" else "when loaded"
    assert model.precision == f"{str(dtype).removeprefix('torch.')}, converted to fp32 {how}, which is exact"
    # The embedding and the unembedding stay as stored, and the blocks too if so wanted.
    assert model.base.get_input_embeddings().weight.dtype == model.unembedding.W_U.dtype == dtype
    assert {p.dtype for p in blocks_of(model.base).parameters() if p.numel()} == (set() if weights == "stored" else {torch.float32})
    torch.testing.assert_close(model.unembedding.gain, load_model(folder, hook=HookPoint(0)).unembedding.gain)


def test_many_sessions_at_once_convert_each_for_itself(half):
    model = load_model(half[0], hook=HOOK, weights="stored")
    inputs = [IDS[:, : 5 + i] for i in range(6)]
    alone = [model.residual(ids) for ids in inputs]
    with ThreadPoolExecutor(6) as pool:
        for i, found in enumerate(pool.map(model.residual, inputs * 4)):
            assert torch.equal(found, alone[i % 6])
    assert {p.dtype for b in blocks_of(model.base) for p in b.block.parameters()} <= {half[1], torch.float32}


@pytest.mark.parametrize(("available", "how"), [(1 << 12, "block by block"), (1 << 40, "when loaded"), (None, "when loaded")])
def test_what_is_available_decides(half, monkeypatch, available, how):
    monkeypatch.setattr(stored_weights, "available_memory", lambda: available)
    assert how in load_model(half[0], hook=HOOK).precision


def test_an_unknown_choice(gpt2_folder):
    with pytest.raises(InputError, match="weights 'int8' is not understood; use auto, float32, stored"):
        load_model(gpt2_folder, hook=HOOK, weights="int8")


def test_fp32_files_are_used_where_they_lie(gpt2_folder):
    base = load_model(gpt2_folder, hook=HOOK).base
    for parameter in base.parameters():
        if parameter.numel() > 2048:
            assert FilePages(parameter.detach()).mapped
    assert FilePages(base.get_input_embeddings().weight.detach()).mapped
    assert not FilePages(torch.zeros(4096)).mapped


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_upper_blocks_are_not_even_looked_for(request, tmp_path, kind):
    source, model = request.getfixturevalue(f"{kind}_folder"), request.getfixturevalue(f"{kind}_model")
    folder = shutil.copytree(source, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    lower = {n: tensor for n, tensor in weights.items() if ".2." not in n and ".3." not in n}
    assert len(lower) < len(weights)
    save_file(lower, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(load_model(folder, hook=HOOK).residual(IDS[:, 1:]), model.residual(IDS[:, 1:]))
    with pytest.raises(ModelError, match="lack"):
        load_model(folder, hook=HookPoint(2))


class _Runs:
    def __reduce__(self):
        return (open, ("ran", "w"))


def test_old_files_are_read_but_run_nothing(gpt2_folder, gpt2_model, tmp_path, monkeypatch):
    folder = shutil.copytree(gpt2_folder, tmp_path / "copy")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(load_model(folder, hook=HOOK).residual(IDS), gpt2_model.residual(IDS))
    monkeypatch.chdir(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"transformer.wte.weight": _Runs()}))
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(folder, hook=HOOK)
    assert not (tmp_path / "ran").exists()
