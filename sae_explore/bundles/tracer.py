"""A bundle's model and SAE, loaded to read texts that are not in its store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open

from sae_explore.activations.encoding import trace_text
from sae_explore.bundles.bundle import SAE_FOLDER, Bundle
from sae_explore.errors import BundleError
from sae_explore.memory import FilePages, trim
from sae_explore.models.model import LanguageModel, load_model
from sae_explore.models.model_sources import ModelSource, Report, resolve_model
from sae_explore.models.tokens import MAX_TEXT_TOKENS
from sae_explore.saes.sae import Sae
from sae_explore.saes.sae_formats import WEIGHTS_FILE, load_sae
from sae_explore.types import HookPoint, SaeSpec, TextTrace


def bundle_sae(folder: Path, spec: dict) -> Sae:
    """The SAE in a bundle's `sae/` with the full specification of its manifest (SAELens's format cannot say everything)."""
    return replace(load_sae(folder, fold=False), spec=SaeSpec(**{**spec, "notes": tuple(spec.get("notes", ()))}))


def with_mapped_decoder(sae: Sae, folder: Path) -> Sae:
    """The SAE with the decoder on disk, out of memory until it is asked for: reading texts needs the encoder only.

    A half-precision decoder stays as stored; `Sae.decode` converts the rows that it uses, which is exact.
    """
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        W_dec = file.get_tensor("W_dec")
    some = slice(None, None, max(1, len(W_dec) // 8))
    if W_dec.dtype == torch.float16 and torch.equal(W_dec[some].float(), sae.W_dec[some]):
        sae = replace(sae, W_dec=W_dec)
    FilePages(sae.W_dec).release()
    return sae


def bundle_model(bundle: Bundle, *, report: Report | None = None) -> ModelSource:
    """The model that the bundle was made with, fetched if need be; BundleError if what is here is another version of it."""
    spec, revision = bundle.manifest["model"]["spec"], bundle.manifest["model"]["revision"]
    commit = revision if len(revision) == 40 else None  # only models of the Hub have one
    source = resolve_model(spec, models=bundle.folder.parent / "models", revision=commit, report=report)
    if source.revision != revision:
        raise BundleError(
            f"bundle {bundle.name!r} was made with version {revision[:12]} of {source.spec}, but {source.revision[:12]} is here; "
            "its numbers would not fit; build it again with --force"
        )
    return source


@dataclass(frozen=True)
class Tracer:
    """Reads texts as the bundle's store was read. Shared by all threads: holds no per-call state."""

    bundle: str
    units: str
    context: int
    bos: bool
    median_norm: float
    model: LanguageModel
    sae: Sae

    @classmethod
    def load(cls, bundle: Bundle, *, report: Report | None = None, load: Callable[..., LanguageModel] = load_model) -> Tracer:
        """Fetch the model if need be and load it up to the hook. `load` may share models between bundles.

        BundleError if the model that is here is not the one the bundle was made with.
        """
        manifest, source = bundle.manifest, bundle_model(bundle, report=report)
        folder = bundle.files / SAE_FOLDER
        sae = with_mapped_decoder(bundle_sae(folder, manifest["sae"]), folder)
        trim()  # the decoder was in memory for its checks: it is out again before the model comes in
        model = load(source.folder, hook=HookPoint.parse(bundle.hook), name=source.spec, revision=source.revision)
        trim()
        return cls(bundle.name, bundle.units, manifest["context"], manifest["bos"], manifest["median_norm"], model, sae)

    def trace(self, text: str, *, max_tokens: int = MAX_TEXT_TOKENS) -> TextTrace:
        """See `encoding.trace_text`."""
        return trace_text(self.model, self.sae, text, bundle=self.bundle, units=self.units, context=self.context, bos=self.bos,
                          median_norm=self.median_norm, max_tokens=max_tokens)  # fmt: skip
