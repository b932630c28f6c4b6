"""Sparse gradients against autograd on the dense form, in double precision."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_explore.saes import train
from sae_explore.saes.sparse_grad import decode_rows, dense_gradients, gathered_products, row_products, sort_by_latent, topk_gradients
from sae_explore.saes.train import AUX_COEFFICIENT, TrainConfig


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_forward(x, W_encT, b_enc, W_dec, b_dec, k):
    """z and x_hat of the TopK autoencoder, as dense products that autograd follows."""
    pre = (x - b_dec) @ W_encT.T + b_enc
    mask = torch.zeros_like(pre).scatter(1, pre.topk(k).indices, 1.0)
    z = torch.relu(pre) * mask
    return pre, z, z @ W_dec + b_dec


@given(n=st.integers(1, 9), d=st.integers(2, 6), m=st.integers(3, 12), k=st.integers(1, 3), low=st.floats(0, 3), seed=st.integers(0, 50))
def test_gradients_equal_autograd(n, d, m, k, low, seed):
    """`low` pushes pre-activations below zero, so that slots of the TopK hold silent latents."""
    x, grad_out = draw(n, d, seed=seed), draw(n, d, seed=seed + 1)
    leaves = [draw(m, d, seed=seed + 2), draw(m, seed=seed + 3) - low, draw(m, d, seed=seed + 4)]
    for leaf in leaves:
        leaf.requires_grad_()
    W_encT, b_enc, W_dec = leaves
    b_dec = draw(d, seed=seed + 5)
    pre, z, x_hat = dense_forward(x, W_encT, b_enc, W_dec, b_dec, k)
    expected = torch.autograd.grad((x_hat * grad_out).sum(), leaves)
    along = (expected[2] * W_dec.detach()).sum(-1)
    values, features = (t.detach() for t in pre.topk(k))
    sparse = topk_gradients(x - b_dec, features, values.relu(), grad_out / 3, W_dec.detach(), scale=3)
    dense = dense_gradients(x - b_dec, z.detach(), grad_out, W_dec.detach())
    for found in (sparse, dense):
        for got, want in zip(found, (*expected, along), strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("rows", [1, 7, 30, 31])
def test_gathering_a_few_latents_at_a_time_changes_nothing(monkeypatch, rows):
    values, features = draw(20, 30).relu().topk(4)
    arguments = (draw(20, 6, seed=1), features, values, draw(20, 6, seed=2), draw(30, 6, seed=3))
    whole = topk_gradients(*arguments)
    monkeypatch.setattr("sae_explore.saes.sparse_grad._BLOCK_ELEMENTS", rows * 6)
    used = torch.full((2, 30, 6), torch.nan, dtype=torch.float64)
    for out in ((None, None), (used[0], used[1])):
        for got, want in zip(topk_gradients(*arguments, out=out), whole, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-14)


def test_products_of_chosen_rows(monkeypatch):
    """As a dense product at the chosen places, whichever order they are in."""
    features, W, rows = draw(20, 30).topk(4).indices, draw(30, 6, seed=1), draw(20, 6, seed=2)
    expected = (rows @ W.T).gather(1, features)
    torch.testing.assert_close(row_products(features, W, rows), expected)
    monkeypatch.setattr("sae_explore.saes.sparse_grad._GATHER_ELEMENTS", 3 * 4 * 6)  # three tokens at a time, the last time two
    torch.testing.assert_close(gathered_products(features, W, rows), expected)


def test_decode_rows_and_the_order_by_latent():
    features, values = torch.tensor([[2, 0], [2, 4], [1, 2]]), draw(3, 2)
    W_dec = draw(5, 4)
    dense = torch.zeros(3, 5, dtype=torch.float64).scatter(1, features, values)
    torch.testing.assert_close(decode_rows(features, values, W_dec), dense @ W_dec)
    by = sort_by_latent(features, 6)
    assert by.order.tolist() == [1, 4, 0, 2, 5, 3]  # latents 0 1 2 2 2 4
    assert by.tokens.tolist() == [0, 2, 0, 1, 2, 1]
    assert by.starts.tolist() == [0, 1, 2, 5, 5, 6, 6]


@pytest.mark.parametrize("dead", [0, 3, 20, 30])
def test_a_training_steps_gradients_equal_autograd(dead, monkeypatch):
    """The whole loss: reconstruction and AuxK on the dead latents, b_dec through the decoder and through the encoder's input,
    the part of the decoder's gradient along each row removed. AuxK takes all of 3 dead latents, 6 of 20 densely, 6 of 30 sparsely."""
    monkeypatch.setattr(train, "_ENCODED_ROWS", (7, 7))
    n, d, m, k, variance = 40, 12, 48, 4, 7.0
    x = draw(n, d)
    W_dec = torch.nn.functional.normalize(draw(m, d, seed=1), dim=1)
    b_enc = torch.full((m,), 3.0, dtype=torch.float64)
    b_enc[:dead] = 0  # too weak for the TopK, but positive on half the tokens: a latent that AuxK brings back
    params = {"W_encT": 0.4 * W_dec, "b_enc": b_enc, "W_dec": W_dec, "b_dec": draw(d, seed=2) / 3}
    config = TrainConfig(m, k, 1, 1e-4, n, dead_after=100)
    state = train.TrainState({name: p.clone() for name, p in params.items()}, config, scale=1.0, variance=variance)
    state.silent[:dead] = 1_000

    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    pre, z, x_hat = dense_forward(x, *leaves.values(), k)
    silent = list(range(dead))
    assert not (z[:, silent] > 0).any()
    error = x - x_hat
    loss = error.square().sum() / (n * variance)
    if silent:
        k_aux = min(d // 2, len(silent))
        among = pre[:, silent]
        chosen = torch.relu(among) * torch.zeros_like(among).scatter(1, among.topk(k_aux).indices, 1.0)
        target = error.detach()
        e_hat = chosen @ leaves["W_dec"][silent]
        loss = loss + AUX_COEFFICIENT * (e_hat - target).square().sum() / (target - target.mean(0)).square().sum()
        assert (chosen > 0).any()
    expected = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    along = (expected["W_dec"] * W_dec).sum(-1, keepdim=True)
    expected["W_dec"] = expected["W_dec"] - along * W_dec

    found = train.train_step(state, config, x)
    torch.testing.assert_close(found[0], loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found[1], error.detach().square().sum(), rtol=1e-12, atol=0)
    assert int(found[3]) == int((z > 0).sum())
    for name, want in expected.items():
        torch.testing.assert_close(state.params[name].grad, want, rtol=1e-9, atol=1e-12)
    fired = (z > 0).any(0)
    assert (state.silent[fired] == 0).all()
    assert (state.silent[~fired] >= n).all()
