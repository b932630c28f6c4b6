"""Figures against their definitions, transformers' own loss, and plain forward hooks."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from sae_explore.activations.collect import residual_blocks
from sae_explore.building.metrics import _losses, evaluate_losses, evaluate_reconstruction, mean_residual, spliced
from sae_explore.models.model import LanguageModel, load_full_model, load_model
from sae_explore.models.model_structure import blocks_of
from sae_explore.models.windows import windows_of
from sae_explore.types import HookPoint

CONTEXT = 16
SINK = 300
ALL = {"context": CONTEXT, "bos": True, "median_norm": 1e9}  # no token counts as a sink


@pytest.fixture(scope="module")
def ids_of():
    rng = np.random.default_rng(1)
    return [rng.integers(301, 600, n).astype(np.int32) for n in (9, 30, 15, 22, 12)]


CATEGORIES = ["a", "b", "a", "c", "b"]


@pytest.fixture(scope="module")
def sae(random_sae):
    """Random, but small enough not to destroy the model's predictions altogether."""
    made = random_sae("topk", d_in=32, d_sae=96, k=6)
    return replace(made, W_enc=made.W_enc / 6, W_dec=made.W_dec / 6)


def residual_rows(model, ids_of, *, bos, overlap=True):
    """[(document, position, residual)] of every token, each window alone."""
    found = []
    for d, ids in enumerate(ids_of):
        for w in windows_of(len(ids), CONTEXT - bos, overlap=overlap):
            prompt = np.concatenate([[0] * bos, ids[w.start : w.stop]]).astype(np.int64)
            rows = model.residual(torch.from_numpy(prompt)[None])[0][bos:]
            found += [(d, t, rows[t - w.start]) for t in range(w.keep, w.stop)]
    return found


def by_definition(sae, x):
    """(explained variance, L0, dead) in numpy."""
    acts, info = sae.encode(x)
    x, x_hat = x.double().numpy(), sae.decode(acts, info).double().numpy()
    variance = 1 - ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    return variance, len(acts.features) / len(x), sae.spec.d_sae - len(set(acts.features.tolist()))


@pytest.mark.parametrize("bos", [True, False])
def test_reconstruction_follows_the_definitions(gpt2_model, sae, ids_of, bos):
    rows = [(d, r) for d, t, r in residual_rows(gpt2_model, ids_of, bos=bos) if bos or t]
    found = evaluate_reconstruction(gpt2_model, sae, ids_of, CATEGORIES, **(ALL | {"bos": bos}))
    variance, l0, dead = by_definition(sae, torch.stack([r for _, r in rows]))
    assert found.tokens == len(rows)
    assert found.explained_variance == pytest.approx(variance, abs=1e-5)
    assert found.l0 == pytest.approx(l0)
    assert found.dead == dead
    for category in "abc":
        own = torch.stack([r for d, r in rows if CATEGORIES[d] == category])
        variance, l0, _ = by_definition(sae, own)
        entry = found.by_category[category]
        assert entry == {"tokens": len(own), "explained_variance": pytest.approx(variance, abs=1e-5), "l0": pytest.approx(l0)}


def test_the_reconstruction_is_of_the_centred_input_where_the_sae_wants_it(gpt2_model, sae, ids_of):
    centring = replace(sae, spec=replace(sae.spec, center_input=True))
    rows = torch.stack([r for _, _, r in residual_rows(gpt2_model, ids_of, bos=True)])
    variance, _, _ = by_definition(sae, rows - rows.mean(-1, keepdim=True))
    assert evaluate_reconstruction(gpt2_model, centring, ids_of, CATEGORIES, **ALL).explained_variance == pytest.approx(variance, abs=1e-5)


@pytest.mark.parametrize("bos", [True, False])
def test_planted_spikes_enter_no_figure_and_would_fake_it_if_left_in(gpt2_model, planted_sae, ids_of, monkeypatch, bos):
    """Every first position and every SINK token is a spike along direction 0, which the SAE knows; else it knows little."""
    sae, plain, own = planted_sae(32, 4), residual_rows(gpt2_model, ids_of, bos=bos), LanguageModel.residual
    with_sinks = [ids.copy() for ids in ids_of]
    for ids in with_sinks[1:3]:
        ids[8] = SINK

    def residual(self, ids, *, autocast=None):
        out = own(self, torch.where(ids == SINK, 400, ids), autocast=autocast).clone()
        out[:, 0] = 900 * sae.W_dec[0]
        out[ids == SINK] = 700 * sae.W_dec[0]
        return out

    median = float(torch.stack([r for _, _, r in plain]).norm(dim=-1).median())
    monkeypatch.setattr(LanguageModel, "residual", residual)
    options = {"context": CONTEXT, "bos": bos, "median_norm": median}
    found = evaluate_reconstruction(gpt2_model, sae, with_sinks, CATEGORIES, **options)
    spiked = residual_rows(gpt2_model, with_sinks, bos=bos)
    kept = [r for d, t, r in spiked if with_sinks[d][t] != SINK and (bos or t)]
    assert found.tokens == len(kept) == sum(map(len, ids_of)) - 2 - (0 if bos else 5)
    assert found.explained_variance == pytest.approx(by_definition(sae, torch.stack(kept))[0], abs=1e-4)
    faked, _, _ = by_definition(sae, torch.stack([r for _, _, r in spiked]))
    assert found.explained_variance < 0.5
    assert faked > 0.95
    mean = mean_residual(gpt2_model, with_sinks, **options)
    torch.testing.assert_close(mean, torch.stack(kept).mean(0), rtol=1e-4, atol=1e-4)


