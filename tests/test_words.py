"""Words of a corpus of tokens against regular expressions and brute force."""

import re
from collections import Counter

import numpy as np
import pytest

from sae_explore.features.words import AROUND, NO_WORD, read_words
from sae_explore.models.tokens import Vocabulary


def vocabulary_from(pieces: list[str | bytes]) -> Vocabulary:
    data = [p if isinstance(p, bytes) else p.encode() for p in pieces]
    special = np.array([p == "<s>" for p in pieces])
    return Vocabulary(np.frombuffer(b"".join(data), np.uint8), np.concatenate([[0], np.cumsum([len(d) for d in data])]), special)


def read(*documents: list[str | bytes]):
    """Words of documents given as tokens."""
    pieces = list(dict.fromkeys(p for document in documents for p in document))
    ids = np.array([pieces.index(p) for document in documents for p in document])
    return read_words(ids, vocabulary_from(pieces), np.concatenate([[0], np.cumsum([len(d) for d in documents])]))


def at(words, token: int) -> str:
    number = int(words.of_token[token])
    return words.texts[number] if number != NO_WORD else ""


@pytest.fixture(scope="module")
def corpus(gpt2_model, corpus_texts):
    texts = [t for t in corpus_texts if "'" not in t][:40]
    ids = [gpt2_model.tokenize(t).ids for t in texts]
    offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids])])
    return texts, np.concatenate(ids), offsets, read_words(np.concatenate(ids), gpt2_model.vocabulary, offsets)


def test_words_are_the_runs_of_letters_in_the_texts(corpus):
    texts, _, _, words = corpus
    found = Counter({text: int(count) for text, count in zip(words.texts, words.count, strict=True)})
    runs = [w for text in texts for w in re.findall(r"[^\W\d_]+", text)]
    plain = re.compile(r"[a-zà-ÿ]{1,8}")  # longer ones may have more tokens than a word can; \w leaves out marks of other scripts
    short = Counter(w.casefold() for w in runs if plain.fullmatch(w.casefold()))
    assert Counter({w: n for w, n in found.items() if plain.fullmatch(w)}) == short
    assert len(short) > 300


def test_coverage_is_the_share_of_tokens_that_can_see_the_word(corpus):
    _, ids, offsets, words = corpus
    document = np.searchsorted(offsets, np.arange(len(ids)), side="right") - 1
    for word in (0, 3, 20, len(words.texts) // 2, len(words.texts) - 1):
        sees = 0
        for t in range(len(ids)):
            a, b = max(offsets[document[t]], t - AROUND), min(offsets[document[t] + 1], t + AROUND + 1)
            sees += bool((words.of_token[a:b] == word).any())
        assert words.coverage[word] == pytest.approx(sees / len(ids))


def test_a_word_is_all_of_its_tokens_and_case_is_put_aside():
    words = read([" An", "gry", " angry", " Angry", ",", "angry", " an", " gry"])
    assert [at(words, t) for t in range(8)] == ["angry", "angry", "angry", "angry", "", "angry", "an", "gry"]
    assert dict(zip(words.texts, words.count.tolist(), strict=True)) == {"angry": 4, "an": 1, "gry": 1}


def test_documents_signs_digits_and_special_tokens_end_a_word():
    words = read(["the", "cat"], ["s", "7", "x", "<s>", "y", "-", "z"])
    assert [at(words, t) for t in range(9)] == ["thecat", "thecat", "s", "", "x", "", "y", "", "z"]


def test_characters_in_pieces_are_put_together_and_unspaced_scripts_taken_apart():
    words = read([" caf", b"\xc3", b"\xa9", " x", "漢", "字"], [b"\xe2\x80"], [" हि", "ं", "दी"], [b"\xc2", b"\xa3"])
    assert [at(words, t) for t in range(12)] == ["café"] * 3 + ["x", "漢", "字", ""] + ["हिंदी"] * 3 + ["", ""]


def test_the_commonest_spelling_stands_for_the_word():
    words = read([" Paris", " Paris", " par", "is", "-", "river", "!"])
    assert words.form.tolist() == [0b11, 0b00]  # a space and a capital in front; neither
    assert (words.spelling >= 0).sum(1).tolist() == [1, 1]


def test_a_corpus_without_words():
    words = read(["7", "-"])
    assert words.texts == []
    assert words.of_token.tolist() == [NO_WORD, NO_WORD]
