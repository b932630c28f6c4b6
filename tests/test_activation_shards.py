"""Every row once an epoch, in an order that seed and epoch decide, from memory and from disk alike."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_explore.activations.activation_shards import MemoryActivations, ShardedActivations, ShardWriter
from sae_explore.errors import InputError, ModelError


def numbered(n: int, d: int = 3) -> torch.Tensor:
    """Rows that carry their number: exact in fp16."""
    return torch.arange(n, dtype=torch.float32)[:, None].expand(n, d).clone()


def shards_of(folder, n: int, shard_rows: int, buffer_rows: int = 1 << 20) -> ShardedActivations:
    writer = ShardWriter(folder, 3, shard_rows)
    for part in numbered(n).split(7):
        writer.add(part)
    writer.finish()
    return ShardedActivations(folder, buffer_rows)


def order_of(batches) -> list[list[int]]:
    return [[int(row[0]) for row in batch] for batch in batches]


@pytest.fixture(params=["memory", "one buffer", "many buffers"])
def data(request, tmp_path):
    if request.param == "memory":
        return MemoryActivations(numbered(100))
    return shards_of(tmp_path, 100, 16, 1 << 20 if request.param == "one buffer" else 32)


def test_shards_hold_the_rows_in_order(tmp_path):
    found = shards_of(tmp_path, 50, 16)
    assert (found.tokens, found.d_in, found.sizes) == (50, 3, [16, 16, 16, 2])
    rows = np.concatenate([np.load(tmp_path / f"shard-{i:05d}.npy") for i in range(4)])
    assert rows.dtype == np.float16
    assert np.array_equal(rows[:, 0], np.arange(50))


def test_an_epoch_gives_every_row_once_in_whole_batches(data):
    batches = order_of(data.batches(0, 8, seed=3))
    assert [len(b) for b in batches] == [8] * 12
    rows = [row for batch in batches for row in batch]
    assert len(set(rows)) == 96
    assert rows != sorted(rows)


def test_the_order_depends_on_seed_and_epoch_only(data):
    assert order_of(data.batches(1, 8, seed=3)) == order_of(data.batches(1, 8, seed=3))
    assert order_of(data.batches(1, 8, seed=3)) != order_of(data.batches(2, 8, seed=3))
    assert order_of(data.batches(1, 8, seed=3)) != order_of(data.batches(1, 8, seed=4))


@given(
    n=st.integers(20, 90), shard_rows=st.sampled_from([8, 10, 16]), buffer=st.sampled_from([8, 20, 40]), batch=st.sampled_from([4, 5, 8])
)
def test_skipping_leaves_out_exactly_the_first_batches(tmp_path_factory, n, shard_rows, buffer, batch):
    """Also where whole buffers are skipped unread, and where a rest is carried from buffer to buffer."""
    shards = shards_of(tmp_path_factory.mktemp("shards"), n, shard_rows, buffer)
    whole = order_of(shards.batches(0, batch, seed=1))
    assert len(whole) == n // batch
    for skip in range(len(whole) + 1):
        assert order_of(shards.batches(0, batch, 1, skip)) == whole[skip:]


def test_skipping_in_memory():
    data = MemoryActivations(numbered(50))
    assert order_of(data.batches(0, 8, 1, 3)) == order_of(data.batches(0, 8, 1))[3:]


def test_a_sample_is_of_different_rows_from_all_over(data):
    sample = data.sample(60, seed=0)[:, 0].tolist()
    assert len(set(sample)) == 60
    assert sample == data.sample(60, seed=0)[:, 0].tolist()
    assert sample != sorted(sample)
    assert min(sample) < 20
    assert max(sample) >= 80
    assert sorted(data.sample(1_000, seed=0)[:, 0].tolist()) == list(range(100))


def test_every_row_is_as_likely_in_a_sample_whatever_its_shard(tmp_path):
    """The last shard holds 4 of 100 rows and must not crowd a sample of a tenth."""
    data = shards_of(tmp_path, 100, 32)
    assert data.sizes == [32, 32, 32, 4]
    from_last = sum(int((data.sample(10, seed)[:, 0] >= 96).sum()) for seed in range(300))
    assert 60 < from_last < 180  # 120 expected; a share of each shard would give 750


def test_rows_beyond_fp16_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"1e\+05 do not fit into fp16"):
        ShardWriter(tmp_path, 3).add(torch.full((2, 3), 1e5))


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(InputError, match="no tokens to train on"):
        ShardWriter(tmp_path, 3).finish()
