"""Tiny models in full beside SAEs with random weights: `pytest_plugins = ["lab_fixtures"]` in a test module."""

from dataclasses import replace

import pytest

from sae_explore.bundles.tracer import Tracer
from sae_explore.models.model import load_model
from sae_explore.types import HookPoint
from sae_explore.whatif.interventions import Lab


@pytest.fixture(scope="session")
def make_lab(request, random_sae):
    """A function that puts an SAE of 64 latents with random weights beside a tiny model."""
    cut = {}

    def make(kind: str = "gpt2", hook: str = "blocks.1.hook_resid_post", *, sae="topk", bos=True, median_norm=1e9, **spec) -> Lab:
        if (kind, hook) not in cut:
            cut[kind, hook] = load_model(request.getfixturevalue(f"{kind}_folder"), hook=HookPoint.parse(hook))
        made = random_sae(sae, 32, 64, hook=hook, **spec)
        made = replace(made, W_enc=0.2 * made.W_enc, W_dec=0.5 * made.W_dec)
        return Lab(Tracer("tiny", "units", 128, bos, median_norm, cut[kind, hook], made), request.getfixturevalue(f"{kind}_full"))

    return make
