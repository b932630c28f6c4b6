"""Topics in a planted corpus: documents count, not examples; neighbours and words of every text do not."""

from itertools import product

import numpy as np
import pytest

from sae_explore.features.topic import Surroundings, Topic, _tail
from sae_explore.features.words import AROUND, Words

DOCUMENTS, LENGTH, PEAK = 400, 80, 40
TEXTS = ["court", "judge", "jury", "the", *(f"filler{i}" for i in range(6_000))]
COURT, JUDGE, JURY, THE = range(4)


def corpus(planted: dict[int, dict[int, int]]) -> Surroundings:
    """Fillers at random; planted[document] = {position: word}."""
    rng = np.random.default_rng(0)
    of_token = rng.integers(4, len(TEXTS), DOCUMENTS * LENGTH).astype(np.int32)
    of_token[::3] = THE
    for document, words in planted.items():
        for position, word in words.items():
            of_token[document * LENGTH + position] = word
    offsets = np.arange(DOCUMENTS + 1) * LENGTH
    coverage = np.zeros(len(TEXTS))
    for word in np.unique(of_token):
        seen = np.zeros(len(of_token), bool)
        for t in np.flatnonzero(of_token == word):
            a = t // LENGTH * LENGTH
            seen[max(a, t - AROUND) : min(a + LENGTH, t + AROUND + 1)] = True
        coverage[word] = seen.mean()
    count = np.bincount(of_token, minlength=len(TEXTS))
    return Surroundings(Words(of_token, TEXTS, count, coverage, np.zeros((0, 12), np.int32), np.zeros(0, np.uint8)), offsets)


def peaks(documents) -> np.ndarray:
    return np.asarray(list(documents)) * LENGTH + PEAK


def test_words_that_stand_around_the_peaks_of_many_documents_make_a_topic():
    planted = {d: {PEAK - 8: COURT, PEAK + 9: JUDGE} if d % 2 else {PEAK + 20: JUDGE} for d in range(9)}
    found = corpus(planted).topic(peaks(range(10)), peaks([1, 2, 350, 360]))
    assert found == Topic(0.9, ("judge", "court"), 10, 0.5)


def test_one_document_makes_no_topic():
    """The same twenty peaks and words, where the documents end elsewhere."""
    planted = {d: {PEAK - 8: COURT, PEAK + 9: JUDGE} for d in range(20)}
    many = corpus(planted)
    assert many.topic(peaks(range(20)), peaks([])).score == 1
    one = Surroundings(many._words, np.r_[0, np.arange(20, DOCUMENTS + 1) * LENGTH])  # the first twenty are one document
    assert one.topic(peaks(range(20)), peaks([])) == Topic(documents=1)
    few = Surroundings(many._words, np.r_[0, 5, 10, 15, 20, np.arange(21, DOCUMENTS + 1)] * LENGTH)  # four documents
    assert few.topic(peaks(range(20)), peaks([])) == Topic(documents=4)


@pytest.mark.parametrize(
    "planted",
    [
        {PEAK - 1: COURT, PEAK + 2: JUDGE},  # neighbours
        {PEAK - AROUND - 1: COURT, PEAK + AROUND + 1: JUDGE},  # too far away
        {PEAK - 9: THE, PEAK + 12: THE},  # a word of every text
        {PEAK - 8: COURT},  # one word alone
    ],
    ids=["neighbours", "far", "common", "alone"],
)
def test_what_is_no_topic(planted):
    assert corpus(dict.fromkeys(range(12), planted)).topic(peaks(range(12)), peaks([])) == Topic(documents=12)


def test_random_texts_have_no_topic():
    around, rng = corpus({}), np.random.default_rng(1)
    found = [around.topic(peaks(rng.choice(DOCUMENTS, 20, replace=False)), peaks([])) for _ in range(50)]
    assert all(t == Topic(documents=20) for t in found)


def test_words_that_are_as_frequent_elsewhere_make_no_topic():
    """Each word is in one of five surroundings everywhere: in a fifth of these, too."""
    planted = {d: {PEAK - 8: (COURT, JUDGE, JURY, 10, 11)[d % 5]} for d in range(DOCUMENTS)}
    assert corpus(planted).topic(peaks(range(20)), peaks([])).words == ()


def test_the_binomial_tail():
    assert _tail(2, 3, 0.5) == pytest.approx(0.5)
    for k, n, p in ((3, 8, 0.01), (4, 9, 0.2), (8, 8, 0.3), (0, 5, 0.1)):  # every outcome of n tries
        outcomes = [sum(tries) for tries in product((0, 1), repeat=n)]
        assert _tail(k, n, p) == pytest.approx(sum(p**hits * (1 - p) ** (n - hits) for hits in outcomes if hits >= k))
