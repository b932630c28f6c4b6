"""Named builds: a bundle whose name is a preset is built with it."""

from __future__ import annotations

from sae_explore.build import BuildRequest
from sae_explore.model_sources import GPT2, SMOLLM2

GPT2_TOPK = {"model": GPT2, "hook": "blocks.6.hook_resid_post", "latents": 2_048, "k": 32, "epochs": 15, "texts": ("diverse",)}
DEMO = {
    "model": SMOLLM2,
    "hook": "blocks.22.hook_resid_post",
    "latents": 8_192,
    "k": 32,
    "epochs": 3,
    "texts": ("embedded",),
    "weights": "float16",
    "store_cap": 512,
}

PRESETS: dict[str, dict] = {"gpt2": GPT2_TOPK, "gpt2-topk": GPT2_TOPK, "demo": DEMO}


def request_for(name: str, *, preset: str | None = None, **options) -> BuildRequest:
    """The request for a bundle: its preset (by name, else GPT-2's), changed by the options that are not None."""
    base = PRESETS[preset or (name if name in PRESETS else "gpt2-topk")]
    return BuildRequest(name=name, **{**base, **{key: value for key, value in options.items() if value is not None}})
