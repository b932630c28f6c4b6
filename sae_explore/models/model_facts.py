"""The sizes of a model, from its configuration alone: for choosing a layer and for estimating a build before anything is fetched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sae_explore.errors import ModelError
from sae_explore.files.hub import hub_access
from sae_explore.models.model_sources import GPT2, SMOLLM2, display_name, is_hub_id, is_local, resolve_model

# What the families that are read here call the same thing.
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model")
_INNER = ("intermediate_size", "n_inner", "ffn_dim")
_HEADS = ("num_attention_heads", "n_head")
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx")
_TWO_MATRICES = ("gpt2", "gpt_neox", "gpt_neo", "gptj", "opt", "phi", "bloom", "falcon")  # in the MLP; the others have a gate, a third one


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a transformer; `here`: whether loading it needs no network."""

    spec: str
    display: str
    layers: int
    width: int  # of the residual stream
    block_parameters: int  # matrices of one block
    vocabulary: int
    positions: int
    here: bool = False

    @property
    def parameters(self) -> int:
        """Of all blocks and the embeddings, which most of these models share with the unembedding."""
        return self.layers * self.block_parameters + self.vocabulary * self.width


_KNOWN = {
    GPT2: (12, 768, 12 * 768**2, 50_257, 1_024),
    SMOLLM2: (30, 576, 2 * 576 * (576 + 192) + 3 * 576 * 1_536, 49_152, 8_192),
}


def facts_of(spec: str, *, models: Path, ask_hub: bool = False) -> ModelFacts | None:
    """The sizes of the model of a spec; None where they cannot be known without fetching something.

    With `ask_hub`, a model's configuration (a few kB) is fetched from the Hub. InputError for a spec that is not understood, SourceError
    if the Hub cannot be reached, ModelError for a configuration that says too little.
    """
    here = is_local(spec, models=models)
    if spec in _KNOWN:
        return ModelFacts(spec, display_name(spec), *_KNOWN[spec], here)
    if here or not (is_hub_id(spec) or spec.startswith("pypi:")):
        folder = resolve_model(spec, models=models).folder  # says what is wrong with what is no model
        config = folder / "config.json"
        if not config.is_file():
            raise ModelError(f"{spec} is no model folder: it holds no config.json")
    elif ask_hub and is_hub_id(spec):
        with hub_access(f"the model {spec}"):
            from huggingface_hub import hf_hub_download

            config = Path(hf_hub_download(spec, "config.json"))
    else:
        return None
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
        return _from_config(spec, {**found, **found.get("text_config", {})}, here)
    except (OSError, ValueError, TypeError, AttributeError, StopIteration) as error:
        raise ModelError(f"the configuration of {spec} does not say how large the model is; is it a causal language model?") from error


def _from_config(spec: str, config: dict, here: bool) -> ModelFacts:
    def of(names: tuple[str, ...], default: int | None = None) -> int:
        return int(next((config[name] for name in names if config.get(name)), default) or _missing())

    width, layers, heads = of(_WIDTH), of(_LAYERS), of(_HEADS)
    inner = of(_INNER, 4 * width)
    head = int(config.get("head_dim") or width // heads)
    attention = 2 * width * head * (heads + of(("num_key_value_heads",), heads))  # queries and output, keys and values
    mlp = (2 if config.get("model_type") in _TWO_MATRICES else 3) * width * inner
    return ModelFacts(spec, display_name(spec), layers, width, attention + mlp, of(("vocab_size",)), of(_POSITIONS, 1_024), here)


def _missing() -> int:
    raise ValueError("a size is missing")
