"""Whether words are alike, on planted rows: what chance, form and frequency give must not count."""

import numpy as np
import pytest

from sae_explore.features.meaning import DRAWS, NEAR, Meaning, WordSpace
from sae_explore.features.words import NO_WORD, Words

N, D = 600, 32
NONE = NO_WORD - 1
ANGER = range(100, 107)  # numbers of words that are alike
COMMON = range(100)  # the most frequent ones, whose rows share a direction
CAPITAL = range(300, 400)  # written with a capital, and their rows share another one
LONG = 599  # of two tokens


def letters(number: int) -> str:
    return "".join(chr(ord("a") + int(digit)) for digit in f"{number:03d}")


@pytest.fixture(scope="module")
def space() -> WordSpace:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(N, D)).astype(np.float32)
    for group, size in ((ANGER, 2.0), (COMMON, 4.0), (CAPITAL, 6.0)):
        rows[list(group)] += size * rng.normal(size=D)
    spelling = np.full((N, 12), -1, np.int32)
    spelling[:, 0] = np.arange(N)
    spelling[LONG, 1] = 0
    count = np.sort(rng.integers(2, 30, N))[::-1].copy()
    count[list(COMMON)] = 1_000 - np.arange(len(COMMON))
    form = np.isin(np.arange(N), list(CAPITAL)).astype(np.uint8) * 2 + 1
    words = Words(np.zeros(0, np.int32), [letters(i) for i in range(N)], count, np.zeros(N), spelling, form)
    return WordSpace(words, np.arange(N), lambda ids: rows[ids].copy())


def alike(space, top, weaker=()) -> Meaning:
    return space.alike(np.array([list(top)]), np.array([[*weaker, NONE]]))[0]


def test_words_that_are_alike_are_found_and_named(space):
    found = alike(space, [*ANGER, ANGER[0]], [ANGER[1], ANGER[2], 500, NO_WORD])
    assert found.score == 1
    assert found.top == 1
    assert found.weaker == 0.5
    assert set(found.words) <= {letters(i) for i in ANGER}
    assert found.words[0] == letters(ANGER[0])  # twice


def test_peaks_that_are_no_word_or_lie_apart_are_not_near(space):
    found = alike(space, [*ANGER, NO_WORD, 250, NONE])
    assert found.top == pytest.approx(len(ANGER) / (len(ANGER) + 2))
    assert alike(space, ANGER).weaker == 0  # there are no weaker examples


@pytest.mark.parametrize("group", [range(110, 300), range(50), CAPITAL], ids=["any", "frequent", "capitals"])
def test_words_drawn_at_random_are_not_alike(space, group):
    """Of the same frequency or form they have a mean cosine that differs from other words'; the score compares like with like."""
    rng = np.random.default_rng(1)
    members = np.setdiff1d(list(group), list(ANGER))
    found = space.alike(np.array([rng.choice(members, 8, replace=False) for _ in range(120)]), np.full((120, 1), NONE))
    scores = np.array([m.score for m in found])
    assert 0.3 < scores.mean() < 0.7
    assert (scores >= 0.98).mean() <= 0.1
    assert np.mean([m.top for m in found]) < 2.5 * (1 - NEAR)


def test_the_score_is_the_rank_among_sets_drawn_in_place_of_the_words(space):
    """Worked through with the mean of all pairs of each set."""
    words = [410, 420, 430, 440]
    at = space._row[words]
    rng = np.random.default_rng((0, 0))
    drawn = space._low[at] + (rng.random((DRAWS, 4)) * space._size[at]).astype(int)

    def mean(rows) -> float:
        pairs = [(i, j) for i in range(4) for j in range(i) if rows[i] is not rows[j]]
        return float(np.mean([rows[i] @ rows[j] for i, j in pairs]))

    own = mean([space._vectors[i] for i in at])
    chance = [mean([space._pool[i] for i in row]) for row in drawn if len(set(row)) == 4]
    assert alike(space, words).score == pytest.approx(np.mean(np.array(chance) < own), abs=0.03)


def test_fewer_than_three_words_and_words_of_several_tokens_have_no_meaning(space):
    assert alike(space, [ANGER[0], ANGER[1]] * 5) == Meaning()
    assert alike(space, [ANGER[0], ANGER[1], LONG]) == Meaning()
    assert alike(space, [NONE] * 4) == Meaning()


def test_forms_of_one_word_are_named_once():
    rng = np.random.default_rng(2)
    texts = ["forget", "forgot", "forgotten", "ignore", "ignored", "miss", *(f"{letters(i)}xyz" for i in range(200))]
    rows = rng.normal(size=(len(texts), D)).astype(np.float32)
    rows[:6] += 3 * rng.normal(size=D)
    spelling = np.full((len(texts), 12), -1, np.int32)
    spelling[:, 0] = np.arange(len(texts))
    words = Words(np.zeros(0, np.int32), texts, np.full(len(texts), 5), np.zeros(len(texts)), spelling, np.ones(len(texts), np.uint8))
    found = WordSpace(words, np.arange(6), lambda ids: rows[ids].copy()).alike(np.array([[0, 0, 0, 1, 2, 3, 3, 4, 5]]), np.array([[NONE]]))
    assert sorted(found[0].words) == ["forget", "ignore", "miss"]


def test_nothing_to_compare():
    none = Words(np.zeros(0, np.int32), [], np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 12), np.int32), np.zeros(0, np.uint8))
    assert WordSpace(none, np.zeros(0, np.int64), lambda ids: np.zeros((len(ids), D), np.float32)).alike(
        np.full((2, 4), NO_WORD), np.full((2, 2), NONE)
    ) == [Meaning(), Meaning()]
