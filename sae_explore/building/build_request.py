"""What a build is asked for: everything that decides a bundle's contents, with its defaults and limits."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from sae_explore.errors import InputError
from sae_explore.files.bundle_files import check_name
from sae_explore.types import HookPoint

EVALUATED_TOKENS = 50_000  # on which explained variance is measured, at most
DEFAULT_HOOK = "blocks.6.hook_resid_post"
LOSS_TOKENS = 20_000  # for cross entropies, at most: they run the whole model four times


@dataclass(frozen=True)
class BuildRequest:
    """Everything that decides a bundle's contents."""

    name: str
    model: str
    hook: str | None = None  # None: where a given SAE says that it reads, else DEFAULT_HOOK
    sae: str | None = None  # HUB_ID[@REVISION][:FOLDER] or a folder; None: train one
    texts: tuple[str, ...] = ("diverse",)  # to train on and, unless `store_texts` is given, to explore
    store_texts: tuple[str, ...] = ()
    latents: int = 2_048
    k: int = 32
    epochs: int = 15
    lr: float = 0.0  # 0: chosen from the number of latents
    batch_tokens: int = 0  # 0: chosen from the number of tokens
    max_tokens: int | None = None  # to train on
    max_texts: int | None = None  # to explore
    context: int = 128
    batch_size: int = 32  # texts a forward batch
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"  # of the store's forward passes: auto, float32 or bfloat16
    center: str = "auto"
    weights: str = "float32"  # on disk
    store_cap: int = 0  # firings of a feature past which only the strongest and a sample are kept; 0: the store's default
    revision: str | None = None

    def checked(self) -> BuildRequest:
        """This request with its hook in canonical form; InputError for what cannot be."""
        check_name(self.name)
        whole = (
            ("latents", self.latents, 1),
            ("k", self.k, 1),
            ("epochs", self.epochs, 1),
            ("context", self.context, 8),
            ("batch-size", self.batch_size, 1),
            ("max-tokens", self.max_tokens, 1),
            ("max-texts", self.max_texts, 1),
            ("batch-tokens", self.batch_tokens, 0),
            ("store-cap", self.store_cap, 0),
            ("seed", self.seed, 0),
        )
        for what, value, low in whole:
            if value is not None and not low <= value < 1 << 62:
                raise InputError(f"--{what} is {value}, but must be at least {low}" + (" and not that large" if value > low else ""))
        if not (math.isfinite(self.lr) and 0 <= self.lr < 1):
            raise InputError(f"--lr is {self.lr}, but must lie between 0 and 1 (0: chosen from the number of latents)")
        if self.sae is None and self.k > self.latents:
            raise InputError(f"k = {self.k} is more than the number of latents, {self.latents}")
        if self.sae is None and self.center == "yes":
            raise InputError(
                "--center yes goes with a given --sae that was trained on centred residuals; SAEs trained here read them as they are"
            )
        words = (
            ("dtype", self.dtype, ("auto", "float32", "bfloat16")),
            ("center", self.center, ("auto", "yes", "no")),
            ("weights", self.weights, ("float32", "float16")),
        )
        for what, value, allowed in words:
            if value not in allowed:
                raise InputError(f"--{what} is {value!r}, but must be one of {', '.join(allowed)}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise InputError(f"--device is {self.device[:40]!r}, but must be auto, cpu, cuda or cuda:N")
        hook = self.hook or (DEFAULT_HOOK if self.sae is None else None)
        return replace(self, hook=hook and HookPoint.parse(hook).name)
