"""Tiny bundles and the app that opens them, for the tests of the pages: `pytest_plugins = ["bundle_fixtures"]` in a test module.

tiny      trained here: 64 latents on the tiny GPT-2 over 40 embedded texts
planted   a given SAE with random weights: the first DEAD latents never fire, latent DENSE fires on every token
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sae_explore.building.build import build
from sae_explore.building.build_request import BuildRequest
from sae_explore.bundles.bundle import Bundle, open_bundle
from sae_explore.saes.sae_formats import save_sae

DEAD, DENSE = 3, 10


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory, gpt2_folder, random_sae) -> Path:
    """A cache folder with both bundles."""
    cache = tmp_path_factory.mktemp("cache")
    common = {"model": str(gpt2_folder), "hook": "blocks.1.hook_resid_post", "texts": ("embedded",), "max_texts": 40, "context": 64}
    build(BuildRequest("tiny", latents=64, k=6, epochs=2, max_tokens=4_000, **common), cache=cache)
    spec = {"hook": common["hook"], "context": 64, "prepend_bos": True, "apply_b_dec_to_input": True}
    sae = random_sae("topk", 32, 64, k=6, seed=4, **spec)
    b_enc = torch.zeros(64)
    b_enc[:DEAD], b_enc[DENSE] = -1e4, 300.0
    save_sae(replace(sae, b_enc=b_enc), cache / "sae-planted")
    build(BuildRequest("planted", sae=str(cache / "sae-planted"), **common), cache=cache)
    return cache


@pytest.fixture
def app_cache(tiny_cache, monkeypatch) -> Path:
    """The app looks into `tiny_cache`."""
    import streamlit as st

    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tiny_cache))
    st.cache_data.clear()
    st.cache_resource.clear()
    return tiny_cache


@pytest.fixture
def own_cache(app_cache, tmp_path, monkeypatch) -> Path:
    """Both bundles in a cache of the test's own, on one's own machine: notes and lists can be written."""
    for name in ("tiny", "planted"):
        (tmp_path / name).symlink_to(app_cache / name, target_is_directory=True)
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path))
    monkeypatch.setenv("SAE_EXPLORE_PUBLIC", "0")
    return tmp_path


@pytest.fixture
def tiny(app_cache) -> Bundle:
    return open_bundle("tiny")


@pytest.fixture
def planted(app_cache) -> Bundle:
    return open_bundle("planted")
