"""The scores of features for people: names, definitions, and for one feature what each score is about. No Streamlit.

A bundle that was built before a score existed has no column for it: its value is None.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sae_explore.activations.feature_stats import NONE
from sae_explore.bundles.bundle import Bundle
from sae_explore.features.evidence import EvidenceReader
from sae_explore.features.labels import commonest, shown


class ScoreName(NamedTuple):
    """What a score is called, in a table's head too, and how it is counted."""

    title: str
    short: str
    explained: str


SCORES = {
    "token": ScoreName("Same token", "Token", "Share of the strongest examples that peak on the commonest token (case and leading space put aside)."),
    "meaning": ScoreName(
        "Words alike",
        "Words",
        "How alike the different peak words are in the model's own unembedding: the share of sets of as many random corpus words, of the "
        "same form and frequency, that are less alike. 0 where there are fewer than three different words.",
    ),
    "before": ScoreName("Same token before", "Before", "Share of the strongest examples with the commonest token before the peak."),
    "after": ScoreName("Same token after", "After", "Share of the strongest examples with the commonest token after the peak."),
    "topic": ScoreName(
        "Same topic",
        "Topic",
        "Share of the strongest examples' documents in which words of one topic stand around the peak: words that are there in many "
        "more documents than in the rest of the texts.",
    ),
    "category": ScoreName(
        "Same kind of text",
        "Kind",
        "Share of the strongest examples from the commonest category; 0 where that is less than twice the category's share of all texts, or where "
        "they come from fewer than three documents.",
    ),
    "lens": ScoreName(
        "Lens beyond chance",
        "Lens",
        "How sharply the logit lens concentrates: the share of random directions whose most promoted token stands out less.",
    ),
    "agreement": ScoreName(
        "Lens and examples agree",
        "Agree",
        "Share of the strongest examples whose peak token, or the token after it, is among the lens's ten most promoted ones.",
    ),
}  # fmt: skip
"""By the name of the score: column `score_NAME` of features.parquet (see `labels`)."""


class ScoreLine(NamedTuple):
    """One score of one feature. `what`: the commonest token, the topic's words and the like, as plain text."""

    name: str
    value: float | None
    what: str


def known_scores(bundle: Bundle) -> list[str]:
    """Names of the scores that the bundle has, in order."""
    return [name for name in SCORES if f"score_{name}" in bundle.features.column_names]


def score_lines(bundle: Bundle, feature: int) -> list[ScoreLine]:
    """All scores of a live feature."""
    row = bundle.row(feature)
    tokens = bundle.examples["top"][feature]
    read = EvidenceReader(
        bundle.ids, bundle.vocabulary, bundle.doc_offsets, lambda document: bundle.documents["category"][document].as_py()
    )
    most = commonest([read(int(t)) for t in tokens[tokens != NONE]])
    promoted = row["lens_tokens"].split(" · ")
    what = {
        **{name: shown(most[name][0]) for name in ("token", "before", "after")},
        "category": most["category"][0],
        "meaning": row.get("meaning_words") or "",
        "topic": row.get("topic_words") or "",
        "lens": promoted[0],
        "agreement": "",
    }
    return [ScoreLine(name, _number(row.get(f"score_{name}")), what[name]) for name in SCORES]


def _number(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else float(value)
