"""Models of many families with random weights: residuals, the rest of the model from a residual and the lens, against transformers."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GemmaConfig,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    MiniCPM3Config,
    MistralConfig,
    MptConfig,
    NemotronConfig,
    OlmoConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from sae_explore.features.lens import lens_matrix
from sae_explore.models.model import load_full_model, load_model
from sae_explore.models.model_structure import blocks_of
from sae_explore.models.splice import logits_from
from sae_explore.types import HookPoint

SMALL = {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "initializer_range": 0.2}
LLAMA = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2}
GEMMA = {**LLAMA, "head_dim": 16}
MIXED = ["sliding_attention", "full_attention"] * 2
SOFTCAP = 3.0
# Kinds that differ in what matters here: blocks that return tuples, parallel blocks, attention without sdpa, layers of several
# kinds, norms of every sort, scaled embeddings, numbers that depend on the depth of the whole model, logits that are scaled or capped.
KINDS = {
    "gpt_neox": lambda: GPTNeoXConfig(**SMALL, intermediate_size=64, max_position_embeddings=128),
    "gpt_neox sequential": lambda: GPTNeoXConfig(**SMALL, intermediate_size=64, use_parallel_residual=False),
    "gemma": lambda: GemmaConfig(**GEMMA),
    "gemma2": lambda: Gemma2Config(**GEMMA, sliding_window=4, query_pre_attn_scalar=16, final_logit_softcapping=SOFTCAP),
    "gemma3": lambda: Gemma3TextConfig(**GEMMA, sliding_window=4),
    "gemma4": lambda: Gemma4TextConfig(
        **GEMMA, sliding_window=4, vocab_size_per_layer_input=600, hidden_size_per_layer_input=8, num_kv_shared_layers=2, layer_types=MIXED
    ),
    "qwen2": lambda: Qwen2Config(**LLAMA, use_sliding_window=True, sliding_window=4, max_window_layers=2),
    "qwen3": lambda: Qwen3Config(**GEMMA),
    "mistral": lambda: MistralConfig(**LLAMA, sliding_window=4),
    "phi": lambda: PhiConfig(**SMALL, intermediate_size=64),
    "opt": lambda: OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32),
    "bloom": lambda: BloomConfig(vocab_size=600, hidden_size=32, n_layer=4, n_head=2, initializer_range=0.2),
    "falcon": lambda: FalconConfig(**SMALL),
    "gpt_neo": lambda: GPTNeoConfig(
        vocab_size=600, hidden_size=32, num_layers=4, num_heads=2, window_size=4, attention_types=[[["global", "local"], 2]],
        max_position_embeddings=128, initializer_range=0.2,
    ),
    "gptj": lambda: GPTJConfig(vocab_size=600, n_embd=32, n_layer=4, n_head=2, rotary_dim=8, initializer_range=0.2),
    "mpt": lambda: MptConfig(vocab_size=600, d_model=32, n_layers=4, n_heads=2, initializer_range=0.2),
    "cohere": lambda: CohereConfig(**SMALL, intermediate_size=64, logit_scale=1.0),
    "nemotron": lambda: NemotronConfig(**LLAMA),
    "olmo": lambda: OlmoConfig(**SMALL, intermediate_size=64),
    "granite": lambda: GraniteConfig(**LLAMA, logits_scaling=4.0, residual_multiplier=0.5, embedding_multiplier=3.0),
    "minicpm3": lambda: MiniCPM3Config(
        **LLAMA, q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=16, scale_depth=3.0, dim_model_base=16
    ),
}  # fmt: skip
CENTRED = {"gpt_neox", "gpt_neox sequential", "phi", "opt", "bloom", "falcon", "gpt_neo", "gptj", "mpt", "cohere", "nemotron", "olmo"}
# From the logits that a family answers to those of its unembedding.
UNDO = {"gemma2": lambda x: SOFTCAP * torch.atanh(x / SOFTCAP), "granite": lambda x: 4.0 * x, "minicpm3": lambda x: x * 32 / 16}


class Built(NamedTuple):
    """A saved model and what transformers says about two texts in it."""

    kind: str
    folder: Path
    full: torch.nn.Module
    ids: torch.Tensor  # (2, 12)
    states: list[torch.Tensor]  # the residual before each block, and after the last one: (2, 12, d_model)
    logits: torch.Tensor


@pytest.fixture(scope="module", params=KINDS)
def built(request, save_model, tmp_path_factory) -> Built:
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(KINDS[request.param]()).eval()
    folder = save_model(reference, tmp_path_factory.mktemp("kind"))
    ids = torch.randint(1, 600, (2, 12), generator=torch.Generator().manual_seed(3))
    return Built(request.param, folder, load_full_model(folder), ids, *states_and_logits(reference, ids))


@torch.inference_mode()
def states_and_logits(reference: torch.nn.Module, ids: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """From transformers' hidden states; the output of the last block, which are not among them, from a hook on it."""
    last = []
    handle = blocks_of(reference)[-1].register_forward_hook(lambda _m, _i, out: last.append(out[0] if isinstance(out, tuple) else out))
    try:
        out = reference(input_ids=ids, output_hidden_states=True, use_cache=False)
    finally:
        handle.remove()
    return [*out.hidden_states[:-1], last[0]], out.logits


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["blocks.0.hook_resid_pre", "blocks.2.hook_resid_pre", "blocks.3.hook_resid_post"])
def test_residuals_and_the_rest_of_the_model(built, name):
    hook = HookPoint.parse(name)
    model = load_model(built.folder, hook=hook)
    residual = model.residual(built.ids)
    close(residual, built.states[hook.depth])
    close(logits_from(built.full, hook, built.ids, residual), built.logits, 1e-4)
    assert (model.n_layers, model.d_model, len(model.vocabulary), model.precision) == (4, 32, 600, "fp32")
    # A row alone, and a short row beside a long one whatever pads it.
    close(model.residual(built.ids[1:])[0], residual[1])
    for filler in (0, 1, 599):
        padded = built.ids.clone()
        padded[0, 7:] = filler
        found = model.residual(padded)
        close(found[0, :7], residual[0, :7])
        close(found[1], residual[1])


