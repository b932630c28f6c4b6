"""Training: planted directions come back, and the run equals a plain dense implementation, step by step."""

import math
from dataclasses import replace

import pytest
import torch

from sae_explore.activations.activation_shards import MemoryActivations, ShardWriter
from sae_explore.errors import InputError
from sae_explore.saes import train
from sae_explore.saes.sae import ReconstructionStats
from sae_explore.saes.train import AUX_COEFFICIENT, TrainConfig, geometric_median, train_topk
from sae_explore.types import SaeSpec

D = 24


def planted(tokens: int, directions: int = 40, active: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, directions): every row is an offset and `active` of the directions, each 1 to 3 times, and a little noise."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.nn.functional.normalize(torch.randn(directions, D, generator=g), dim=1)
    chosen = torch.rand(tokens, directions, generator=g).topk(active).indices
    strength = torch.zeros(tokens, directions).scatter(1, chosen, 1 + 2 * torch.rand(tokens, active, generator=g))
    return 7 * (strength @ basis + 0.5 + 0.02 * torch.randn(tokens, D, generator=g)), basis


def spec_of(config: TrainConfig) -> SaeSpec:
    return SaeSpec("topk", D, config.latents, config.k)


@pytest.fixture(scope="module")
def trained():
    rows, basis = planted(8_000)
    reports = []
    config = TrainConfig(64, 3, 20, lr=4e-3, batch_tokens=256)
    sae, used = train_topk(MemoryActivations(rows), config, spec=spec_of(config), report=reports.append)
    return rows, basis, sae, used, reports


def test_planted_directions_are_recovered(trained):
    rows, basis, sae, _, reports = trained
    best = (basis @ sae.W_dec.T).amax(1)
    assert float((best > 0.9).float().mean()) > 0.9
    stats = ReconstructionStats(D, 64)
    acts, info = sae.encode(rows)
    stats.add(rows, sae.decode(acts, info), acts)
    assert stats.explained_variance > 0.9
    assert stats.l0 <= 3
    assert reports[-1].loss < 0.4 * reports[0].loss
    assert all(later.loss < earlier.loss for earlier, later in zip(reports[:25], reports[5:30], strict=True))
    assert reports[-1].explained_variance == pytest.approx(stats.explained_variance, abs=0.05)
    assert reports[-1].l0 == pytest.approx(stats.l0, abs=0.1)
    assert (reports[-1].step, reports[-1].epoch) == (reports[-1].steps, 19)


def test_decoder_rows_have_unit_norm(trained):
    torch.testing.assert_close(trained[2].W_dec.norm(dim=1), torch.ones(64), rtol=1e-5, atol=1e-5)


