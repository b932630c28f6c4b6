"""What to show first: texts and features that a person chose (see `curated`), else those that the store and the labels speak for.

Automatic texts are those on which specific, well-labelled features fire strongly; automatic features are the clearest ones of each
kind of label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_explore.activations.feature_stats import NONE
from sae_explore.bundles.bundle import Bundle
from sae_explore.features.diverse import clarity
from sae_explore.wording import KIND_WORDS

LENGTH = (24, 160)  # tokens of a text that reads in one look
_CANDIDATES = 480  # texts looked at, spread evenly over the corpus
_FIRINGS = 10  # a feature that fired less often has a maximum and a label that say little
_FEATURES = 12  # differently labelled features that a text is judged by
_KINDS = ("tokens", "token", "category", "lens", "form", "after", "before")  # of labels that say something, the most telling first
_COUNTED = 2_000_000  # tokens of the corpus that say how rare a token is
_CHECKED = 4.0  # worth of a feature that a person checked; automatic ones reach 3
_LOOK_AT = 3  # of them, offered to colour it by
_NOTE = "Chosen by the program: features with clear labels fire strongly on this text."


class Pick(NamedTuple):
    """A stored text worth a look."""

    document: int  # row of the documents table
    id: str
    title: str
    note: str = ""  # one sentence: what it shows
    features: tuple[int, ...] = ()  # to look at, the first one first


class Start(NamedTuple):
    """A feature worth opening."""

    feature: int
    label: str
    theme: str
    note: str = ""
    checked: bool = False  # label and theme are a person's


def openings(bundle: Bundle) -> tuple[Pick, ...]:
    """The texts of the first page, the one that it opens with in front."""
    chosen = tuple(Pick(t.document, t.id, t.title, t.note, t.features) for t in bundle.curated.texts)
    return chosen or pick_documents(bundle)


def starts(bundle: Bundle, *, each: int = 6) -> tuple[Start, ...]:
    """Features to begin with, theme by theme; the automatic ones are at most `each` of a kind of label, differently labelled."""
    chosen = tuple(Start(f.feature, f.label, f.theme, f.note, True) for f in bundle.curated.features)
    return chosen or _clearest(bundle, each)


def _clearest(bundle: Bundle, each: int) -> tuple[Start, ...]:
    clear = clarity(bundle.features, bundle.manifest["features"]["dense_above"]) * _rarity_of_peaks(bundle)
    kinds, labels = (bundle.features[name].to_numpy(zero_copy_only=False) for name in ("label_kind", "label"))
    found: list[Start] = []
    for kind in _KINDS:
        features = np.flatnonzero((kinds == kind) & np.isfinite(clear))
        by_label: dict[str, int] = {}
        for feature in features[np.argsort(-clear[features], kind="stable")]:
            by_label.setdefault(labels[feature], int(feature))
        theme = KIND_WORDS[kind][:1].upper() + KIND_WORDS[kind][1:]
        found += [Start(feature, label, theme) for label, feature in list(by_label.items())[:each]]
    return tuple(found)


def pick_documents(bundle: Bundle, n: int = 8) -> tuple[Pick, ...]:
    """At most `n` texts, the best one first, then by title: one a category, or several where there are few categories."""
    lengths = np.diff(bundle.doc_offsets)
    fitting = np.flatnonzero((lengths >= LENGTH[0]) & (lengths <= LENGTH[1]))
    if not len(fitting):  # only long texts, or only short ones
        fitting = np.argsort(lengths, kind="stable")[len(lengths) // 2 :][:_CANDIDATES]
    candidates = np.unique(fitting[np.linspace(0, len(fitting) - 1, min(len(fitting), _CANDIDATES)).astype(int)])
    worth = worth_of_features(bundle)
    labels = bundle.features["label"].to_numpy(zero_copy_only=False)
    scores = {int(d): _prose(bundle.document_text(d)) * sum(_best(bundle, int(d), worth, labels).values()) for d in candidates}
    best = sorted(scores, key=lambda d: (-scores[d], d))
    categories = bundle.documents["category"].to_numpy(zero_copy_only=False)
    each = max(1, n // max(1, len({categories[d] for d in best})))
    taken: dict[str, list[int]] = {}
    for document in best:
        of_category = taken.setdefault(categories[document], [])
        if len(of_category) < each:
            of_category.append(document)
    chosen = sorted((d for group in taken.values() for d in group), key=best.index)[:n]
    picks = [
        Pick(
            d,
            bundle.documents["id"][d].as_py(),
            _title(bundle, d, categories[d], each),
            _NOTE,
            tuple(_best(bundle, d, worth, labels))[:_LOOK_AT],
        )
        for d in chosen
    ]
    return tuple(picks[:1] + sorted(picks[1:], key=lambda p: (p.title.casefold(), p.document)))


def worth_of_features(bundle: Bundle) -> np.ndarray:
    """(d_sae,) how much a firing at a feature's maximum says: confident labels, rare features and rare peak tokens count most; what a person checked, more."""
    table = bundle.features
    density, count = table["density"].to_numpy(), table["count"].to_numpy()
    named = ~np.isin(table["label_kind"].to_numpy(zero_copy_only=False), ("mixed", "dead"))
    usable = named & (count >= _FIRINGS) & (density <= bundle.manifest["features"]["dense_above"])
    rare = np.clip(-np.log10(np.maximum(density, 1e-9)) - 1, 0, 3)
    worth = np.where(usable, table["confidence"].to_numpy() * rare * _rarity_of_peaks(bundle), 0.0)
    worth[list(bundle.human_labels)] = _CHECKED
    return worth


def _rarity_of_peaks(bundle: Bundle) -> np.ndarray:
    """(d_sae,) 0 where the tokens of a feature's strongest examples are in one of a hundred places, 1 where each is in one of 3,000."""
    top = np.asarray(bundle.examples["top"])
    counted = np.asarray(bundle.ids[:_COUNTED], np.int64)
    share = np.bincount(counted, minlength=len(bundle.vocabulary)) / max(len(counted), 1)
    peaks = np.asarray(bundle.ids)[np.where(top == NONE, 0, top)].astype(np.int64)
    rarity = np.clip((-np.log10(np.maximum(share[peaks], 1e-9)) - 2) / 1.5, 0, 1)
    return np.where(top == NONE, 0, rarity).sum(1) / np.maximum((top != NONE).sum(1), 1)


def notable(features: np.ndarray, shares: np.ndarray, worth: np.ndarray, labels: Sequence[str], n: int) -> dict[int, float]:
    """Of features that fire on a text (rows of one length), the best `n` differently labelled ones, best first, with what they count.

    They count worth times share of maximum, where that share is at least a half.
    """
    value = np.where(shares >= 0.5, np.minimum(shares, 1) * worth[features], 0.0)
    by_label: dict[str, int] = {}
    for i in np.lexsort((features, -value))[: 4 * n]:
        if value[i] > 0:
            by_label.setdefault(labels[i], int(i))
    return {int(features[i]): float(value[i]) for i in list(by_label.values())[:n]}


def _best(bundle: Bundle, document: int, worth: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """The notable features of a stored text."""
    rows = bundle.store.rows(int(bundle.doc_offsets[document]), int(bundle.doc_offsets[document + 1]))
    peak = np.zeros(bundle.d_sae, np.float32)
    np.maximum.at(peak, rows.features, rows.values)
    share = np.divide(peak, bundle.maxima, out=np.zeros_like(peak), where=np.asarray(bundle.maxima) > 0)
    return notable(np.arange(bundle.d_sae), share, worth, labels, _FEATURES)


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