def test_reading_ends_with_the_block_that_has_enough_tokens(gpt2_model, sae, ids_of, monkeypatch):
    monkeypatch.setattr("sae_explore.building.metrics.residual_blocks", partial(residual_blocks, block_tokens=20))
    assert evaluate_reconstruction(gpt2_model, sae, ids_of, CATEGORIES, max_tokens=10, **ALL).tokens == 9 + 30
    assert evaluate_reconstruction(gpt2_model, sae, ids_of, CATEGORIES, max_tokens=9, **ALL).tokens == 9


@torch.inference_mode()
def hooked_losses(full, hook, ids_of, edit):
    """{document: losses of its tokens 1..}, window by window, with torch's own hooks: `edit` maps the residuals of the text's tokens.

    The first token of a window is predicted by the BOS, which does not count.
    """
    found = {}
    for d, ids in enumerate(ids_of):
        losses = []
        for w in windows_of(len(ids), CONTEXT - 1, overlap=False):
            prompt = torch.from_numpy(np.concatenate([[0], ids[w.start : w.stop]]).astype(np.int64))[None]

            def replaced(_module, _inputs, out):
                return torch.cat([out[:, :1], edit(out[:, 1:])], 1)

            handle = blocks_of(full)[hook.block].register_forward_hook(replaced)
            try:
                labels = prompt.clone()
                labels[:, :2] = -100
                n = int((labels != -100).sum())
                losses += [float(full(input_ids=prompt, labels=labels, use_cache=False).loss)] * n if n else []
            finally:
                handle.remove()
        found[d] = losses
    return found


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("block", [1, 3])
def test_losses_equal_those_of_plain_hooks(request, sae, ids_of, kind, block):
    """Clean is transformers' own loss; the others replace the text's residuals by a reconstruction, zero, or the mean."""
    folder = request.getfixturevalue(f"{kind}_folder")
    hook = HookPoint(block)
    model, full = load_model(folder, hook=hook), load_full_model(folder)
    mean = torch.stack([r for _, _, r in residual_rows(model, ids_of, bos=True)]).mean(0)

    def rebuilt(x):
        acts, info = sae.encode(x[0])
        return sae.decode(acts, info)[None]

    edits = {"clean": lambda x: x, "sae": rebuilt, "zero": lambda x: 0 * x, "mean": lambda x: mean.expand_as(x)}
    before = {name: id(m) for name, m in full.named_modules()}
    found = evaluate_losses(model, full, sae, ids_of, CATEGORIES, **ALL)
    for name, edit in edits.items():
        losses = hooked_losses(full, hook, ids_of, edit)
        pooled = [x for row in losses.values() for x in row]
        assert found[f"ce_{name}"] == pytest.approx(np.mean(pooled), rel=1e-4)
        assert found["tokens_ce"] == len(pooled)
        for category in "abc":
            own = [x for d, row in losses.items() if CATEGORIES[d] == category for x in row]
            assert found["by_category"][category][f"ce_{name}"] == pytest.approx(np.mean(own), rel=1e-4)
            assert found["by_category"][category]["tokens_ce"] == len(own)
    assert len({round(found[f"ce_{name}"], 3) for name in edits}) == 4
    assert {name: id(m) for name, m in full.named_modules()} == before
    assert not any(m._forward_hooks for m in full.modules())


def test_special_tokens_and_sinks_neither_change_nor_count(gpt2_model, gpt2_full, sae, ids_of):
    """With every token a sink, nothing is replaced and nothing is scored; a special token in a text is not scored."""
    none = evaluate_losses(gpt2_model, gpt2_full, sae, ids_of, CATEGORIES, context=CONTEXT, bos=True, median_norm=1e-9)
    assert none["tokens_ce"] == 0
    assert none["by_category"] == {}
    with_special = [ids.copy() for ids in ids_of]
    with_special[0][4] = 0
    a, b = (evaluate_losses(gpt2_model, gpt2_full, sae, x, CATEGORIES, **ALL)["tokens_ce"] for x in (ids_of, with_special))
    assert a - b == 1


def test_shares_and_increase_worked_by_hand():
    figures = _losses(np.array([10.0, 30.0, 34.0, 90.0, 50.0]))  # clean 3, sae 3.4, zero 9, mean 5
    assert figures["ce_recovered"] == pytest.approx((9 - 3.4) / (9 - 3))
    assert figures["ce_recovered_mean"] == pytest.approx((5 - 3.4) / (5 - 3))
    assert figures["ce_increase"] == pytest.approx(0.4)
    assert figures["tokens_ce"] == 10


def test_splicing_gives_a_mean_that_centring_took_back(random_sae):
    sae = random_sae("topk", center_input=True)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)) + 3
    counted = torch.tensor([[True] * 4 + [False]] * 2)
    out = spliced(sae, x, counted)
    assert torch.equal(out[:, 4], x[:, 4])
    acts, info = sae.encode(x[counted])
    centred = x[counted] - x[counted].mean(-1, keepdim=True)
    torch.testing.assert_close(x[counted] - out[counted], centred - sae.decode(acts, info), rtol=1e-4, atol=1e-4)
