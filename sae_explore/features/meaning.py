"""Are the words at a feature's peaks alike in meaning? Asked of the model's own unembedding rows, and compared with chance.

A word is the unembedding row of its token, less the mean row of corpus words of the same form (leading space, capital), normalised:
what words share because they are frequent or written alike is no meaning. Words of several tokens have no row.

The distinct peak words of the top examples are compared with DRAWS sets of as many words drawn from the corpus, each among the
_SIMILAR words of the same form and the nearest frequency. `score` is the share of these sets whose mean pairwise cosine is smaller.
A peak is near if its word's cosine with the sum of the other distinct peak words exceeds that of NEAR of the words that would be drawn
in its place, peak words left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sae_explore.features.words import NO_WORD, Words

DRAWS = 200
NEAR = 0.9
MIN_WORDS = 3  # distinct peak words that can be called alike
_POOL = 1024  # words of the corpus to draw from: so many of the most frequent ones, and as many of the others at random
_SIMILAR = 64
_CHUNK = 256  # features at once


class Meaning(NamedTuple):
    """What the peak words of a feature have in common."""

    score: float = 0.0
    words: tuple[str, ...] = ()  # near peak words, those that are frequent and close to the others first; one of each stem
    top: float = 0.0  # share of the top examples whose peak is near
    weaker: float = 0.0  # the same of the weaker ones; 0 where there are none


class WordSpace:
    """The rows of the words that are asked for, and of a sample of the corpus's words to compare them with."""

    def __init__(self, words: Words, asked: np.ndarray, rows_of: Callable[[np.ndarray], np.ndarray], *, seed: int = 0):
        """`asked`: numbers of the words that will be compared. `rows_of`: token ids (n,) to their unembedding rows (n, d_model) float32;
        asked once, for these words and the sample."""
        self._texts, self._seed = words.texts, seed
        single = np.flatnonzero(words.spelling[:, 1] < 0)
        single = single[np.argsort(-words.count[single], kind="stable")]
        pool = np.r_[single[:_POOL], np.random.default_rng(seed).permutation(single[_POOL:])[:_POOL]]
        known = np.union1d(pool, np.intersect1d(asked, single))  # words that have a row, in order of their numbers
        self._row = np.full(len(words.texts) + 1, -1, np.int64)  # the last one serves NO_WORD
        self._row[known] = np.arange(len(known))
        form, count = words.form[known].astype(np.int64), words.count[known]
        order = np.flatnonzero(np.isin(known, pool))
        order = order[np.lexsort((count[order], form[order]))]  # the pool by form, then by frequency
        vectors = rows_of(words.spelling[known, 0].astype(np.int64))
        for value in np.unique(form):
            vectors[form == value] -= vectors[order[form[order] == value] if (form[order] == value).any() else order].mean(0)
        self._vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        self._pool_rows, self._pool = order, self._vectors[order]
        self._cosine = self._pool @ self._pool.T
        low, size = _similar(form, count, form[order], count[order])
        self._low, self._size = low, size
        self._compared = low[:, None] + np.arange(_SIMILAR) % size[:, None]  # the words of the pool that each word is compared with
        self._own = np.empty(self._compared.shape, np.float32)  # the word's products with them
        for a in range(0, len(known), _CHUNK):
            self._own[a : a + _CHUNK] = (self._pool[self._compared[a : a + _CHUNK]] @ self._vectors[a : a + _CHUNK, :, None])[..., 0]

    def alike(self, top: np.ndarray, weaker: np.ndarray) -> list[Meaning]:
        """Of each feature: numbers of the words at the peaks of its examples, (features, examples) each.

        NO_WORD where a peak is no word, NO_WORD - 1 where there are fewer examples.
        """
        found: list[Meaning] = []
        for a in range(0, len(top), _CHUNK):
            chunk = [self._peaks(row) for row in top[a : a + _CHUNK]]
            totals = np.stack([self._vectors[at].sum(0) for at in chunk])
            like = totals @ self._pool.T
            for i, at in enumerate(chunk):
                f = a + i
                found.append(self._one(f, top[f], weaker[f], at, totals[i], like[i]) if len(at) >= MIN_WORDS else Meaning())
        return found

    def _peaks(self, words: np.ndarray) -> np.ndarray:
        """Rows of the distinct words that have one."""
        rows = self._row[np.unique(words[words >= 0])]
        return rows[rows >= 0]

    def _one(self, feature: int, top, weaker, at: np.ndarray, total: np.ndarray, like: np.ndarray) -> Meaning:
        """`at`: rows of the peak words, `total` their sum, `like` the products of the pool with it."""
        n = len(at)
        mean = (float(total @ total) - n) / (n * (n - 1))
        score = float((self._chance(at, feature) < mean).mean())
        every = np.union1d(at, self._peaks(weaker))
        member = np.isin(every, at)
        product = self._vectors[every] @ total - member  # without itself, whose product with itself is 1
        others = like[self._compared[every]] - member[:, None] * self._own[every]
        rival = ~np.isin(self._pool_rows[self._compared[every]], at)
        near = every[((others < product[:, None]) & rival).sum(1) >= NEAR * rival.sum(1)]
        return Meaning(
            score, self._named(top, near, dict(zip(every.tolist(), product.tolist(), strict=True))), *map(self._share(near), (top, weaker))
        )

    def _chance(self, at: np.ndarray, feature: int) -> np.ndarray:
        """Mean pairwise cosines of DRAWS sets of words drawn in place of these."""
        rng = np.random.default_rng((self._seed, feature))
        drawn = self._low[at] + (rng.random((DRAWS, len(at))) * self._size[at]).astype(np.int64)
        i, j = np.triu_indices(len(at), 1)
        first, second = drawn[:, i], drawn[:, j]
        differ = first != second
        return (self._cosine[first, second] * differ).sum(1) / np.maximum(differ.sum(1), 1)

    def _share(self, near: np.ndarray):
        def share(words: np.ndarray) -> float:
            words = words[words >= NO_WORD]
            return float(np.isin(self._row[words], near).mean()) if len(words) else 0.0

        return share

    def _named(self, top: np.ndarray, near: np.ndarray, product: dict[int, float]) -> tuple[str, ...]:
        counts = Counter(w for w in top.tolist() if w >= 0 and self._row[w] in near)
        named: list[str] = []
        for word in sorted(counts, key=lambda w: (-counts[w] * product[self._row[w]], w)):
            text = self._texts[word]
            if not any(_same_stem(text, other) for other in named):
                named.append(text)
        return tuple(named)


def _same_stem(a: str, b: str) -> bool:
    """Forms of one word, as far as spelling tells: what is left of the shorter one's end is two letters at most."""
    shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return shared >= max(3, min(len(a), len(b)) - 2)


def _similar(form, count, pool_form, pool_count) -> tuple[np.ndarray, np.ndarray]:
    """For each word (first, size) of a run of the pool: words of its form of the nearest frequencies; all where a form is rare."""
    low, size = np.zeros(len(form), np.int64), np.full(len(form), len(pool_form), np.int64)
    for value in np.unique(form):
        a, b = np.searchsorted(pool_form, (value, value + 1))
        if b - a >= _SIMILAR // 2:
            mine = np.flatnonzero(form == value)
            left, right = (np.searchsorted(pool_count[a:b], count[mine], side=side) for side in ("left", "right"))
            low[mine] = a + np.clip((left + right - _SIMILAR) // 2, 0, max(0, b - a - _SIMILAR))
            size[mine] = min(_SIMILAR, b - a)
    return low, size
