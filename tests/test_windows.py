"""Windows against hand-worked examples and invariants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_explore.errors import InputError
from sae_explore.models.windows import Window, blocks_of_documents, length_batches, windows_of


@pytest.mark.parametrize(
    ("n", "capacity", "expected"),
    [
        (0, 8, []),
        (1, 8, [(0, 1, 0)]),
        (8, 8, [(0, 8, 0)]),
        (9, 8, [(0, 8, 0), (1, 9, 8)]),  # the last window reaches back as far as it can
        (12, 8, [(0, 8, 0), (4, 12, 8)]),
        (14, 8, [(0, 8, 0), (4, 12, 8), (6, 14, 12)]),
        (7, 5, [(0, 5, 0), (2, 7, 5)]),  # odd: the stride is 2
        (3, 1, [(0, 1, 0), (1, 2, 1), (2, 3, 2)]),
    ],
)
def test_windows_worked_by_hand(n, capacity, expected):
    assert [(w.start, w.stop, w.keep) for w in windows_of(n, capacity)] == expected


def test_windows_without_overlap_worked_by_hand():
    found = windows_of(10, 4, document=3, overlap=False)
    assert found == [Window(3, 0, 4, 0), Window(3, 4, 8, 4), Window(3, 8, 10, 8)]


@given(st.integers(0, 300), st.integers(1, 60), st.booleans())
def test_every_token_is_kept_once_by_the_earliest_window_that_covers_it(n, capacity, overlap):
    windows = windows_of(n, capacity, overlap=overlap)
    kept = [t for w in windows for t in range(w.keep, w.stop)]
    assert kept == list(range(n))
    for w in windows:
        assert w.start <= w.keep < w.stop
        assert w.length <= capacity
        for t in range(w.keep, w.stop):
            assert w == next(v for v in windows if v.start <= t < v.stop)


@given(st.integers(1, 300), st.integers(1, 60))
def test_left_context_is_half_a_window_or_the_whole_beginning(n, capacity):
    for w in windows_of(n, capacity):
        for t in range(w.keep, w.stop):
            assert w.start == 0 or t - w.start >= capacity // 2


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("capacity", [0, -3])
def test_a_window_without_room_is_refused(capacity, overlap):
    with pytest.raises(InputError, match="make it longer"):
        windows_of(5, capacity, overlap=overlap)


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 5), st.integers(1, 100))
def test_length_batches_hold_every_window_once_within_the_limits(lengths, max_rows, max_tokens):
    windows = [Window(i, 0, n, 0) for i, n in enumerate(lengths)]
    batches = list(length_batches(windows, max_rows, max_tokens))
    assert sorted(w for batch in batches for w in batch) == windows
    for batch in batches:
        assert 1 <= len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * max(w.length for w in batch) <= max_tokens
    assert [w.length for batch in batches for w in batch] == sorted(lengths, reverse=True)


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 100))
def test_blocks_cover_the_documents_in_order_within_the_limit(lengths, max_tokens):
    blocks = list(blocks_of_documents(lengths, max_tokens))
    assert [d for first, last in blocks for d in range(first, last)] == list(range(len(lengths)))
    for first, last in blocks:
        assert sum(lengths[first:last]) <= max_tokens or sum(1 for n in lengths[first:last] if n) == 1


def test_no_documents_make_no_blocks():
    assert list(blocks_of_documents([], 10)) == []
