"""What are the texts around a feature's peaks about? Words that stand there in more documents than the corpus lets expect.

Documents are counted, not examples: a word that one document repeats is no topic. A topic word
- stands AROUND or fewer tokens from the peaks, and not within CLOSE of them (that is a neighbour, and scored as such),
- in at least SEEN documents, and in LIFT times as many as chance lets expect: so many that among all the words seen there
  less than SURE of one would be so frequent by accident (binomial tail),
- and is no word of every text: fewer than COMMON of all tokens have it around them.
Of these the ones that together reach the most documents make the topic, at most TOPIC_WORDS. `score` is the share of the top examples'
documents that hold one of them; 0 where these are fewer than MIN_DOCUMENTS, or fewer than MIN_WORDS words are left.
"""

from __future__ import annotations

from math import comb
from typing import NamedTuple

import numpy as np

from sae_explore.features.words import AROUND, NO_WORD, Words

TOPIC_WORDS = 4
MIN_WORDS = 2  # one word alone is no topic
MIN_DOCUMENTS = 5
SEEN = 3
CLOSE = 2
COMMON = 0.08
LIFT = 4.0
SURE = 1e-3


class Topic(NamedTuple):
    """What the surroundings of a feature's peaks have in common."""

    score: float = 0.0
    words: tuple[str, ...] = ()  # the one in most documents first
    documents: int = 0  # of the top examples
    weaker: float = 0.0  # share of the documents of the weaker examples that hold a topic word; 0 where there are none


class Surroundings:
    """Which words stand around a token."""

    def __init__(self, words: Words, doc_offsets: np.ndarray):
        self._words, self._offsets = words, np.asarray(doc_offsets, np.int64)
        steps = np.arange(-AROUND, AROUND + 1)
        self._steps = steps[np.abs(steps) > CLOSE]

    def topic(self, top: np.ndarray, weaker: np.ndarray) -> Topic:
        """Tokens at which the top and the weaker examples peak, (n,) each."""
        document, word, n = self._pairs(top)
        if n < MIN_DOCUMENTS:
            return Topic(documents=n)
        telling = self._telling(word, n, examples=len(top))
        holds = {w: set(document[word == w].tolist()) for w in telling}
        taken: list[int] = []
        reached: set[int] = set()
        while len(taken) < min(TOPIC_WORDS, len(holds)):
            # Most new documents, then most documents, then the rarer word.
            best = max(
                (w for w in holds if w not in taken), key=lambda w: (len(holds[w] - reached), len(holds[w]), -self._words.coverage[w])
            )
            taken.append(best)
            reached |= holds[best]
        if len(taken) < MIN_WORDS:
            return Topic(documents=n)
        taken.sort(key=lambda w: -len(holds[w]))
        other_document, other_word, others = self._pairs(weaker)
        seen = len(set(other_document[np.isin(other_word, taken)].tolist()))
        return Topic(len(reached) / n, tuple(self._words.texts[w] for w in taken), n, seen / others if others else 0.0)

    def _pairs(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """The distinct pairs (document, word around one of the tokens in it), as two arrays; and the number of documents."""
        documents, document = np.unique(np.searchsorted(self._offsets, tokens, side="right") - 1, return_inverse=True)
        at = np.asarray(tokens, np.int64)[:, None] + self._steps
        inside = (at >= self._offsets[documents[document]][:, None]) & (at < self._offsets[documents[document] + 1][:, None])
        word = self._words.of_token[np.where(inside, at, 0)]
        inside &= word != NO_WORD
        size = max(len(self._words.texts), 1)
        pairs = np.unique((document[:, None] * size + word)[inside])
        return pairs // size, pairs % size, len(documents)

    def _telling(self, word: np.ndarray, n: int, *, examples: int) -> list[int]:
        """Words that stand in many more of the n documents than chance would have it."""
        found, counts = np.unique(word, return_counts=True)
        coverage = self._words.coverage[found]
        chance = 1 - (1 - coverage) ** (examples / n)
        likely = (counts >= SEEN) & (coverage < COMMON) & (counts >= LIFT * n * chance)
        return [
            int(w)
            for w, k, p in zip(found[likely].tolist(), counts[likely].tolist(), chance[likely].tolist(), strict=True)
            if _tail(k, n, p) * len(found) < SURE
        ]


def _tail(k: int, n: int, p: float) -> float:
    """The chance of at least k of n where each has the chance p."""
    return sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
