"""Which stored texts to show first: those on which specific, well-labelled features fire strongly. Decided by the store alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sae_explore.bundle import Bundle

LENGTH = (24, 160)  # tokens of a text that reads in one look
_CANDIDATES = 480  # texts looked at, spread evenly over the corpus
_FIRINGS = 10  # a feature that fired less often has a maximum and a label that say little
_FEATURES = 12  # differently labelled features that a text is judged by


class Pick(NamedTuple):
    """A stored text worth a look."""

    document: int  # row of the documents table
    id: str
    title: str


def pick_documents(bundle: Bundle, n: int = 8) -> tuple[Pick, ...]:
    """At most `n` texts, the best one first, then by title: one a category, or several where there are few categories."""
    lengths = np.diff(bundle.doc_offsets)
    fitting = np.flatnonzero((lengths >= LENGTH[0]) & (lengths <= LENGTH[1]))
    if not len(fitting):  # only long texts, or only short ones
        fitting = np.argsort(lengths, kind="stable")[len(lengths) // 2 :][:_CANDIDATES]
    candidates = np.unique(fitting[np.linspace(0, len(fitting) - 1, min(len(fitting), _CANDIDATES)).astype(int)])
    worth = _worth_of_features(bundle)
    labels = bundle.features["label"].to_numpy(zero_copy_only=False)
    scores = {int(d): _score(bundle, int(d), worth, labels) for d in candidates}
    best = sorted(scores, key=lambda d: (-scores[d], d))
    categories = bundle.documents["category"].to_numpy(zero_copy_only=False)
    each = max(1, n // max(1, len({categories[d] for d in best})))
    taken: dict[str, list[int]] = {}
    for document in best:
        of_category = taken.setdefault(categories[document], [])
        if len(of_category) < each:
            of_category.append(document)
    chosen = sorted((d for group in taken.values() for d in group), key=best.index)[:n]
    picks = [Pick(d, bundle.documents["id"][d].as_py(), _title(bundle, d, categories[d], each)) for d in chosen]
    return tuple(picks[:1] + sorted(picks[1:], key=lambda p: (p.title.casefold(), p.document)))


def _worth_of_features(bundle: Bundle) -> np.ndarray:
    """(d_sae,) how much a firing at a feature's maximum says: confident labels and rare features count most."""
    table = bundle.features
    density, count = table["density"].to_numpy(), table["count"].to_numpy()
    named = ~np.isin(table["label_kind"].to_numpy(zero_copy_only=False), ("mixed", "dead"))
    usable = named & (count >= _FIRINGS) & (density <= bundle.manifest["features"]["dense_above"])
    return np.where(usable, table["confidence"].to_numpy() * np.clip(-np.log10(np.maximum(density, 1e-9)) - 1, 0, 3), 0.0)


def _score(bundle: Bundle, document: int, worth: np.ndarray, labels: np.ndarray) -> float:
    """Sum over the best few differently labelled features of worth times share of maximum, where the share is at least a half."""
    rows = bundle.store.rows(int(bundle.doc_offsets[document]), int(bundle.doc_offsets[document + 1]))
    peak = np.zeros(bundle.d_sae, np.float32)
    np.maximum.at(peak, rows.features, rows.values)
    share = np.divide(peak, bundle.maxima, out=np.zeros_like(peak), where=np.asarray(bundle.maxima) > 0)
    value = np.where(share >= 0.5, share * worth, 0.0)
    best: dict[str, float] = {}
    for feature in np.argsort(-value, kind="stable")[: 4 * _FEATURES]:
        best.setdefault(labels[feature], float(value[feature]))
    return _prose(bundle.document_text(document)) * sum(sorted(best.values(), reverse=True)[:_FEATURES])


def _prose(text: str) -> float:
    """Share of letters and single spaces, squared: a newcomer reads prose more easily than code and tables."""
    plain = sum(c.isalpha() for c in text) + len(text.split()) - 1
    return (plain / max(len(text), 1)) ** 2


def _title(bundle: Bundle, document: int, category: str, each: int) -> str:
    """The category in a word; where texts share it, how the text begins."""
    if each == 1 and category.strip():
        return category.strip().replace("_", " ").capitalize()
    words = bundle.document_text(document).split()
    title = " ".join(words[:4])
    return title[:32].rstrip() + ("…" if len(words) > 4 or len(title) > 32 else "")
