"""The embedded corpus: complete, balanced, without repetition."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from sae_explore.texts.dataset import load_texts
from sae_explore.types import Document

CATEGORIES = ["arts", "business", "education", "emotions", "food", "history"]
CATEGORIES += ["medicine", "nature", "programming", "science", "sports", "technology"]


def embedded() -> list[Document]:
    return list(load_texts(["embedded"]).documents)


def test_the_embedded_corpus_is_complete():
    loaded = load_texts(["embedded"])
    assert loaded.notes == ()  # no copies, nothing empty
    documents = loaded.documents
    assert len(documents) >= 1000
    assert sorted({d.category for d in documents}) == CATEGORIES
    assert len({d.id for d in documents}) == len(documents)
    for category in CATEGORIES:
        mine = [d for d in documents if d.category == category]
        assert [d.id for d in mine] == [f"embedded/{category}/{i:03d}" for i in range(len(mine))]
        assert sum(40 <= len(d.text.split()) <= 120 for d in mine) >= 50
        assert len({d.source for d in mine}) >= 20  # registers
        assert all(d.text == d.text.strip("\n") and "\n===" not in d.text for d in mine)
    (info,) = loaded.sources
    assert (info.spec, info.texts) == ("embedded", len(documents))
    assert len(info.sha256) == 64


def test_the_embedded_corpus_is_balanced():
    """As measured: 102 to 123 texts and 7,800 to 8,900 words in each category."""
    texts_of, words_of = Counter(), Counter()
    for document in embedded():
        texts_of[document.category] += 1
        words_of[document.category] += len(document.text.split())
    assert max(texts_of.values()) < 1.4 * min(texts_of.values())
    assert max(words_of.values()) < 1.3 * min(words_of.values())


def test_the_embedded_corpus_does_not_repeat_itself():
    """As measured: 68 % of word pairs, 95 % of triples and 99.8 % of 5-grams occur once in a list; closest two texts 0.06."""
    words = [re.findall(r"\w+", d.text.lower()) for d in embedded()]
    grams = {n: [[tuple(w[i : i + n]) for i in range(len(w) - n + 1)] for w in words] for n in (2, 3, 5)}
    for n, least in ((2, 0.63), (3, 0.92), (5, 0.99)):
        everything = [gram for text in grams[n] for gram in text]
        assert len(set(everything)) / len(everything) > least
    sets = [set(text) for text in grams[5]]
    holders, shared = defaultdict(list), Counter()
    for index, text in enumerate(sets):
        for gram in text:
            for other in holders[gram]:
                shared[other, index] += 1
            holders[gram].append(index)
    assert all(count / (len(sets[a]) + len(sets[b]) - count) < 0.3 for (a, b), count in shared.items())
    assert max(count / (len(sets[a]) + len(sets[b]) - count) for (a, b), count in shared.items()) < 0.15


def test_samples_of_the_embedded_corpus():
    loaded = load_texts(["embedded"], max_texts=240, seed=5)
    assert len(loaded.documents) == 240
    assert len({d.category for d in loaded.documents}) == 12
    order = [d.id for d in embedded()]
    assert [d.id for d in loaded.documents] == sorted((d.id for d in loaded.documents), key=order.index)
