"""The evidence about every feature, taken from the tokens at its examples, and what `labels` makes of it: columns of features.parquet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from functools import cache

import numpy as np

from sae_explore.activations.feature_stats import NONE, ExampleTables
from sae_explore.features import labels
from sae_explore.features.labels import Evidence
from sae_explore.features.meaning import WordSpace
from sae_explore.features.topic import Surroundings
from sae_explore.features.words import NO_WORD, Words, read_words
from sae_explore.models.tokens import Vocabulary

_LABEL_EXAMPLES = 20
_WORDS = 4  # of those that are alike, kept for the page


class EvidenceReader:
    """What stands at a token of the corpus, as `labels` wants it. Without `words` the whole word is left out."""

    def __init__(
        self,
        ids: np.ndarray,
        vocabulary: Vocabulary,
        doc_offsets: np.ndarray,
        category_of: Callable[[int], str],
        words: Words | None = None,
    ):
        self._ids, self._offsets, self._category_of, self._words = ids, doc_offsets, category_of, words
        self.text_of = cache(vocabulary.text_of)

    def __call__(self, token: int) -> Evidence:
        document = int(np.searchsorted(self._offsets, token, side="right")) - 1
        around = (token, token - 1, token + 1)
        first, end = self._offsets[document], self._offsets[document + 1]
        peak, before, after = (self.text_of(int(self._ids[t])) if first <= t < end else "" for t in around)
        word = NO_WORD if self._words is None else int(self._words.of_token[token])
        return Evidence(peak, before, after, self._category_of(document), self._words.texts[word] if word != NO_WORD else "", document)


def word_columns(
    *,
    ids: np.ndarray,
    vocabulary: Vocabulary,
    doc_offsets: np.ndarray,
    category_of_document: np.ndarray,
    category_share: dict[str, float],
    examples: ExampleTables,
    lens_ids: np.ndarray,
    z_top: np.ndarray,
    random_z_top: np.ndarray,
    rows_of: Callable[[np.ndarray], np.ndarray],
    seed: int = 0,
) -> dict:
    """Peak token, lens tokens, label and scores of every feature.

    lens_ids (features, n): the most promoted tokens, and z_top (features,) the first one's logit in standard deviations, beside
    that of random directions. rows_of: see `meaning.WordSpace`.
    """
    words = read_words(ids, vocabulary, doc_offsets)
    top, weaker = examples.top[:, :_LABEL_EXAMPLES], examples.random
    at_top, at_weaker = _words_at(words, top), _words_at(words, weaker)
    asked = np.union1d(at_top, at_weaker)
    meanings = WordSpace(words, asked[asked >= 0], rows_of, seed=seed).alike(at_top, at_weaker)
    surroundings = Surroundings(words, doc_offsets)
    evidence = EvidenceReader(ids, vocabulary, doc_offsets, lambda document: str(category_of_document[document]), words)
    columns: dict[str, list] = {
        name: [] for name in ("peak_token", "lens_tokens", "label", "label_kind", "confidence", "meaning_words", "topic_words")
    }
    scored: list[labels.Scores] = []
    for feature, meaning in enumerate(meanings):
        strong, weak = (table[feature][table[feature] != NONE].astype(np.int64) for table in (top, weaker))
        topic = surroundings.topic(strong, weak)
        seen = [evidence(t) for t in strong.tolist()]
        tokens = [evidence.text_of(i) for i in lens_ids[feature].tolist()]
        lens = labels.lens_score(float(z_top[feature]), random_z_top)
        found = {"meaning": meaning, "topic": topic}
        named = labels.label(seen, [evidence(t) for t in weak.tolist()], category_share, tokens, lens, **found)
        scored.append(labels.scores(seen, category_share, tokens, lens, **found))
        columns["peak_token"].append(Counter(e.peak for e in seen).most_common(1)[0][0] if seen else "")
        columns["lens_tokens"].append(" · ".join(labels.shown(t) for t in tokens[:5]))
        columns["label"].append(named.text)
        columns["label_kind"].append(named.kind)
        columns["confidence"].append(named.confidence)
        columns["meaning_words"].append(", ".join(meaning.words[:_WORDS]))
        columns["topic_words"].append(", ".join(topic.words))
    score_columns = {f"score_{f.name}": np.asarray([getattr(s, f.name) for s in scored], np.float32) for f in fields(labels.Scores)}
    return columns | score_columns | {"confidence": np.asarray(columns["confidence"], np.float32)}


def _words_at(words: Words, tokens: np.ndarray) -> np.ndarray:
    """The word at each token of an example table; below NO_WORD where there is no example."""
    return np.where(tokens == NONE, NO_WORD - 1, words.of_token[np.where(tokens == NONE, 0, tokens)])
