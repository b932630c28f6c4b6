"""Cleaning, shortening and sampling of a stream of texts, in one pass."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeVar

from sae_explore.texts.text_files import TextRow

USABLE = "usable"
T = TypeVar("T")


class Sieve:
    """Lets through what is usable and no copy of anything that it has seen before."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def usable(self, rows: Iterable[TextRow], chars: int, counts: Counter[str]) -> Iterator[TextRow]:
        """Rows with their texts shortened to `chars` characters; `counts` gets how many were usable, and what became of the others."""
        for row in rows:
            if row.text is None or not row.text.strip():
                counts["empty, left out"] += 1
                continue
            text = shorten(row.text, chars)
            try:
                digest = hashlib.sha256(text.encode("utf-8")).digest()[:16]
            except UnicodeEncodeError:  # half a surrogate pair, as JSON can write it
                digest = b""
            if not digest or "\0" in text:
                counts["with a NUL or a broken character, left out"] += 1
            elif digest in self._seen:
                counts["equal to an earlier text, left out"] += 1
            else:
                self._seen.add(digest)
                counts[USABLE] += 1
                if len(text) < len(row.text):
                    counts[f"shortened to {chars:,} characters"] += 1
                yield row._replace(text=text)


def sample(items: Iterable[T], n: int | None, rng: random.Random) -> Iterator[T]:
    """A uniform sample of at most `n` out of a stream of unknown length, in its order (reservoir sampling); all of it for None."""
    if n is None:
        yield from items
        return
    kept: list[tuple[int, T]] = []
    for index, item in enumerate(items):
        if index < n:
            kept.append((index, item))
        elif (place := rng.randrange(index + 1)) < n:
            kept[place] = (index, item)
    yield from (item for _, item in sorted(kept, key=lambda pair: pair[0]))


def shorten(text: str, chars: int) -> str:
    """The beginning of a text, at most `chars` characters, up to the end of a paragraph, sentence or word in its second half."""
    if len(text) <= chars:
        return text
    head = text[:chars]
    for mark, keep in (("\n\n", 0), (". ", 1), (" ", 0)):
        if (end := head.rfind(mark)) > chars // 2:
            return head[: end + keep]
    return head
