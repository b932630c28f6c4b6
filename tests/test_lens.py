"""The logit lens against plain products, and lists of neighbours against brute force."""

import numpy as np
import pytest
import torch

from sae_explore.activations.feature_stats import NONE
from sae_explore.features.diverse import diverse_features
from sae_explore.features.feature_table import lens_tables as tables_of_features
from sae_explore.features.lens import (
    CONVENTIONS,
    LENS_TOP,
    LOGIT_BINS,
    folded_logit,
    lens_matrix,
    lens_table,
    lens_tables,
    mean_row,
    nearest_by_cosine,
    random_directions,
)
from sae_explore.models.model import Unembedding
from sae_explore.models.tokens import Vocabulary


@pytest.fixture(params=["gpt2", "llama"])
def parts(request):
    """(unembedding as loaded, W_U and gain from the full model, whether the norm centres)."""
    model, full = request.getfixturevalue(f"{request.param}_model"), request.getfixturevalue(f"{request.param}_full")
    if request.param == "gpt2":
        return model.unembedding, full.transformer.wte.weight.double(), full.transformer.ln_f.weight.double(), True
    return model.unembedding, full.lm_head.weight.double(), full.model.norm.weight.double(), False


DIRECTIONS = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))


def reference(convention: str, W_U, gain, centred: bool) -> np.ndarray:
    """Logits (7, vocab) of the directions, token by token."""
    W_U, gain, directions = W_U.numpy(), gain.numpy(), DIRECTIONS.double().numpy()
    if convention == "raw":
        return np.array([[d @ row for row in W_U] for d in directions])
    if centred:  # the norm takes the direction's own mean away before the gain
        directions = directions - directions.mean(1, keepdims=True)
    logits = np.array([[(d * gain) @ row for row in W_U] for d in directions])
    logits = logits - logits.mean(1, keepdims=True)
    if convention == "folded":
        return logits
    rows = W_U * gain
    rows = rows - rows.mean(0)
    if centred:
        rows = rows - rows.mean(1, keepdims=True)
    return logits / np.linalg.norm(rows, axis=1)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_conventions_follow_their_definitions(parts, convention):
    unembedding, W_U, gain, centred = parts
    found = DIRECTIONS @ lens_matrix(unembedding, convention)
    np.testing.assert_allclose(found.numpy(), reference(convention, W_U.detach(), gain.detach(), centred), rtol=1e-3, atol=1e-4)


def test_one_folded_logit_is_that_of_the_matrix(parts):
    unembedding = parts[0]
    matrix, mean = lens_matrix(unembedding, "folded"), mean_row(unembedding)
    found = [[folded_logit(d.numpy(), unembedding, token, mean=mean) for token in range(0, 600, 97)] for d in DIRECTIONS]
    np.testing.assert_allclose(found, (DIRECTIONS @ matrix)[:, ::97].numpy(), rtol=1e-3, atol=1e-5)


def test_the_folded_lens_says_how_a_small_step_moves_the_prediction(gpt2_full, parts):
    """Added to a residual of zero mean, a direction's folded logits are the change of the log-odds, up to the norm's length."""
    unembedding, W_U, gain, centred = parts
    x = 1e4 * torch.randn(32, generator=torch.Generator().manual_seed(5)).double()
    x = x - x.mean() if centred else x
    step = DIRECTIONS[0].double()
    step = step - (step @ x) * x / (x @ x)  # across x, so that the length hardly changes

    def log_odds(v):
        v = v - v.mean() if centred else v
        logits = (v / v.square().mean().sqrt() * gain) @ W_U.T
        return logits - logits.mean()

    moved = (log_odds(x + step) - log_odds(x)) * x.square().mean().sqrt()
    lens = step.float() @ lens_matrix(unembedding, "folded")
    torch.testing.assert_close(lens, moved.float().detach(), rtol=1e-2, atol=1e-2)


