"""From what a visitor chooses on the Build page to a build's request: names, defaults and specifications. Pure functions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlencode

from sae_explore.building.build_request import BuildRequest
from sae_explore.building.presets import published_sae
from sae_explore.errors import InputError
from sae_explore.files.hub import hub_problem
from sae_explore.models.model_facts import ModelFacts
from sae_explore.models.model_sources import GPT2, SMOLLM2, display_name, is_hub_id, is_local
from sae_explore.saes.sae_facts import SaeFacts, facts_of_sae
from sae_explore.saes.sae_names import is_on_hub, local_sae, looks_like_path
from sae_explore.texts.text_specs import DIVERSE, HUB_PREFIX, parse_hub_spec

_LAYERS = {GPT2: 6, SMOLLM2: 22}
_SHORT = {GPT2: "gpt2", SMOLLM2: "smollm2"}
ASSUMED_LATENTS = 24_576  # of an SAE whose files are not here: so many have the published ones


def default_layer(facts: ModelFacts) -> int:
    """A layer to begin with: late enough for meanings, early enough to be quick."""
    return _LAYERS.get(facts.spec, facts.layers // 2)


def published_at(model: str, layer: int) -> str | None:
    """The published SAE that reads the output of a block; None where there is none."""
    return published_sae(f"blocks.{layer}.hook_resid_post") if model == GPT2 else None


def given_sae(text: str) -> str:
    """An SAE on this machine as an absolute path, or on the Hub as it was written; InputError for what is neither."""
    if local := local_sae(text):
        return str(local)
    if not is_on_hub(text):
        if looks_like_path(text):
            there = "only .pt files are SAEs by themselves, others lie in folders" if _is_file(text) else "nothing lies there"
            raise InputError(f"there is no SAE folder {text[:120]!r}: {there}")
        raise InputError(f"SAE {text[:120]!r} is not understood; give a Hub id (USER/NAME or USER/NAME:FOLDER), a folder or a .pt file")
    return text


def sae_words(known: SaeFacts | None) -> str:
    """What is known of a given SAE's size, as a sentence."""
    if known is None:
        return f"How many features it has is not known before it is read; the estimate takes {ASSUMED_LATENTS:,}."
    return f"It has {known.latents:,} features" + (f", {known.k:,} of them active on a token." if known.k else ".")


def sizes_for_estimate(sae: str | None) -> dict:
    """What `estimate.estimate` is to be told of a given SAE: sizes where they are known, and whether it is here; nothing where one is trained."""
    if sae is None:
        return {}
    known = facts_of_sae(sae)
    firing = {"sae_firing": known.k} if known and known.k else {}
    return {"sae_latents": known.latents if known else ASSUMED_LATENTS, "sae_here": known is not None or not is_on_hub(sae), **firing}


def _is_file(text: str) -> bool:
    try:
        return os.path.isfile(os.path.expanduser(text))
    except ValueError:  # a name that no file can have
        return False


def default_name(model: str, layer: int, *, trained: bool, taken: Iterable[str]) -> str:
    """A bundle name that says what is in it and is not taken."""
    short = _SHORT.get(model) or re.sub(r"[^A-Za-z0-9]+", "-", display_name(model)).strip("-").lower()[:40] or "bundle"
    name = short + ("-topk" if trained and model == GPT2 else "") + ("" if layer == _LAYERS.get(model) else f"-{layer}")
    taken = set(taken)
    return next(n for n in (name, *(f"{name}-{i}" for i in range(2, 10_000))) if n not in taken)


def hub_texts(name: str, *, config: str = "", split: str = "", column: str = "", texts: int = 0) -> str:
    """The specification of a data set of the Hub; InputError for a name that is none."""
    options = {"config": config.strip(), "split": split.strip(), "column": column.strip(), "n": str(texts or "")}
    query = urlencode({key: value for key, value in options.items() if value})
    name = name.strip().removeprefix(HUB_PREFIX)
    if "?" in name:
        raise InputError(f"{name[:80]!r} is no name of a Hub data set; what is asked of it has fields of its own")
    spec = HUB_PREFIX + name + (f"?{query}" if query else "")
    parse_hub_spec(spec)
    return spec


def what_needs_the_hub(request: BuildRequest, *, models: Path) -> list[str]:
    """What of a build would come from the Hub, in words."""
    found = []
    if is_hub_id(request.model) and not is_local(request.model, models=models, revision=request.revision):
        found.append(display_name(request.model))
    if request.sae and is_on_hub(request.sae) and facts_of_sae(request.sae) is None:  # neither here nor in the Hub's cache
        found.append("the SAE")
    if DIVERSE in request.texts:
        found.append("the diverse texts")
    return found + [spec.partition("?")[0].removeprefix(HUB_PREFIX) for spec in request.texts if spec.startswith(HUB_PREFIX)]


def missing_hub(request: BuildRequest, *, models: Path) -> str | None:
    """Why a build cannot get what it needs from the Hub, as a sentence; None if it can, or needs nothing. Probes for two seconds at most."""
    needed = what_needs_the_hub(request, models=models)
    problem = hub_problem(refresh=True) if needed else None
    if problem is None:
        return None
    remedy = "unset it" if problem.endswith("is set") else "check the connection and the proxy settings, then try again"
    local = "a model on this machine, an SAE that is trained here and the embedded or your own texts need no Hub"
    return f"{_listed(needed)} would come from the Hugging Face Hub, but {problem}: {remedy}; {local}"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
