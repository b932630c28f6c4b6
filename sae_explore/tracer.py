"""A bundle's model and SAE, loaded to read texts that are not in its store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sae_explore.bundle import SAE_FOLDER, Bundle
from sae_explore.encoding import trace_text
from sae_explore.errors import BundleError
from sae_explore.model import LanguageModel, load_model
from sae_explore.model_sources import Report, resolve_model
from sae_explore.sae import Sae
from sae_explore.sae_formats import load_sae
from sae_explore.tokens import MAX_TEXT_TOKENS
from sae_explore.types import HookPoint, SaeSpec, TextTrace


def bundle_sae(folder: Path, spec: dict) -> Sae:
    """The SAE in a bundle's `sae/` with the full specification of its manifest (SAELens's format cannot say everything)."""
    return replace(load_sae(folder), spec=SaeSpec(**{**spec, "notes": tuple(spec.get("notes", ()))}))


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
        manifest = bundle.manifest
        source = resolve_model(manifest["model"]["spec"], models=bundle.folder.parent / "models", revision=_commit(manifest), report=report)
        if source.revision != manifest["model"]["revision"]:
            raise BundleError(
                f"bundle {bundle.name!r} was made with revision {manifest['model']['revision'][:12]} of {source.spec}, but {source.revision[:12]} is here; "
                "its numbers would not fit; build it again with --force"
            )
        hook = HookPoint.parse(bundle.hook)
        model = load(source.folder, hook=hook, name=source.spec, revision=source.revision)
        sae = bundle_sae(bundle.files / SAE_FOLDER, manifest["sae"])
        return cls(bundle.name, bundle.units, manifest["context"], manifest["bos"], manifest["median_norm"], model, sae)

    def trace(self, text: str, *, max_tokens: int = MAX_TEXT_TOKENS) -> TextTrace:
        """See `encoding.trace_text`."""
        return trace_text(self.model, self.sae, text, bundle=self.bundle, units=self.units, context=self.context, bos=self.bos,
                          median_norm=self.median_norm, max_tokens=max_tokens)  # fmt: skip


def _commit(manifest: dict) -> str | None:
    """The Hub commit to load; what is no Hub model has no commit."""
    revision = manifest["model"]["revision"]
    return revision if len(revision) == 40 else None
