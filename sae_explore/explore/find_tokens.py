"""Vocabulary entries by what a person types: upper and lower case are one, and so are a token with a leading space and one without."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sae_explore.models.tokens import Vocabulary

_DRAWN = str.maketrans({"↵": "\n", "␍": "\r", "⇥": "\t"})  # as `spans.plain` draws them


class TokenTexts:
    """All entries of a vocabulary, ready to be looked up: one Arrow array, about as large as the vocabulary's text. Shared."""

    def __init__(self, vocabulary: Vocabulary):
        texts = [_folded(vocabulary.text_of(i)) for i in range(len(vocabulary))]
        self._texts = pa.array(texts, pa.large_string())
        self._listed = (np.diff(vocabulary.offsets) > 0) & ~np.asarray(vocabulary.special)

    def matching(self, typed: str) -> np.ndarray:
        """Ids (n,) int64 of the entries that are what was typed, or what was copied from a list in which spaces and line breaks are drawn;
        special tokens and ids without a token never."""
        found = np.zeros(len(self._listed), bool)
        for text in _meant(typed):
            found |= pc.equal(self._texts, pa.scalar(text, pa.large_string())).to_numpy(zero_copy_only=False)
        return np.flatnonzero(found & self._listed)

    def holding(self, typed: str, counts: np.ndarray, *, most: int = 8) -> np.ndarray:
        """Ids of entries that hold what was typed, or stand at its beginning, for a person who typed what is no entry: the commonest in the
        corpus by `counts` (vocab,), those that do not occur left out."""
        meant = [text for text in _meant(typed) if text.strip()]
        if not meant:
            return np.zeros(0, np.int64)
        found = pc.match_substring(self._texts, meant[0]).to_numpy(zero_copy_only=False)
        if not (found & self._listed & (counts > 0)).any():
            beginnings = [meant[0][:n] for n in range(len(meant[0]) - 1, 1, -1)]
            found = pc.is_in(self._texts, pa.array(beginnings, pa.large_string())).to_numpy(zero_copy_only=False)
        ids = np.flatnonzero(found & self._listed & (counts > 0))
        return ids[np.argsort(-counts[ids], kind="stable")][:most]


def _folded(text: str) -> str:
    return text.removeprefix(" ").casefold()


def _meant(typed: str) -> list[str]:
    """The texts that the typed one may stand for, as they are kept; none for nothing, or for what is no text."""
    try:
        typed.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return []
    if not typed:
        return []
    drawn = typed.translate(_DRAWN)
    spaces = " " * len(drawn) if set(drawn) == {"·"} else " " + drawn[1:] if drawn.startswith("·") else drawn
    return list(dict.fromkeys(map(_folded, (typed, drawn, spaces))))
