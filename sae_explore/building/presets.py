"""Named builds: a bundle whose name is a preset is built with it."""

from __future__ import annotations

from sae_explore.building.build_request import BuildRequest
from sae_explore.errors import InputError
from sae_explore.models.model_sources import GPT2, SMOLLM2
from sae_explore.saes.sae_names import GPT2_SAES
from sae_explore.types import HookPoint

# At the output of block 6, which is what block 7 reads.
GPT2_PUBLISHED = {
    "model": GPT2,
    "hook": "blocks.7.hook_resid_pre",
    "sae": f"{GPT2_SAES}:blocks.7.hook_resid_pre",
    "texts": ("diverse", "embedded"),
}
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

PRESETS: dict[str, dict] = {"gpt2": GPT2_PUBLISHED, "gpt2-topk": GPT2_TOPK, "demo": DEMO}
_OF_TRAINING = ("latents", "k", "epochs", "lr", "batch_tokens", "max_tokens")


def request_for(name: str, *, preset: str | None = None, **options) -> BuildRequest:
    """The request for a bundle: its preset (by name, else GPT-2's TopK SAE), changed by the options that are not None.

    A given SAE says itself where it reads, unless a hook is given too. With a preset's own published SAE another hook means the
    published SAE there. InputError for options of training beside a published SAE.
    """
    preset = preset or (name if name in PRESETS else "gpt2-topk")
    given = {key: value for key, value in options.items() if value is not None}
    base = dict(PRESETS[preset])
    if "sae" in given:
        base.pop("hook")
    elif "sae" in base:
        if useless := next((key for key in _OF_TRAINING if key in given), None):
            raise InputError(
                f"--{useless.replace('_', '-')} is for training, but the preset {preset} reads a published SAE; use --preset gpt2-topk to train one"
            )
        if "hook" in given:
            base["sae"] = published_sae(given["hook"])
    return BuildRequest(name=name, **{**base, **given})


def published_sae(hook: str) -> str:
    """The published SAE of GPT-2 at a hook; InputError if there is none. They are named by what a block reads, the last by its output."""
    depth, layers = HookPoint.parse(hook).depth, 12
    if depth > layers:
        raise InputError(f"there is no published SAE at {hook}: GPT-2 has {layers} blocks")
    folder = f"blocks.{depth}.hook_resid_pre" if depth < layers else f"blocks.{layers - 1}.hook_resid_post"
    return f"{GPT2_SAES}:{folder}"
