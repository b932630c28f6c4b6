"""Residuals of documents, and what is left out of training: special tokens, first positions without a BOS, sinks."""

import numpy as np
import pytest
import torch

from sae_explore.activations import collect
from sae_explore.activations.activation_shards import ShardWriter
from sae_explore.activations.collect import collect_activations, ignored_rows, median_norm_of, residual_blocks, static_ignored
from sae_explore.errors import InputError
from sae_explore.models.model import LanguageModel
from sae_explore.models.windows import windows_of

CONTEXT = 16
SINK = 300  # the token id on which spikes are planted


@pytest.fixture
def ids_of():
    rng = np.random.default_rng(0)
    found = [rng.integers(301, 600, n).astype(np.int32) for n in (5, 40, 1, 16, 23, 0, 17)]
    found[1][[3, 20]] = SINK
    found[4][7] = SINK
    found[3][4] = 0  # <|endoftext|> in the middle of a text
    return found


@pytest.fixture
def spiked(monkeypatch):
    """Residuals 100 times as long at position 0 of every row and 30 times at every SINK token, as trained models have them."""
    own = LanguageModel.residual

    def residual(self, ids, *, autocast=None):
        out = own(self, ids, autocast=autocast).clone()
        out[:, 0] *= 100
        out[ids == SINK] *= 30
        return out

    monkeypatch.setattr(LanguageModel, "residual", residual)


def one_by_one(model, ids_of, *, bos, overlap):
    """(document, position) -> residual, each computed alone from the tokens that its window shows it."""
    found = {}
    for d, ids in enumerate(ids_of):
        for w in windows_of(len(ids), CONTEXT - bos, overlap=overlap):
            prompt = np.concatenate([[0] * bos, ids[w.start : w.stop]]).astype(np.int64)
            rows = model.residual(torch.from_numpy(prompt)[None])[0][bos:]
            found.update({(d, t): rows[t - w.start] for t in range(w.keep, w.stop)})
    return found


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("block_tokens", [10, 10_000])
def test_blocks_hold_every_tokens_residual_in_order(gpt2_model, ids_of, bos, overlap, block_tokens):
    expected = one_by_one(gpt2_model, ids_of, bos=bos, overlap=overlap)
    seen = []
    for first, last, rows in residual_blocks(
        gpt2_model, ids_of, context=CONTEXT, bos=bos, overlap=overlap, block_tokens=block_tokens, batch_rows=3
    ):
        keys = [(d, t) for d in range(first, last) for t in range(len(ids_of[d]))]
        torch.testing.assert_close(rows, torch.stack([expected[k] for k in keys]) if keys else rows, rtol=1e-5, atol=1e-5)
        seen += keys
    assert seen == sorted(expected)


def test_blocks_from_a_later_document_on(gpt2_model, ids_of):
    whole = {first: rows for first, _, rows in residual_blocks(gpt2_model, ids_of, context=CONTEXT, bos=True, block_tokens=10)}
    later = {
        first: rows for first, _, rows in residual_blocks(gpt2_model, ids_of, context=CONTEXT, bos=True, block_tokens=10, first_document=2)
    }
    assert min(later) == 2
    assert list(residual_blocks(gpt2_model, ids_of, context=CONTEXT, bos=True, first_document=len(ids_of))) == []
    for first, rows in later.items():
        if first in whole:
            torch.testing.assert_close(rows, whole[first])


def test_what_is_left_out_worked_by_hand():
    special = np.zeros(10, bool)
    special[9] = True
    ids_of = [np.array([1, 9, 2, 3, 4, 5, 6]), np.array([], int), np.array([9]), np.array([1, 2])]
    with_bos = [0, 1, 0, 0, 0, 0, 0, 1, 0, 0]
    assert static_ignored(ids_of, special, context=4, bos=True).astype(int).tolist() == with_bos
    # Without a BOS: the first position of each window that answers for it: of overlapping ones only the document's first.
    assert static_ignored(ids_of, special, context=4, bos=False).astype(int).tolist() == [1, 1, 0, 0, 0, 0, 0, 1, 1, 0]
    assert static_ignored(ids_of, special, context=4, bos=False, overlap=False).astype(int).tolist() == [1, 1, 0, 0, 1, 0, 0, 1, 1, 0]
    assert static_ignored([], special, context=4, bos=True).tolist() == []


def test_sinks_are_rows_longer_than_five_medians():
    rows = torch.tensor([[3.0, 4.0], [30.0, 40.0], [15.0, 20.0], [15.1, 20.0]])
    assert ignored_rows(rows, np.array([True, False, False, False]), median_norm=5.0).tolist() == [True, True, False, True]
    assert median_norm_of(rows, np.array([False, True, False, False])) == pytest.approx(25.0)
    assert median_norm_of(rows, np.ones(4, bool)) == 0


