"""How documents are cut into windows of the model's context, for the store and for custom text alike.

A text longer than a window is read in windows that overlap by half; each token is taken from the window that gives it more
left context, which is the earliest one that covers it. The same rule everywhere is what makes a stored document, pasted
into the text box, give its stored values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from sae_explore.errors import InputError


class Window(NamedTuple):
    """Tokens start..stop of a document go through the model; the answers for keep..stop are used."""

    document: int
    start: int
    stop: int
    keep: int

    @property
    def length(self) -> int:
        return self.stop - self.start


def windows_of(n_tokens: int, capacity: int, *, document: int = 0, overlap: bool = True) -> list[Window]:
    """Cut n_tokens into windows of at most `capacity` tokens (the context less a BOS, if one is put in front)."""
    if capacity < 1:
        raise InputError(f"the context leaves room for {capacity} tokens of text in a window; make it longer")
    if n_tokens <= 0:
        return []
    stride = max(1, capacity // 2) if overlap else capacity
    found = [Window(document, 0, min(capacity, n_tokens), 0)]
    while found[-1].stop < n_tokens:
        previous = found[-1]
        stop = min(previous.stop + stride, n_tokens)
        start = max(0, stop - capacity) if overlap else previous.stop
        found.append(Window(document, start, stop, previous.stop))
    return found


def length_batches(windows: Sequence[Window], max_rows: int, max_tokens: int) -> Iterator[list[Window]]:
    """Group windows of like length, longest first, so that little is spent on padding (padding is never counted).

    At most `max_rows` windows and about `max_tokens` padded tokens a batch.
    """
    batch: list[Window] = []
    for window in sorted(windows, key=lambda w: (-w.length, w.document, w.start)):
        if batch and (len(batch) == max_rows or (len(batch) + 1) * batch[0].length > max_tokens):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def blocks_of_documents(lengths: Iterable[int], max_tokens: int) -> Iterator[tuple[int, int]]:
    """Consecutive documents first..last (exclusive) of about `max_tokens` tokens together: the unit of bounded memory."""
    first = last = total = 0
    for last, length in enumerate(lengths, start=1):
        if total and total + length > max_tokens:
            yield first, last - 1
            first, total = last - 1, 0
        total += length
    if last:
        yield first, last
