"""The same feature on Neuronpedia, where the SAE is a published one that is shown there.

Which SAE is which there is SAELens's table of published SAEs (`pretrained_saes`); feature numbers are the SAE's own. An address is built
from the names below and checked numbers alone, never from strings of a manifest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from sae_explore.errors import InputError
from sae_explore.types import HookPoint

_SITE = "https://www.neuronpedia.org"
_MODEL = "gpt2-small"


class _Release(NamedTuple):
    """A repository of published SAEs, one a folder or file."""

    folder: re.Pattern[str]  # of an SAE in the repository; group `layer`, and `latents` where they differ
    name: str  # of the SAE there, after the model's
    latents: int | None
    depth: int  # of the hook: blocks read before it, less the layer


_RELEASES: dict[str, tuple[_Release, ...]] = {
    "jbloom/GPT2-Small-SAEs-Reformatted": (
        _Release(re.compile(r"blocks\.(?P<layer>\d|1[01])\.hook_resid_pre"), "{layer}-res-jb", 24_576, 0),
        _Release(re.compile(r"blocks\.(?P<layer>11)\.hook_resid_post"), "{depth}-res-jb", 24_576, 1),
    ),
    "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8": (
        _Release(re.compile(r"blocks\.(?P<layer>8)\.hook_resid_pre_(?P<latents>\d{3,5})"), "{layer}-res_fs{latents}-jb", None, 0),
    ),
    "jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs": (
        _Release(re.compile(r"v5_32k_layer_(?P<layer>\d|1[01])(?:\.pt)?"), "{layer}-res_post_32k-oai", 32_768, 1),
    ),
    "jbloom/GPT2-Small-OAI-v5-128k-resid-post-SAEs": (
        _Release(re.compile(r"v5_128k_layer_(?P<layer>\d|1[01])(?:\.pt)?"), "{layer}-res_post_128k-oai", 131_072, 1),
    ),
}


def feature_url(sae: Mapping, feature: int) -> str | None:
    """Address of a feature of the SAE that a manifest's `sae` describes; None unless repository, folder, hook and size say which one it is."""
    repository, _, folder = str(sae.get("source") or "").partition(":")
    if not sae.get("revision") or not 0 <= feature < sae["d_sae"]:  # what does not come from the Hub has no revision
        return None
    for release in _RELEASES.get(repository, ()):
        if match := release.folder.fullmatch(folder):
            layer = int(match["layer"])
            depth = layer + release.depth
            latents = release.latents or int(match["latents"])
            if (_depth(sae["hook"]), sae["d_sae"], sae["d_in"]) == (depth, latents, 768):
                return f"{_SITE}/{_MODEL}/{release.name.format(layer=layer, depth=depth, latents=latents)}/{int(feature)}"
    return None


def _depth(hook: str) -> int | None:
    try:
        return HookPoint.parse(hook).depth
    except InputError:
        return None
