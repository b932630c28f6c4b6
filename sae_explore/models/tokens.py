"""Tokenizers as bytes: what every vocabulary entry holds, and texts cut into pieces that rebuild them exactly.

Byte-level BPE pieces can be parts of a character: the token that completes a character carries it, the ones before it have
an empty text, and `bytes` says what each token holds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sae_explore.errors import InputError
from sae_explore.types import TokenizedText

MAX_TEXT_TOKENS = 4_096  # of one custom text: about 3,000 words, a few seconds


class Vocabulary(NamedTuple):
    """The bytes of every token id, in one blob, without the tokenizer."""

    blob: np.ndarray  # uint8, all tokens' bytes one after the other
    offsets: np.ndarray  # (vocab + 1,) int64
    special: np.ndarray  # (vocab,) bool

    def bytes_of(self, token_id: int) -> bytes:
        return self.blob[self.offsets[token_id] : self.offsets[token_id + 1]].tobytes()

    def text_of(self, token_id: int) -> str:
        """For lists of single tokens: the text, or the bytes in hex where they are no whole character."""
        return readable(self.bytes_of(token_id))

    def __len__(self) -> int:  # the number of token ids, not of fields
        return len(self.special)


def readable(data: bytes) -> str:
    """Bytes as text where they are whole characters, else as <0xE2><0x80>."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in data)


@lru_cache(maxsize=1)
def _byte_of_char() -> dict[str, int]:
    """The inverse of byte-level BPE's printable alphabet (GPT-2): printable bytes stand for themselves, the rest follow 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def vocabulary_of(tokenizer, size: int) -> Vocabulary:
    """Read the bytes of every id below `size` (the model's vocabulary; ids without a token hold nothing)."""
    added = {int(i): str(token) for i, token in tokenizer.added_tokens_decoder.items()}
    special = np.zeros(size, bool)
    for i in {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}:
        if i < size:
            special[i] = True
    byte_level = "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder)
    byte_of, pieces = _byte_of_char(), []
    for i, piece in enumerate(tokenizer.convert_ids_to_tokens(range(min(size, len(tokenizer))))):
        if i in added:
            pieces.append(added[i].encode())
        elif piece is None:
            pieces.append(b"")
        elif byte_level:
            pieces.append(bytes(byte_of[c] for c in piece) if all(c in byte_of for c in piece) else piece.encode())
        elif len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            pieces.append(bytes([int(piece[3:5], 16)]))
        else:
            pieces.append(piece.replace("▁", " ").encode())
    pieces += [b""] * (size - len(pieces))
    lengths = np.fromiter((len(p) for p in pieces), np.int64, size)
    return Vocabulary(np.frombuffer(b"".join(pieces), np.uint8), np.concatenate([[0], lengths.cumsum()]), special)


def check_text(text: str) -> None:
    """Refuse what no tokenizer can read: lone surrogates and NUL-filled binary data."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text holds a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}), which is no character; remove it"
        ) from None
    if text.count("\0") > max(8, len(text) // 100):
        raise InputError("the text looks like binary data (many NUL characters); paste plain text")


def tokenize(tokenizer, vocabulary: Vocabulary, text: str) -> TokenizedText:
    """Tokens of a text, without added special tokens; `"".join(result.texts) == text`."""
    check_text(text)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.asarray(encoded["input_ids"], np.int32)
    if len(ids) and int(ids.max()) >= len(vocabulary):
        start, stop = encoded["offset_mapping"][int(ids.argmax())]
        raise InputError(
            f"the tokenizer makes token {ids.max()} of {text[start:stop][:40]!r}, but the model knows {len(vocabulary):,} tokens only; "
            "the two do not belong together"
        )
    pieces = tuple(vocabulary.bytes_of(i) for i in ids)
    ends = _ends_by_bytes(text, pieces)
    if ends is None:
        ends = _ends_by_offsets(text, encoded["offset_mapping"])
    starts = np.r_[0, ends[:-1]] if len(ends) else ends
    texts = tuple(text[a:b] for a, b in zip(starts, ends, strict=True))
    return TokenizedText(ids, texts, pieces, vocabulary.special[ids])


def char_ends(texts: tuple[str, ...]) -> np.ndarray:
    """Where each piece ends in the text, in characters: what the token table keeps."""
    return np.cumsum(np.fromiter((len(t) for t in texts), np.int64, len(texts)))


def _ends_by_bytes(text: str, pieces: tuple[bytes, ...]) -> np.ndarray | None:
    """Character at which each token ends, or None where the tokenizer did not keep the text's bytes."""
    if b"".join(pieces) != text.encode():
        return None
    byte_ends = np.cumsum(np.fromiter((len(p) for p in pieces), np.int64, len(pieces)))
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.searchsorted(np.cumsum(widths), byte_ends, side="right")


def _ends_by_offsets(text: str, offsets: list[tuple[int, int]]) -> np.ndarray:
    """The same from the tokenizer's offsets: text that no token claims goes with the next one, the rest with the last.

    A character that lies in the spans of several tokens is completed by the last of them.
    """
    if not offsets:
        return np.zeros(0, np.int64)
    starts, stops = np.asarray(offsets, np.int64).T
    claims = np.where(stops > starts, starts, len(text))
    next_claim = np.minimum.accumulate(np.r_[claims[1:], len(text)][::-1])[::-1]
    ends = np.maximum.accumulate(np.minimum(stops, next_claim))
    ends[-1] = len(text)
    return ends
