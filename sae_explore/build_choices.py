"""From what a visitor chooses on the Build page to a build's request: names, defaults and specifications. Pure functions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlencode

from sae_explore.build import BuildRequest
from sae_explore.errors import InputError
from sae_explore.hub import hub_problem
from sae_explore.model_facts import ModelFacts
from sae_explore.model_sources import GPT2, SMOLLM2, display_name, is_hub_id, is_local
from sae_explore.presets import published_sae
from sae_explore.text_specs import DIVERSE, HUB_PREFIX, parse_hub_spec

_LAYERS = {GPT2: 6, SMOLLM2: 22}
_SHORT = {GPT2: "gpt2", SMOLLM2: "smollm2"}


def default_layer(facts: ModelFacts) -> int:
    """A layer to begin with: late enough for meanings, early enough to be quick."""
    return _LAYERS.get(facts.spec, facts.layers // 2)


def published_at(model: str, layer: int) -> str | None:
    """The published SAE that reads the output of a block; None where there is none."""
    return published_sae(f"blocks.{layer}.hook_resid_post") if model == GPT2 else None


def given_sae(text: str) -> str:
    """An SAE on this machine as an absolute path, or on the Hub as it was written; InputError for a path that leads nowhere."""
    path = Path(os.path.expanduser(text))
    if path.exists():
        return str(path.absolute())
    if text.startswith((".", "/", "~")) or os.sep in text.partition(":")[0].replace("/", "", 1):
        raise InputError(f"there is no SAE folder {text[:120]!r}")
    return text


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
    if request.sae and not Path(request.sae).exists():
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