@pytest.mark.parametrize("bos", [False, True])
def test_planted_spikes_are_left_out_of_training(gpt2_model, ids_of, spiked, tmp_path, bos):
    data, info = collect_activations(gpt2_model, ids_of, tmp_path, context=CONTEXT, bos=bos, shard_rows=16)
    expected = one_by_one(gpt2_model, ids_of, bos=bos, overlap=False)
    kept = [
        row
        for (d, t), row in sorted(expected.items())
        if ids_of[d][t] not in (0, SINK) and (bos or t % CONTEXT)  # without a BOS the window's first position
    ]
    rows = torch.cat([torch.from_numpy(np.load(tmp_path / f"shard-{i:05d}.npy")) for i in range(len(data.sizes))]).float()
    torch.testing.assert_close(rows, torch.stack(kept), rtol=2e-3, atol=2e-3)
    assert info["sinks"] == 3  # planted, none of them on a first position
    assert info["tokens"] == data.tokens == len(kept)
    assert info["documents"] == len(ids_of)
    norms = torch.stack([row for (d, t), row in expected.items() if ids_of[d][t] != 0 and (bos or t % CONTEXT)]).norm(dim=-1)
    assert info["median_norm"] == pytest.approx(float(norms.median()), rel=0.2)
    assert float(rows.norm(dim=-1).max()) < 5 * info["median_norm"]


class Killed(Exception):
    pass


def kill_after(calls: int):
    count = iter(range(1, calls + 1))

    def progress(_tokens):
        if next(count) == calls:
            raise Killed

    return progress


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "state.json"}


KILLED = {"after the first block": 1, "after the third block": 3, "while merging": 99, "while clearing up": 99}  # by its n-th progress


@pytest.mark.parametrize("killed", KILLED)
def test_a_killed_collection_goes_on_and_ends_with_the_same_bytes(gpt2_model, ids_of, tmp_path, monkeypatch, killed):
    options = {"context": CONTEXT, "bos": True, "shard_rows": 12}
    _, info = collect_activations(gpt2_model, ids_of, tmp_path / "whole", **options)
    folder = tmp_path / "killed"
    write, finish, shards = ShardWriter._write, ShardWriter.finish, iter(range(99))

    def dying_write(self, size):
        if next(shards) == 2:
            raise Killed
        write(self, size)

    def finish_and_die(self):
        finish(self)
        raise Killed

    if killed == "while merging":
        monkeypatch.setattr(ShardWriter, "_write", dying_write)
    elif killed == "while clearing up":
        monkeypatch.setattr(ShardWriter, "finish", finish_and_die)
    with pytest.raises(Killed):
        collect_activations(gpt2_model, ids_of, folder, progress=kill_after(KILLED[killed]), **options)
    monkeypatch.undo()
    data, resumed = collect_activations(gpt2_model, ids_of, folder, **options)
    assert resumed == info
    assert data.tokens == info["tokens"]
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_finished_collection_is_not_made_again(gpt2_model, ids_of, tmp_path, monkeypatch):
    first = collect_activations(gpt2_model, ids_of, tmp_path, context=CONTEXT, bos=True)[1]
    monkeypatch.setattr(collect, "residual_blocks", lambda *_a, **_k: iter(()))
    again, info = collect_activations(gpt2_model, ids_of, tmp_path, context=CONTEXT, bos=True)
    assert info == first
    assert again.tokens == first["tokens"]


def test_enough_tokens_are_enough(gpt2_model, ids_of, tmp_path):
    data, info = collect_activations(gpt2_model, ids_of, tmp_path, context=CONTEXT, bos=True, max_tokens=20, shard_rows=20)
    assert 20 <= data.tokens < 100
    assert info["documents"] < len(ids_of)


def test_a_first_block_without_a_counted_token_does_not_decide_the_median(gpt2_model, tmp_path):
    """One token, left out as the first without a BOS; the sinks of the next block are still found."""
    ids_of = [np.array([400], np.int32), np.arange(310, 340, dtype=np.int32)]
    data, info = collect_activations(gpt2_model, ids_of, tmp_path, context=64, bos=False, shard_rows=16)
    assert info["median_norm"] > 0
    assert data.tokens == 29


def test_texts_without_a_token_to_train_on_are_refused(gpt2_model, tmp_path):
    for i, ids_of in enumerate(([], [np.zeros(3, np.int32)], [np.array([5], np.int32)])):
        with pytest.raises(InputError, match="no tokens to train on"):
            collect_activations(gpt2_model, ids_of, tmp_path / str(i), context=CONTEXT, bos=False)


def test_the_median_of_the_first_block_holds_for_all(gpt2_model, tmp_path, monkeypatch):
    """A whole block of rows ten times as long is all sinks: measured by its own median, it would hold none."""
    own = LanguageModel.residual
    monkeypatch.setattr(
        LanguageModel, "residual", lambda self, ids, **options: own(self, ids, **options) * (1 + 9 * (ids >= 400))[..., None]
    )
    ids_of = [np.arange(310, 325, dtype=np.int32), np.arange(410, 425, dtype=np.int32)]
    data, info = collect_activations(gpt2_model, ids_of, tmp_path, context=CONTEXT, bos=True, shard_rows=15)
    assert (data.tokens, info["sinks"]) == (15, 15)