def test_invariances(parts):
    unembedding, _, _, centred = parts
    folded = lens_matrix(unembedding, "folded")
    torch.testing.assert_close((DIRECTIONS @ folded).mean(1), torch.zeros(7), atol=1e-5, rtol=0)
    constant = unembedding._replace(W_U=unembedding.W_U + torch.linspace(-1, 1, 32))  # the same added to every token's logit
    torch.testing.assert_close(DIRECTIONS @ lens_matrix(constant, "folded"), DIRECTIONS @ folded, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(DIRECTIONS @ lens_matrix(constant, "raw"), DIRECTIONS @ lens_matrix(unembedding, "raw"), atol=1e-2)
    ones = torch.ones(1, 32) @ folded
    assert (float(ones.abs().max()) < 1e-4) is centred
    cosine = lens_matrix(unembedding, "cosine")
    torch.testing.assert_close(cosine.norm(dim=0), torch.ones(600))
    louder = unembedding._replace(gain=3 * unembedding.gain)
    torch.testing.assert_close(lens_matrix(louder, "cosine"), cosine, atol=1e-5, rtol=1e-4)


def test_an_unknown_convention_is_named(gpt2_model):
    with pytest.raises(ValueError, match="'plain' is not one of folded, raw, cosine"):
        lens_matrix(gpt2_model.unembedding, "plain")


@pytest.mark.parametrize("chunk", [1 << 24, 1])
def test_lists_and_statistics(monkeypatch, chunk):
    monkeypatch.setattr("sae_explore.features.lens._CHUNK_LOGITS", chunk)
    matrix = torch.randn(32, 90, generator=torch.Generator().manual_seed(2))
    excluded = np.zeros(90, bool)
    excluded[::9] = True
    excluded.setflags(write=False)  # as a memory map is
    table = lens_table(DIRECTIONS, matrix, excluded)
    logits = (DIRECTIONS @ matrix).double().numpy()
    shown = np.where(excluded, np.nan, logits)
    for i in range(7):
        order = [t for t in np.argsort(-logits[i]) if not excluded[t]]
        assert table.positive_ids[i].tolist() == order[:LENS_TOP]
        assert table.negative_ids[i].tolist() == order[::-1][:LENS_TOP]
        np.testing.assert_allclose(table.positive[i], np.sort(shown[i][~excluded])[::-1][:LENS_TOP], rtol=2e-3)
        np.testing.assert_allclose(table.negative[i], np.sort(shown[i][~excluded])[:LENS_TOP], rtol=2e-3)
        z = (logits[i] - logits[i].mean()) / logits[i].std()
        assert table.std[i] == pytest.approx(logits[i].std(), rel=1e-4)
        assert table.kurtosis[i] == pytest.approx((z**4).mean() - 3, abs=1e-3)
        assert (table.low[i], table.high[i]) == (pytest.approx(logits[i].min(), rel=1e-5), pytest.approx(logits[i].max(), rel=1e-5))
        counts, _ = np.histogram(logits[i], LOGIT_BINS)
        assert np.abs(table.histogram[i] - counts).sum() <= 2  # a value on an edge may fall on either side
        assert table.histogram[i].sum() == 90


@pytest.mark.parametrize("chunk", [1 << 24, 1])
def test_all_conventions_at_once_equal_each_alone(parts, monkeypatch, chunk):
    monkeypatch.setattr("sae_explore.features.lens._CHUNK_LOGITS", chunk)
    unembedding = parts[0]
    excluded = np.zeros(600, bool)
    excluded[[3, 599]] = True
    tables = lens_tables(DIRECTIONS, unembedding, excluded)
    assert set(tables) == {"folded", "raw", "cosine"}
    for convention, table in tables.items():
        alone = lens_table(DIRECTIONS, lens_matrix(unembedding, convention), excluded)
        for name, found, expected in zip(table._fields, table, alone, strict=True):
            if convention != "folded" and name in ("histogram", "kurtosis"):
                assert len(found) == 0
            elif name == "histogram":  # a value on an edge may fall on either side
                assert np.abs(found - expected).sum(1).max() <= 4
            else:
                np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-5, err_msg=f"{convention} {name}")


def test_random_directions_are_unit_and_seeded():
    a = random_directions(16, 200, seed=1)
    torch.testing.assert_close(a.norm(dim=1), torch.ones(200))
    assert torch.equal(a, random_directions(16, 200, seed=1))
    assert not torch.equal(a, random_directions(16, 200, seed=2))
    assert float(a.mean(0).norm()) < 0.2


@pytest.mark.parametrize("chunk", [1 << 24, 40])
def test_nearest_rows_by_cosine(monkeypatch, chunk):
    monkeypatch.setattr("sae_explore.features.lens._CHUNK_LOGITS", chunk)
    rows = torch.randn(20, 6, generator=torch.Generator().manual_seed(3)) * torch.arange(1, 21)[:, None]
    indices, cosines = nearest_by_cosine(rows, 4)
    x = rows.double().numpy()
    for i in range(20):
        cosine = [x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) if j != i else -np.inf for j in range(20)]
        expected = np.argsort(-np.array(cosine))[:4]
        assert indices[i].tolist() == expected.tolist()
        np.testing.assert_allclose(cosines[i], np.array(cosine)[expected], rtol=1e-5)


