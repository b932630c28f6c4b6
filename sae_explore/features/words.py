"""A corpus of tokens as whole words: what stands at a token, how often each word occurs, and how likely a stretch of text holds it.

A word is a run of tokens that hold letters only; white space, any other token and the edge of a document end it, and a character
of a script that is written without spaces is a word of its own. Case is put aside: words that differ in it are one.
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

import numpy as np

from sae_explore.models.tokens import Vocabulary

AROUND = 32  # tokens on each side of a token that make its surroundings
NO_WORD = -1
_MOST_TOKENS = 12  # of a word; longer runs of letters are none
_LETTERS, _SPACE_BEFORE, _ALONE = 1, 2, 4  # what is known about a vocabulary entry


class Words(NamedTuple):
    """The distinct words of a corpus, numbered from 0, and where they stand."""

    of_token: np.ndarray  # (tokens,) int32: the number of the word that the token is part of, NO_WORD for signs, digits, white space
    texts: list[str]  # casefolded
    count: np.ndarray  # (words,) int64: occurrences
    coverage: np.ndarray  # (words,) float64: share of all tokens that have the word within AROUND tokens, in the same document
    spelling: np.ndarray  # (words, _MOST_TOKENS) int32: token ids of the commonest spelling, -1 behind them
    form: np.ndarray  # (words,) uint8: bit 0 space in front, bit 1 capital in front, in the commonest spelling


def read_words(ids: np.ndarray, vocabulary: Vocabulary, doc_offsets: np.ndarray) -> Words:
    """Words of a corpus of token ids (tokens,), documents one after the other. Vectorised over tokens; Python only sees distinct ones."""
    ids = np.asarray(ids, np.int64)
    kinds = _kinds(ids, vocabulary)[ids]
    letters = (kinds & _LETTERS) > 0
    begins = np.zeros(len(ids) + 1, bool)  # a run of letters begins here
    begins[doc_offsets] = True
    begins[:-1] |= (kinds & (_SPACE_BEFORE | _ALONE)) > 0
    begins[1:-1] |= ~letters[:-1] | ((kinds[:-1] & _ALONE) > 0)
    start = np.flatnonzero(letters & begins[:-1])
    edge = np.flatnonzero(begins | np.r_[~letters, True])
    stop = edge[np.searchsorted(edge, start, side="right")]
    short = stop - start <= _MOST_TOKENS
    start, stop = start[short], stop[short]
    length = stop - start
    spelled = np.zeros(len(start), np.int64)  # number of the distinct spelling: that of the tokens so far, then of one more
    for k in range(int(length.max(initial=0))):
        longer = length > k
        spelled[longer] = np.unique(spelled[longer] * len(vocabulary) + ids[start[longer] + k], return_inverse=True)[1]
        spelled[longer] += 1 + spelled[~longer].max(initial=0)
    spelled = np.unique(spelled, return_inverse=True)[1] if len(spelled) else spelled
    return _distinct(ids, vocabulary, doc_offsets, start, length, spelled)


def _distinct(ids, vocabulary, doc_offsets, start, length, spelled) -> Words:
    """Spellings that differ in case and leading space become one word, under the spelling that is commonest."""
    n = int(spelled.max(initial=-1)) + 1
    first = np.zeros(n, np.int64)
    first[spelled[::-1]] = np.arange(len(spelled))[::-1]
    counts = np.bincount(spelled, minlength=n)
    texts: list[str] = []
    number: dict[str, int] = {}
    word_of_spelling = np.full(n, NO_WORD, np.int64)
    best = []  # spelling of each word
    forms = []
    for s in np.argsort(-counts, kind="stable").tolist():
        at = int(start[first[s]])
        raw = b"".join(vocabulary.bytes_of(int(i)) for i in ids[at : at + int(length[first[s]])])
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            continue
        core = text.strip()
        if not _is_word(core):  # bytes that looked like a part of a letter
            continue
        word = core.casefold()
        if word not in number:
            number[word] = len(texts)
            texts.append(word)
            best.append(s)
            forms.append(int(text[:1].isspace()) | int(core[:1].isupper()) << 1)
        word_of_spelling[s] = number[word]
    spelling = np.full((len(texts), _MOST_TOKENS), -1, np.int32)
    for w, s in enumerate(best):
        at, size = int(start[first[s]]), int(length[first[s]])
        spelling[w, :size] = ids[at : at + size]
    occurring = word_of_spelling[spelled]
    of_token = np.full(len(ids), NO_WORD, np.int32)
    tokens = np.repeat(start - np.r_[0, length.cumsum()[:-1]], length) + np.arange(int(length.sum()))
    of_token[tokens] = np.repeat(occurring, length)
    count = np.bincount(occurring[occurring >= 0], minlength=len(texts))
    return Words(of_token, texts, count, _coverage(of_token, doc_offsets, len(texts)), spelling, np.asarray(forms, np.uint8))


def _coverage(of_token: np.ndarray, doc_offsets: np.ndarray, n_words: int) -> np.ndarray:
    """Share of all tokens from which a word can be seen: the union of the surroundings of its tokens, cut at its documents' edges."""
    at = np.flatnonzero(of_token >= 0)
    at = at[np.argsort(of_token[at], kind="stable")]  # word by word, in order of position
    document = np.searchsorted(doc_offsets, at, side="right") - 1
    low = np.maximum(at - AROUND, doc_offsets[document])
    high = np.minimum(at + AROUND + 1, doc_offsets[document + 1])
    word = of_token[at]
    same = np.r_[False, word[1:] == word[:-1]]
    low = np.where(same, np.maximum(low, np.r_[0, high[:-1]]), low)  # ends only rise within a word: count from the one before
    return np.bincount(word, weights=high - low, minlength=n_words) / max(len(of_token), 1)


def _kinds(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """(vocab,) uint8: what each token id of the corpus is."""
    found = np.zeros(len(vocabulary), np.uint8)
    for i in np.flatnonzero(np.bincount(ids, minlength=len(vocabulary))).tolist():
        if vocabulary.special[i]:
            continue
        raw = vocabulary.bytes_of(i)
        text = raw.decode(errors="replace")
        core = text.lstrip()
        if core and all(c == "\ufffd" or c.isalpha() or unicodedata.category(c).startswith("M") for c in core):
            found[i] = _LETTERS | (_SPACE_BEFORE if core != text else 0) | (_ALONE if _unspaced(core[0]) else 0)
    return found


def _is_word(text: str) -> bool:
    """Letters, and marks that belong to them."""
    return any(map(str.isalpha, text)) and all(c.isalpha() or unicodedata.category(c).startswith("M") for c in text)


def _unspaced(character: str) -> bool:
    """Chinese characters, kana: no spaces between words."""
    return 0x2E80 <= ord(character) < 0xAC00 or 0xF900 <= ord(character) < 0xFB00 or ord(character) >= 0x20000
