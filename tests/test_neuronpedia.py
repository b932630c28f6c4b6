"""Addresses on Neuronpedia: only of published SAEs that a manifest names beyond doubt."""

import pytest

from sae_explore.building.presets import GPT2_PUBLISHED, published_sae
from sae_explore.explore.neuronpedia import feature_url

SITE = "https://www.neuronpedia.org/gpt2-small"
JBLOOM = "jbloom/GPT2-Small-SAEs-Reformatted"


def sae(source: str, hook: str, d_sae: int = 24_576, **other) -> dict:
    """The part of a manifest."""
    return {"source": source, "hook": hook, "d_sae": d_sae, "d_in": 768, "revision": "57d08a4fd3", **other}


@pytest.mark.parametrize(
    ("described", "found"),
    [
        (sae(f"{JBLOOM}:blocks.7.hook_resid_pre", "blocks.7.hook_resid_pre"), "7-res-jb"),
        (sae(f"{JBLOOM}:blocks.7.hook_resid_pre", "blocks.6.hook_resid_post"), "7-res-jb"),  # the same place
        (sae(f"{JBLOOM}:blocks.0.hook_resid_pre", "blocks.0.hook_resid_pre"), "0-res-jb"),
        (sae(f"{JBLOOM}:blocks.11.hook_resid_post", "blocks.11.hook_resid_post"), "12-res-jb"),
        (sae("jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs:v5_32k_layer_6.pt", "transformer.h.6", 32_768), "6-res_post_32k-oai"),
        (
            sae("jbloom/GPT2-Small-OAI-v5-128k-resid-post-SAEs:v5_128k_layer_11", "blocks.11.hook_resid_post", 131_072),
            "11-res_post_128k-oai",
        ),
        (
            sae("jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8:blocks.8.hook_resid_pre_768", "blocks.8.hook_resid_pre", 768),
            "8-res_fs768-jb",
        ),
    ],
)
def test_published_saes(described, found):
    assert feature_url(described, 123) == f"{SITE}/{found}/123"


def test_the_preset_is_the_seventh():
    """The output of block 6 is what block 7 reads, and the SAE there is named by what it reads."""
    source = GPT2_PUBLISHED["sae"]
    assert feature_url(sae(source, GPT2_PUBLISHED["hook"]), 5) == f"{SITE}/7-res-jb/5"
    assert published_sae("blocks.6.hook_resid_post") == source


@pytest.mark.parametrize(
    "described",
    [
        sae("trained here", "blocks.7.hook_resid_pre", revision=""),
        sae(f"{JBLOOM}:blocks.7.hook_resid_pre", "blocks.7.hook_resid_pre", revision=""),  # a folder of this name
        sae(f"{JBLOOM}:blocks.7.hook_resid_pre", "blocks.8.hook_resid_pre"),  # read elsewhere
        sae(f"{JBLOOM}:blocks.7.hook_resid_pre", "blocks.7.hook_resid_pre", 2_048),  # of another size
        sae(f"{JBLOOM}:blocks.12.hook_resid_pre", "blocks.12.hook_resid_pre"),
        sae(f"{JBLOOM}:blocks.7.hook_resid_pre/../x", "blocks.7.hook_resid_pre"),
        sae(f"someone/else{JBLOOM}:blocks.7.hook_resid_pre", "blocks.7.hook_resid_pre"),
        sae("jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs:v5_32k_layer_6.pt", "blocks.6.hook_resid_pre", 32_768),
        sae(f"{JBLOOM}:blocks.7.hook_resid_pre", "nowhere"),
    ],
)
def test_no_address_where_there_is_doubt(described):
    assert feature_url(described, 5) is None


@pytest.mark.parametrize("feature", [-1, 24_576])
def test_no_address_of_a_feature_that_there_is_not(feature):
    assert feature_url(sae(f"{JBLOOM}:blocks.7.hook_resid_pre", "blocks.7.hook_resid_pre"), feature) is None