def test_units_of_the_data_do_not_matter(trained):
    """A corpus in other units gives the same SAE in those units: the training scale is folded out."""
    rows, _, _, used, _ = trained
    short = replace(used, epochs=1)
    a, b = (train_topk(MemoryActivations(factor * rows), short, spec=spec_of(short))[0] for factor in (1, 64))
    acts_a, acts_b = a.encode(rows[:200])[0], b.encode(64 * rows[:200])[0]
    assert torch.equal(acts_a.features, acts_b.features)
    torch.testing.assert_close(64 * acts_a.values, acts_b.values, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(a.W_dec, b.W_dec, rtol=1e-4, atol=1e-4)


def test_the_scale_is_folded_out_exactly():
    g, config, scale = torch.Generator().manual_seed(0), TrainConfig(32, 4, 1, 1e-3, 16), 0.37
    params = {n: torch.randn(*s, generator=g) for n, s in {"W_encT": (32, D), "b_enc": (32,), "W_dec": (32, D), "b_dec": (D,)}.items()}
    sae = train._finished(train.TrainState(params, config, scale, 1.0), config, spec_of(config))
    x = torch.randn(50, D, generator=g)
    scaled = torch.relu((scale * x - params["b_dec"]) @ params["W_encT"].T + params["b_enc"])
    z = torch.zeros_like(scaled).scatter(1, scaled.topk(4).indices, scaled.topk(4).values)
    acts, info = sae.encode(x)
    torch.testing.assert_close(sae.decode(acts, info), (z @ params["W_dec"] + params["b_dec"]) / scale, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        acts.values, torch.cat([row[row > 0].sort(descending=True).values for row in z / scale]), rtol=1e-4, atol=1e-5
    )


def dense_training(data: MemoryActivations, config: TrainConfig, params: dict, scale: float, variance: float):
    """The same training in the plainest way: dense products, autograd, torch.optim.Adam. Returns losses, parameters, dead counts."""
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=config.lr, eps=6.25e-10)
    per_epoch = data.tokens // config.batch_tokens
    steps, step = per_epoch * config.epochs, 0
    silent, losses, dead_counts = torch.zeros(config.latents), [], []
    for epoch in range(config.epochs):
        for batch in data.batches(epoch, config.batch_tokens, config.seed):
            x = batch * scale
            pre = (x - leaves["b_dec"]) @ leaves["W_encT"].T + leaves["b_enc"]
            z = torch.relu(pre) * torch.zeros_like(pre).scatter(1, pre.topk(config.k).indices, 1.0)
            x_hat = z @ leaves["W_dec"] + leaves["b_dec"]
            loss = (x - x_hat).square().sum(1).mean() / variance
            silent = torch.where((z > 0).any(0), 0, silent + len(x))
            dead = silent > config.dead_after
            if dead.any():
                among = pre[:, dead]
                chosen = torch.zeros_like(among).scatter(1, among.topk(min(D // 2, int(dead.sum()))).indices, 1.0)
                e = (x - x_hat).detach()
                e_hat = (torch.relu(among) * chosen) @ leaves["W_dec"][dead]
                loss = loss + AUX_COEFFICIENT * (e - e_hat).square().sum() / (e - e.mean(0)).square().sum()
            optimizer.zero_grad()
            loss.backward()
            with torch.no_grad():
                W, g = leaves["W_dec"], leaves["W_dec"].grad
                g -= (g * W).sum(1, keepdim=True) * W
                warm, decay = max(1, steps // 20), max(1, steps // 5)
                optimizer.param_groups[0]["lr"] = config.lr * min(1, (step + 1) / warm, (steps - step) / decay)
                optimizer.step()
                W /= W.norm(dim=1, keepdim=True)
            losses.append(float(loss.detach()))
            dead_counts.append(int(dead.sum()))
            step += 1
    return losses, {name: leaf.detach() for name, leaf in leaves.items()}, dead_counts


def test_the_run_equals_a_plain_dense_implementation(monkeypatch):
    """60 steps with AuxK at work: the same losses and the same weights."""
    data = MemoryActivations(planted(1_280)[0])
    config = TrainConfig(160, 3, 3, lr=1e-3, batch_tokens=64, dead_after=256, seed=5)
    state = train.initial_state(data, config, torch.device("cpu"))
    start = {name: p.data.clone() for name, p in state.params.items()}
    expected, weights, dead = dense_training(data, config, start, state.scale, state.variance)
    assert min(dead[8:]) > 0
    losses, step = [], train.train_step

    def recorded(*arguments, **options):
        found = step(*arguments, **options)
        losses.append(float(found[0]))
        return found

    monkeypatch.setattr(train, "train_step", recorded)
    sae, _ = train_topk(data, config, spec=spec_of(config))
    assert losses == pytest.approx(expected, rel=1e-4)
    assert len(losses) == 60
    torch.testing.assert_close(sae.W_dec, weights["W_dec"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(sae.W_enc.T, weights["W_encT"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(sae.b_dec * state.scale, weights["b_dec"], rtol=1e-3, atol=1e-3)


def test_the_start_is_tied_scaled_and_centred():
    data, config = MemoryActivations(planted(2_000)[0]), TrainConfig(64, 3, 1, 1e-3, 64)
    state = train.initial_state(data, config, torch.device("cpu"))
    p = {name: param.data for name, param in state.params.items()}
    x = data.rows * state.scale
    assert float(x.norm(dim=1).mean()) == pytest.approx(math.sqrt(D), rel=1e-5)
    assert state.variance == pytest.approx(float((x - x.mean(0)).square().sum(1).mean()), rel=1e-5)
    torch.testing.assert_close(p["W_dec"].norm(dim=1), torch.ones(64))
    factor = p["W_encT"] / p["W_dec"]
    torch.testing.assert_close(factor, factor[0, 0].expand_as(factor), rtol=1e-4, atol=1e-4)
    # No multiple of the encoder rebuilds the sample better.
    centred = x - p["b_dec"]
    pre = centred @ p["W_encT"].T
    x_hat = torch.relu(pre.topk(3).values.new_zeros(pre.shape).scatter(1, pre.topk(3).indices, pre.topk(3).values)) @ p["W_dec"]
    errors = [float((centred - f * x_hat).square().sum()) for f in (0.9, 1.0, 1.1)]
    assert min(errors) == errors[1]


def test_the_geometric_median_is_where_the_pulls_cancel():
    rows = torch.cat([torch.randn(400, 3, generator=torch.Generator().manual_seed(0)), torch.full((40, 3), 100.0)])
    median = geometric_median(rows)
    pulls = torch.nn.functional.normalize(rows - median, dim=1)
    assert float(pulls.mean(0).norm()) < 1e-4
    assert float(median.norm()) < 1  # the mean lies at 9 in each coordinate


class Cancelled(Exception):
    pass


@pytest.fixture(params=["memory", "shards"])
def activations(request, tmp_path):
    rows = planted(1_500)[0]
    if request.param == "memory":
        return MemoryActivations(rows)
    writer = ShardWriter(tmp_path / "shards", D, shard_rows=400)
    writer.add(rows)
    shards = writer.finish()
    shards.buffer_shards = 2
    return shards


@pytest.mark.parametrize("killed_at", [20, 60])
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(activations, tmp_path, killed_at):
    config = TrainConfig(64, 4, 4, lr=1e-3, batch_tokens=64, dead_after=300)
    options = {"spec": spec_of(config), "checkpoint": tmp_path / "checkpoint.pt", "checkpoint_every": 17}

    def kill(progress):
        if progress.step == killed_at:
            raise Cancelled

    with pytest.raises(Cancelled):
        train_topk(activations, config, report=kill, **options)
    assert options["checkpoint"].is_file()
    steps = []
    resumed, _ = train_topk(activations, config, report=lambda p: steps.append(p.step), **options)
    assert steps[0] > killed_at - 20  # it did not begin again
    whole, _ = train_topk(activations, config, spec=spec_of(config))
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))


def test_a_checkpoint_of_another_configuration_is_not_used(tmp_path):
    data, path = MemoryActivations(planted(600)[0]), tmp_path / "checkpoint.pt"
    config = TrainConfig(32, 4, 2, lr=1e-3, batch_tokens=64)
    train_topk(data, config, spec=spec_of(config), checkpoint=path, checkpoint_every=5)
    other = replace(config, lr=2e-3)
    found, _ = train_topk(data, other, spec=spec_of(other), checkpoint=path)
    fresh, _ = train_topk(data, other, spec=spec_of(other))
    assert torch.equal(found.W_dec, fresh.W_dec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 65}, "k = 65 is more than the number of latents, 64"),
        ({"k": 0}, "must be at least 1; got 64, 0 and 1"),
        ({"latents": 0}, "must be at least 1"),
        ({"epochs": 0}, "must be at least 1"),
        ({"lr": -1e-3}, "lr must lie between 0 and 1"),
        ({"lr": math.nan}, "lr must lie between 0 and 1"),
        ({"batch_tokens": -5}, "must not be negative"),
        ({"dead_after": -1}, "must not be negative"),
    ],
)
def test_wrong_configurations_are_named(change, message):
    data = MemoryActivations(torch.zeros(300, D))
    with pytest.raises(InputError, match=message):
        train_topk(data, replace(TrainConfig(64, 4, 1), **change), spec=SaeSpec("topk", D, 64, 4))


def test_too_few_tokens_are_refused():
    with pytest.raises(InputError, match="255 tokens are too few"):
        TrainConfig().resolved(255, D)


def test_choices_made_from_the_data():
    """By hand: 200,000 tokens seen 15 times in 2,000 steps are 1,500 a step; the nearest power of 2, by ratio, is 2,048."""
    config = TrainConfig().resolved(200_000, 768)
    assert config.batch_tokens == 2_048
    assert config.lr == pytest.approx(2e-4 / math.sqrt(2_048 / 16_384))
    assert config.dead_after == 150_000
    assert TrainConfig(epochs=1).resolved(1_000, 768).batch_tokens == 512
    assert TrainConfig(epochs=1).resolved(300, 768).batch_tokens == 300
    assert TrainConfig().resolved(10**9, 768).batch_tokens == 4_096
    assert TrainConfig().resolved(10**9, 768).dead_after == 10_000_000
    assert config.resolved(200_000, 768) == config


def test_choosing_in_bf16_keeps_the_chosen_activations_in_fp32():
    """The k chosen latents may differ where two are nearly equal; what is computed from them may not be rounded to bf16."""
    rows, _ = planted(512)
    data, config = MemoryActivations(rows), TrainConfig(64, 3, 1, lr=4e-3, batch_tokens=512).resolved(512, D)
    exact, rounded = (train.initial_state(data, config, torch.device("cpu")) for _ in range(2))
    x = rows * exact.scale
    pre = torch.addmm(exact.params["b_enc"], x - exact.params["b_dec"], exact.params["W_encT"].T).detach()
    best = pre.topk(4).values
    clear = best[:, 2] - best[:, 3] > 0.05 * best[:, 2]  # bf16 has eight bits
    assert 100 < int(clear.sum()) < 512
    found = [train.train_step(state, config, x[clear], encoder_dtype=dtype) for state, dtype in ((exact, None), (rounded, torch.bfloat16))]
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=0)
    for name, want in exact.params.items():
        torch.testing.assert_close(rounded.params[name], want, rtol=1e-5, atol=1e-6)


def test_training_starts_in_the_middle_of_the_data():
    """At the geometric median of the sample, where the sum of unit vectors towards the rows is 0."""
    rows, _ = planted(600)
    state = train.initial_state(MemoryActivations(rows), TrainConfig(64, 3, 2).resolved(600, D), torch.device("cpu"))
    towards = torch.nn.functional.normalize(rows * state.scale - state.params["b_dec"], dim=1)
    assert float(towards.mean(0).norm()) < 1e-3
    assert float((rows * state.scale).norm(dim=1).mean()) == pytest.approx(math.sqrt(D), rel=1e-5)


def test_the_variance_that_is_reported_is_about_the_mean():
    rows, _ = planted(600)
    config = TrainConfig(64, 3, 2).resolved(600, D)
    state = train.initial_state(MemoryActivations(rows), config, torch.device("cpu"))
    state.params["b_dec"].data += 2.0  # wherever training has brought it
    x = rows[:256] * state.scale
    variance = train.train_step(state, config, x)[2]
    assert float(variance) == pytest.approx(float((x - x.mean(0)).square().sum()), rel=1e-4)
