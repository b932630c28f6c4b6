"""What a build will take: time, disk and memory, worked out from sizes and from one short measurement of this machine.

Time is counted in floating point operations and divided by the rate at which this machine multiplies matrices now. Per token of a model
with blocks of P parameters and width d, up to a hook after `depth` blocks, in windows of c tokens:

    forward          2 P depth + 4 c d depth                 matrices, and queries against keys and weights against values
    encode           2 d L                                   L latents
    training step    2 d L + 100 k d                         the encoder's product; the sparse rest is bound by memory, not arithmetic
    a step's update  700 L d                                 Adam and the decoder's unit rows, whatever the batch
    features         4.5 L d V + 3.5e8 L                     vocabulary of V tokens; the rest are examples and labels
    map              2e8 L                                   where it can be drawn

The forward runs at about 0.85 of the bare product's rate (measured, see the README), and the factors 100 and 700 are what the rest takes
in products' time on the machines it was measured on. All of it is good to about a factor of two.
"""

from __future__ import annotations

import functools
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sae_explore.building.build_request import DEFAULT_HOOK, EVALUATED_TOKENS, LOSS_TOKENS, BuildRequest
from sae_explore.features.feature_map import can_draw
from sae_explore.memory import available_memory
from sae_explore.models.model_facts import ModelFacts
from sae_explore.texts.embedded import embedded_rows
from sae_explore.texts.text_specs import DIVERSE, EMBEDDED, HubSpec, diverse_specs, parse_spec
from sae_explore.types import HookPoint

CHARACTERS_PER_TOKEN = 4.3  # of English, with vocabularies of some 50,000
_FORWARD = 0.85  # of the bare product's rate
_SPARSE, _UPDATE = 100, 700  # see above
_LENS = 4.5  # a (latent, vocabulary entry, dimension): two products, with the lists and statistics of three conventions
_LATENT = 3.5e8  # a latent: its examples are read and it is named, some three milliseconds on two cores
_MAP = 2e8  # a latent
_FIXED = 1e12  # starting, loading the model twice and writing files: some five seconds on two cores
_HUB_TEXT, _HUB_TEXTS = 1_000, 1_000  # characters of a text, and texts, where nothing says more
_DIVERSE_CHARACTERS = {"news": 240, "reviews": 1_300, "science": 950, "encyclopedia": 1_700}  # of a text, on average
_FIRING = 60  # latents active on a token of a published SAE that is no TopK SAE (published: 10 to 70)
_BASE_MEMORY = 700 << 20  # Python, PyTorch and transformers
_BLOCK, _LOGITS = 16_384, 512  # tokens worked on at once: residuals, and predictions
_MEASURED_EVERY = 600  # seconds: how busy the machine is changes
_BUFFER_ROWS = 524_288  # residuals held at once while training


class Amount(NamedTuple):
    """How much text there is."""

    texts: int
    characters: int


class Machine(NamedTuple):
    """What there is: operations a second, and bytes; None where it is not known."""

    rate: float
    memory: int | None
    disk: int


@dataclass(frozen=True)
class Estimate:
    """Seconds by stage, and bytes."""

    seconds: dict[str, float]  # without downloads, whose speed is not known
    tokens: int
    download: int
    disk: int  # at the most, while building, downloads included
    kept: int  # of it, the bundle
    memory: int
    warnings: tuple[str, ...]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def fits(self, machine: Machine) -> bool:
        """Whether there is room for it."""
        return self.disk <= machine.disk and (machine.memory is None or self.memory <= machine.memory)