def test_nearest_rows_of_few():
    indices, cosines = nearest_by_cosine(torch.eye(3), 10)
    assert indices.shape == cosines.shape == (3, 2)
    assert nearest_by_cosine(torch.ones(1, 3))[0].shape == (1, 0)


def test_diverse_features_are_chosen_greedily():
    rng = np.random.default_rng(0)
    W_dec = rng.normal(size=(60, 4)).astype(np.float32)
    scores = rng.random(60)
    scores[[3, 9]] = np.nan
    chosen = diverse_features(W_dec, scores, 6, limit=0.7)
    unit = W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True)
    expected: list[int] = []
    for feature in sorted(range(60), key=lambda f: -np.nan_to_num(scores[f], nan=-1)):
        if len(expected) < 6 and feature not in (3, 9) and all(abs(unit[feature] @ unit[c]) < 0.7 for c in expected):
            expected.append(feature)
    assert chosen == expected


def test_diverse_features_worked_by_hand():
    W_dec = np.array([[1, 0], [-2, 0.1], [0, 1], [1, 1], [0, 0]], np.float32)
    assert diverse_features(W_dec, np.array([5.0, 4, 3, 2, 1]), 5) == [0, 2, 4]  # opposite directions count as alike; 45 degrees are .707
    assert diverse_features(W_dec, np.array([5.0, 4, 3, 2, 1]), 5, limit=0.8) == [0, 2, 3, 4]
    assert diverse_features(W_dec, np.full(5, np.nan), 2) == []


def test_lists_of_features_hold_no_special_token_and_no_unused_id():
    """However much they stand out; and a random direction's top logit is said in standard deviations of its own logits."""
    W_U = torch.randn(50, 32, generator=torch.Generator().manual_seed(1))
    W_U[[7, 9]] *= 50
    unembedding = Unembedding(W_U, torch.ones(32), False)
    lengths, special = np.ones(50, np.int64), np.zeros(50, bool)
    lengths[7], special[9] = 0, True
    vocabulary = Vocabulary(np.full(49, ord("x"), np.uint8), np.concatenate([[0], lengths.cumsum()]), special)
    tables, _, info = tables_of_features(DIRECTIONS, unembedding, vocabulary, np.full((7, 20), NONE), np.zeros(1, np.int64))
    for convention in CONVENTIONS:
        for listed in (tables[convention].positive_ids, tables[convention].negative_ids):
            assert not np.isin(listed, [7, 9]).any()
        logits = random_directions(32) @ lens_matrix(unembedding, convention)
        shown = np.delete(logits.numpy(), [7, 9], axis=1)
        expected = (shown.max(1) / logits.numpy().std(1)).mean()
        assert info["random"]["z_top"][convention] == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("seed", range(4))
def test_the_convention_that_agrees_best_with_the_examples_is_the_default(seed):
    """Agreement: in how many of a live feature's top examples the peak token or the one after it is among the first ten of the list."""
    rng = np.random.default_rng(seed)
    W_U = torch.from_numpy(rng.normal(size=(50, 32)) * rng.exponential(1, (50, 1)) + rng.normal(size=32)).float()
    unembedding = Unembedding(W_U, torch.from_numpy(rng.exponential(1, 32)).float(), True)
    vocabulary = Vocabulary(np.full(50, ord("x"), np.uint8), np.arange(51), np.zeros(50, bool))
    ids, top = rng.integers(0, 50, 40), rng.integers(0, 40, (7, 20)).astype(np.uint32)
    top[0, 0], top[2, 5:], top[3] = 39, NONE, NONE  # the last token of all, few examples, a dead feature
    tables, _, info = tables_of_features(DIRECTIONS, unembedding, vocabulary, top, ids)
    expected = {}
    for convention in CONVENTIONS:
        shares = []
        for row, listed in zip(top.tolist(), tables[convention].positive_ids[:, :10].tolist(), strict=True):
            peaks = [t for t in row if t != NONE]
            held = [bool({ids[t], ids[min(t + 1, 39)]} & set(listed)) for t in peaks]
            shares += [sum(held) / len(held)] if held else []
        expected[convention] = round(sum(shares) / 6, 4)
    assert info["agreement"] == pytest.approx(expected, abs=1e-4)
    assert expected[info["default"]] == max(expected.values())
    assert len(set(expected.values())) > 1
