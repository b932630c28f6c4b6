"""What is refused when a model is loaded, each in one sentence with its reason."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    Gemma3nTextConfig,
    MambaConfig,
    OpenAIGPTConfig,
    OPTConfig,
    RwkvConfig,
    T5Config,
    ViTConfig,
)

from sae_explore.errors import ModelError
from sae_explore.models.model import load_full_model, load_model
from sae_explore.models.model_structure import blocks_of, blocks_path, checked_norm, with_modules
from sae_explore.types import HookPoint

SMALL = {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
TINY_GPT = {"vocab_size": 600, "n_embd": 32, "n_layer": 4, "n_head": 2}
ALTUP = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 16, "vocab_size_per_layer_input": 600,
         "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "layer_types": ["full_attention"] * 4}  # fmt: skip
MODELS = {
    "several streams": (Gemma3nTextConfig(**ALTUP), r"block 0 answers with shape \(4, 1, 10, 32\), not with one residual stream"),
    "recurrent": (MambaConfig(vocab_size=600, hidden_size=32, num_hidden_layers=4), r"\(mamba\) hands a recurrent state from token"),
    "RWKV": (RwkvConfig(vocab_size=600, hidden_size=32, num_hidden_layers=4), r"\(rwkv\) hands a recurrent state from token"),
    "no final norm": (OpenAIGPTConfig(**TINY_GPT), "no final norm between its last block and its unembedding"),
    "projected logits": (OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=16), "not with one residual stream of width 16"),
    "norm before blocks only": (BertConfig(**SMALL, intermediate_size=64), "no final norm"),
}
CONFIGS = {
    "encoder-decoder": (T5Config(vocab_size=600, d_model=32, num_layers=4), r"encoder-decoder model \(t5\); only decoder-only"),
    "another encoder-decoder": (BartConfig(vocab_size=600, d_model=32), r"encoder-decoder model \(bart\)"),
    "no language model": (ViTConfig(hidden_size=32, num_hidden_layers=4), "is no causal language model that is understood"),
}


def refused(load, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", MODELS)
def test_models_of_another_structure(save_model, tmp_path, name):
    config, match = MODELS[name]
    folder = save_model(AutoModelForCausalLM.from_config(config), tmp_path)
    refused(lambda: load_model(folder, hook=HookPoint(1)), match)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("load", [lambda f: load_model(f, hook=HookPoint(0)), load_full_model])
def test_models_that_their_configuration_rules_out(tmp_path, name, load):
    config, match = CONFIGS[name]
    config.save_pretrained(tmp_path)
    refused(lambda: load(tmp_path), match)


def test_quantised_weights(gpt2_folder, tmp_path):
    config = AutoConfig.from_pretrained(gpt2_folder)
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    config.save_pretrained(tmp_path)
    refused(lambda: load_model(tmp_path, hook=HookPoint(0)), "has quantised weights; load the original model")


def test_code_of_a_model_folder_is_not_run(gpt2_folder, tmp_path):
    config = AutoConfig.from_pretrained(gpt2_folder)
    config.save_pretrained(tmp_path)
    text = (
        (tmp_path / "config.json").read_text().replace('"model_type": "gpt2"', '"model_type": "mine", "auto_map": {"AutoConfig": "mine.C"}')
    )
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    refused(lambda: load_model(tmp_path, hook=HookPoint(0)), "config.json is not understood")
    assert not (tmp_path / "ran").exists()


# ---- a model that looks right, changed in one way at a time ------------------------------------------------------------


class Changed(nn.Module):
    """A module whose answer goes through a function."""

    def __init__(self, inner: nn.Module, change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, *args, **kwargs):
        return self.change(self.inner(*args, **kwargs))


@pytest.fixture
def fresh(gpt2_folder) -> nn.Module:
    return load_full_model(gpt2_folder)


def check(model: nn.Module):
    return checked_norm(model, "transformer.h", "it")


def test_an_unchanged_model_passes(fresh):
    path, norm = check(fresh)
    assert path == "transformer.ln_f"
    torch.testing.assert_close(norm.gain, fresh.transformer.ln_f.weight.detach(), rtol=1e-4, atol=1e-4)
    assert norm.centred
    assert not any(m._forward_hooks for m in fresh.modules())


def test_a_stream_that_is_changed_between_blocks(fresh):
    fresh.transformer.h[2] = Changed(fresh.transformer.h[2], lambda out: 2 * out)
    assert check(fresh)  # what a block does with its input is its own affair
    fresh.transformer.h[3].register_forward_pre_hook(lambda _block, args: (2 * args[0], *args[1:]))
    refused(lambda: check(fresh), "block 3 does not read what block 2 put out")


def test_blocks_that_are_run_twice(fresh):
    fresh.transformer.h[2] = fresh.transformer.h[1]
    refused(lambda: check(fresh), "GPT2Block is not run once")


def test_weights_that_are_not_finite(fresh):
    with torch.no_grad():
        fresh.transformer.h[1].mlp.c_proj.bias[3] = float("nan")
    refused(lambda: check(fresh), "the residual after block 1 holds values that are not finite")


def test_a_model_without_a_final_norm(fresh):
    fresh.transformer.ln_f = nn.Identity()
    refused(lambda: check(fresh), "no final norm between its last block and its unembedding")


def test_a_norm_that_is_none(fresh):
    class SquashNorm(nn.Module):
        def forward(self, x):
            return torch.tanh(x)

    fresh.transformer.ln_f = SquashNorm()
    refused(lambda: check(fresh), "its final norm, SquashNorm, is neither a LayerNorm nor an RMSNorm")


def test_tokens_that_see_later_tokens(fresh):
    fresh.transformer.h[0] = Changed(fresh.transformer.h[0], lambda out: out + out.mean(1, keepdim=True))
    refused(lambda: check(fresh), "its tokens see later tokens, so it is no causal language model")


def test_something_between_norm_and_unembedding(fresh):
    class Turned(type(fresh)):
        def forward(self, **inputs):
            out = super().forward(**inputs)
            out.logits = -out.logits
            return out

    fresh.__class__ = Turned
    refused(lambda: check(fresh), "its logits are not its final norm times an unembedding matrix")


def test_the_blocks_are_the_longest_outer_list():
    model = nn.Module()
    model.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    model.body = nn.Module()
    model.body.layers = nn.ModuleList(nn.ModuleList(nn.Linear(9, 9) for _ in range(8)) for _ in range(4))
    assert blocks_path(model) == "body.layers"
    assert blocks_path(model, 3) == "experts"
    assert blocks_of(model) is model.body.layers
    refused(lambda: blocks_path(model, 5), "it has no list of 5 blocks")


def test_with_modules_shares_everything_else(fresh):
    new = nn.Identity()
    view = with_modules(fresh, {"transformer.h.1.mlp": new, "lm_head": new})
    assert view.transformer.h[1].mlp is view.lm_head is new
    assert view.transformer.h[0] is fresh.transformer.h[0]
    assert view.transformer.h[1].attn is fresh.transformer.h[1].attn
    assert fresh.transformer.h[1].mlp is not new