def amount_of(spec: str) -> Amount:
    """Of what a `--texts` specification names; data sets of the Hub by their limits or by experience. InputError as in `text_specs`."""
    parsed = parse_spec(spec)
    if parsed == EMBEDDED:
        return Amount(len(embedded_rows()), sum(len(row.text) for row in embedded_rows()))
    if parsed == DIVERSE:
        return Amount(sum(s.n for s in diverse_specs()), sum(s.n * _DIVERSE_CHARACTERS[s.category] for s in diverse_specs()))
    if isinstance(parsed, HubSpec):
        texts = parsed.n or _HUB_TEXTS
        return Amount(texts, texts * min(parsed.chars or _HUB_TEXT, _HUB_TEXT))
    size = sum(path.stat().st_size for path in parsed.paths)
    return Amount(max(1, size // _HUB_TEXT), size)


def estimate(
    request: BuildRequest,
    facts: ModelFacts,
    amounts: Sequence[Amount],
    machine: Machine,
    *,
    sae_latents: int = 0,
    sae_firing: int = _FIRING,
    sae_here: bool = False,
) -> Estimate:
    """What `request` will take on this machine. Of a given SAE: its latents, those active on a token, and whether it needs no download."""
    hook, trained = HookPoint.parse(request.hook or DEFAULT_HOOK), request.sae is None
    L, k = (request.latents, request.k) if trained else (sae_latents, sae_firing)
    d, c = facts.width, request.context
    texts, characters = sum(a.texts for a in amounts), sum(a.characters for a in amounts)
    all_tokens = math.ceil(characters / CHARACTERS_PER_TOKEN)
    share = min(1.0, request.max_texts / max(texts, 1)) if request.max_texts else 1.0
    tokens = math.ceil(all_tokens * share)
    train_tokens = min(all_tokens, request.max_tokens or all_tokens) if trained else 0
    forward = (2 * facts.block_parameters + 4 * c * d) * hook.depth / _FORWARD
    whole = 2 * facts.parameters / _FORWARD
    encode = 2 * d * L
    overlap = _overlap(all_tokens / max(texts, 1), c)
    seen, judged = train_tokens * request.epochs, min(tokens, EVALUATED_TOKENS)
    steps = min(seen / 512, max(2_000, seen / 4_096))
    operations = {
        "model": _FIXED,
        "sae": train_tokens * forward
        + seen * (encode + _SPARSE * k * d)
        + steps * _UPDATE * L * d
        + (1.5 * min(train_tokens, EVALUATED_TOKENS) * (forward + encode) if trained else _BLOCK * forward),
        "store": tokens * overlap * (forward + encode),
        "features": L * (_LATENT + _LENS * d * facts.vocabulary + 2 * L * d),
        "map": L * _MAP if can_draw() else 0.0,
        "metrics": judged * overlap * (forward + encode) + min(tokens, LOSS_TOKENS) * (2 * forward + 4 * whole),
    }
    sae_bytes = 8 * L * d
    download = (0 if facts.here else 4 * facts.parameters) + (0 if trained or sae_here else sae_bytes)
    store = tokens * (8 * k + 16)
    kept = sae_bytes // (2 if request.weights == "float16" else 1) + store + 1_500 * L + characters // 2
    work = 4 * train_tokens * d + (3 * sae_bytes if trained else 0) + tokens * 12 * k
    memory = _BASE_MEMORY + 4 * (facts.block_parameters * hook.depth + facts.vocabulary * d) + max(
        (7 * sae_bytes + 4_096 * L * 8 + min(train_tokens, _BUFFER_ROWS) * d * 4) if trained else 0,
        sae_bytes + 4 * (4 * _BLOCK * d + request.batch_size * c * (4 * d + 4 * d)) + 4 * _BLOCK * min(L, 4_096),
        sae_bytes + 4 * facts.parameters + 8 * _LOGITS * facts.vocabulary,
    )  # fmt: skip
    found = Estimate(
        {stage: n / machine.rate for stage, n in operations.items()},
        tokens,
        download,
        download + work + kept,
        kept,
        memory,
        (),
    )
    return Estimate(**{**vars(found), "warnings": tuple(_warnings(found, machine, L, train_tokens if trained else None))})


def _overlap(length: float, context: int) -> float:
    """How often a token of texts of this length is read: windows of longer texts overlap by half."""
    return 1.0 if length <= context else (2 * length - context) / length


def _warnings(found: Estimate, machine: Machine, latents: int, train_tokens: int | None):
    if found.disk > machine.disk:
        yield (
            f"this needs about {size_words(found.disk)} of disk while it is built, and {size_words(machine.disk)} are free: take fewer texts "
            "or latents, or set SAE_EXPLORE_CACHE to a folder on another disk"
        )
    if machine.memory is not None and found.memory > machine.memory:
        yield (
            f"this needs about {size_words(found.memory)} of memory, and {size_words(machine.memory)} are free: take fewer latents "
            f"(now {latents:,}), a smaller batch or a smaller model, or close other programs"
        )
    if train_tokens is not None and train_tokens < 10 * latents:
        yield (
            f"about {train_tokens:,} tokens are few for {latents:,} latents, and features will be rough: take more texts or fewer latents"
        )


# ---- the machine -------------------------------------------------------------------------------------------------------


def this_machine(cache: Path) -> Machine:
    """Rate of this machine (measured every ten minutes), and what is free of its memory and of the disk of `cache`."""
    return Machine(
        _rate_at(int(time.monotonic() // _MEASURED_EVERY)),
        available_memory(),
        shutil.disk_usage(cache if cache.is_dir() else cache.parent).free,
    )


@functools.lru_cache(maxsize=1)
def _rate_at(_period: int) -> float:
    return product_rate()


def product_rate(size: int = 1_024, seconds: float = 0.3) -> float:
    """Operations a second of a product of two square fp32 matrices: the best of a few runs, at least two after one to warm up."""
    a = np.random.default_rng(0).random((size, size), np.float32)
    _ = a @ a
    best, end, runs = math.inf, time.perf_counter() + seconds, 0
    while runs < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        _ = a @ a
        best, runs = min(best, time.perf_counter() - start), runs + 1
    return 2 * size**3 / best


# ---- words -------------------------------------------------------------------------------------------------------------


def size_words(size: float) -> str:
    """Bytes for people: 340 MB, 1.4 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def time_words(seconds: float) -> str:
    """A duration for people, as rough as an estimate is: less than a minute, 7 min, 2 h 10 min."""
    minutes = math.ceil(seconds / 60)
    if minutes < 2:
        return "less than a minute" if seconds < 50 else "1 min"
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(5 * math.ceil(minutes / 5), 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"