def test_the_lens_is_the_end_of_the_model(built):
    """The last residual, divided by its norm's scale, through the folded lens gives the model's logits but for what is the same
    for all tokens of the vocabulary, and for what the norm's bias and the unembedding's add; the raw one is the unembedding."""
    unembedding = load_model(built.folder, hook=HookPoint(3)).unembedding
    assert unembedding.centred_norm == (built.kind in CENTRED)
    x = built.states[-1][0]
    x = x - x.mean(-1, keepdim=True) if unembedding.centred_norm else x
    found = (x / x.square().mean(-1, keepdim=True).sqrt()) @ lens_matrix(unembedding, "folded")
    expected = UNDO.get(built.kind, lambda logits: logits)(built.logits[0])
    expected = expected - expected.mean(-1, keepdim=True)
    close(found[1:] - found[:1], expected[1:] - expected[:1], 2e-3)
    assert torch.equal(lens_matrix(unembedding, "raw").T, built.full.get_output_embeddings().weight)


@pytest.mark.parametrize("old_names", [False, True])
def test_the_language_model_in_a_model_that_reads_images(save_model, tmp_path, old_names):
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    text = {**GEMMA, "sliding_window": 4, "model_type": "gemma3_text"}
    config = Gemma3Config(text_config=text, vision_config=vision | {"model_type": "siglip_vision_model"}, mm_tokens_per_image=4)
    reference = Gemma3ForConditionalGeneration(config).eval()
    folder = save_model(reference, tmp_path)
    if not old_names:
        weights = load_file(folder / "model.safetensors")
        renamed = {n.replace("language_model.model.", "model.language_model."): tensor for n, tensor in weights.items()}
        assert renamed.keys() != weights.keys()
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    ids = torch.randint(1, 600, (1, 12), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        out = reference(input_ids=ids, output_hidden_states=True, use_cache=False)
    hook = HookPoint(1)
    residual = load_model(folder, hook=hook).residual(ids)
    close(residual, out.hidden_states[2])
    close(logits_from(load_full_model(folder), hook, ids, residual), out.logits, 1e-4)
