"""How an SAE is to be read where its files leave it open, and in which units: decided here, recorded in the manifest, said on the page.

Imports no torch.
"""

from __future__ import annotations

import re

from sae_explore.types import SaeSpec

# Trained on a model that was loaded with `center_writing_weights`: SAELens keeps that in a table of its own, the repositories' cfg.json do
# not say it. Subtracting each residual's mean is exactly equal to it.
CENTRED_REPOSITORIES = frozenset(
    {
        "jbloom/GPT2-Small-SAEs-Reformatted",
        "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8",
        "tommmcgrath/gpt2-small-mlp-out-saes",
    }
)
_IN_HUB_CACHE = re.compile(r"models--([A-Za-z0-9._-]+?)--([A-Za-z0-9._-]+)")


def repository_of(path: str) -> str:
    """The Hub's repository whose cache a local path lies in, or ""."""
    match = next((m for p in re.split(r"[\\/]", path) if (m := _IN_HUB_CACHE.fullmatch(p))), None)
    return f"{match[1]}/{match[2]}" if match else ""


def centring(choice: str, spec: SaeSpec, repository: str) -> tuple[bool, str]:
    """Whether the mean of each residual is subtracted, and why, as a clause. `choice` is auto, yes or no."""
    if choice != "auto":
        return choice == "yes", "as was asked for"
    if repository in CENTRED_REPOSITORIES:
        return True, f"known of the repository {repository}"
    return spec.center_input, "as its configuration says" if spec.center_input else ""


def units_of(spec: SaeSpec) -> str:
    """The units of activations, to stand after "in"."""
    if spec.normalise == "layer_norm":
        return "units of each token's standard deviation over the residual's dimensions"
    if spec.normalise == "constant_norm":
        return "units of each token's root mean square over the residual's dimensions"
    return "the SAE's own units, for decoder directions of length 1" if spec.decoder_norms_folded else "the SAE's own units"


def notes_of(spec: SaeSpec, *, why_centred: str = "") -> tuple[str, ...]:
    """What was decided about reading it, a clause each."""
    found = list(spec.notes)
    why = f" ({why_centred})" if why_centred else ""
    if spec.center_input:
        found.append(f"each residual is read with its mean over the dimensions subtracted{why}")
    elif why_centred:
        found.append(f"residuals are read as they are, not centred{why}")
    if spec.decoder_norms_folded:
        found.append("decoder directions were scaled to length 1 and activations to compensate, so that features compare")
    if spec.architecture == "batchtopk":
        found.append("a BatchTopK SAE, read with its learned threshold")
    if spec.normalise == "layer_norm":
        found.append(
            "each residual is read with its mean subtracted and divided by its standard deviation, so a feature's effect on the residual "
            "is its activation times its direction times that token's standard deviation"
        )
    if spec.normalise == "constant_norm":
        found.append(
            "each residual is read at a root mean square of 1, so a feature's effect on the residual is its activation times its direction "
            "times that token's root mean square"
        )
    return tuple(found)
