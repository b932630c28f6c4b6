"""The JSON of the command line and of the pages' downloads: plain dictionaries of texts, features and metrics."""

from __future__ import annotations

from collections.abc import Sequence

from sae_explore.bundles.bundle import Bundle
from sae_explore.types import Example, FeatureCard, LensToken, TextTrace

TOP_FEATURES = 50


def trace_json(trace: TextTrace, bundle: Bundle, *, top: int = TOP_FEATURES) -> dict:
    """A text: its tokens, the activations of every counted token, and its strongest features with their labels."""
    tokens = trace.tokens
    return {
        "bundle": trace.bundle,
        "hook": trace.hook,
        "units": trace.units,
        "tokens": [
            {
                "position": i,
                "id": int(tokens.ids[i]),
                "text": tokens.texts[i],
                "bytes": tokens.bytes[i].hex(),
                "special": bool(tokens.special[i]),
                "ignored": bool(trace.ignored[i]),
            }
            for i in range(len(tokens))
        ],
        "activations": [
            {"position": i, "features": features.tolist(), "values": [round(float(v), 4) for v in values]}
            for i in range(len(tokens))
            if not trace.ignored[i]
            for features, values in [trace.rows.row(i)]
        ],
        "top_features": [
            {
                "feature": hit.feature,
                "max": round(hit.max, 4),
                "sum": round(hit.sum, 4),
                "position": hit.position,
                **labels_json(
                    bundle.automatic_label(hit.feature), bundle.human_labels.get(hit.feature), bundle.own_labels.get(hit.feature)
                ),
            }
            for hit in trace.hits()[:top]
        ],
    }


def feature_json(card: FeatureCard) -> dict:
    """A feature: density, maximum, label, histogram, lens lists, examples, nearest features."""
    edges, counts = card.extra["histogram"]
    return {
        "bundle": card.ref.bundle,
        "feature": card.ref.feature,
        "density": card.row["density"],
        "max": card.row["max"],
        **labels_json(card.row["automatic_label"], card.row["human_label"], card.row["own_label"]),
        "confidence": card.row["confidence"],
        "histogram": {"edges": [round(float(e), 5) for e in edges], "counts": [int(c) for c in counts]},
        "lens": card.lens_convention,
        "positive_logits": lens_json(card.positive),
        "negative_logits": lens_json(card.negative),
        "examples": [_example(e) for e in (*card.top, *card.intervals, *card.random)],
        "neighbours": [{"feature": feature, "cosine": round(cosine, 4)} for feature, cosine in card.neighbours],
    }


def labels_json(automatic: str, human: str | None, own: str | None = None) -> dict:
    """The automatic label, the one that was given by hand and the visitor's own, where there are such."""
    return {"label": automatic} | {name: label for name, label in (("human_label", human), ("own_label", own)) if label}


def metrics_json(bundle: Bundle) -> dict:
    """The SAE's figures as the manifest keeps them."""
    return {"bundle": bundle.name, **bundle.manifest["metrics"]}


def lens_json(tokens: Sequence[LensToken]) -> list[dict]:
    """A logit-lens list."""
    return [{"id": token.id, "token": token.token, "logit": round(token.logit, 4)} for token in tokens]


def _example(example: Example) -> dict:
    return {
        "document": example.document_id,
        "category": example.category,
        "start": example.start,
        "peak": example.peak,
        "kind": example.kind,
        "interval": example.interval,
        "tokens": list(example.tokens),
        "values": [round(float(v), 4) for v in example.values],
    }
