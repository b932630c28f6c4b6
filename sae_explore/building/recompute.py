"""A bundle's figures measured again from its own files: documents, SAE and model, nothing kept from the build."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sae_explore.building.evaluation import evaluate
from sae_explore.bundles.bundle import Bundle
from sae_explore.bundles.tracer import Tracer, bundle_model
from sae_explore.models.model import load_full_model
from sae_explore.texts.dataset import is_held_out


def recompute_metrics(bundle: Bundle, *, report: Callable[[float], None] = lambda _share: None) -> dict:
    """The same keys as the manifest's metrics, `dead` counted from the store."""
    tracer = Tracer.load(bundle)
    documents = range(bundle.n_documents)
    if bundle.manifest["metrics"]["evaluated_set"] == "held_out":
        documents = [i for i in documents if is_held_out(bundle.document_text(i))]
    offsets, categories = bundle.doc_offsets, bundle.documents["category"].to_pylist()
    ids = [np.asarray(bundle.ids[offsets[i] : offsets[i + 1]], np.int32) for i in documents]
    found = evaluate(
        tracer.model, load_full_model(bundle_model(bundle).folder), tracer.sae, ids, [categories[i] for i in documents],
        window=tracer.context, bos=tracer.bos, median_norm=tracer.median_norm, report=report,
    )  # fmt: skip
    return {**found, "dead": int((np.diff(bundle.store.feature_offsets) == 0).sum())}
