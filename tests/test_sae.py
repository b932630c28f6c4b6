"""SAE families against their equations written plainly, and sparse results against dense ones."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_explore.errors import SaeError
from sae_explore.saes import sae as sae_module
from sae_explore.saes.sae import ARCHITECTURES, ReconstructionStats, Sae, SparseActs, topk_rows
from sae_explore.types import SaeSpec


def rows(n: int = 12, d: int = 16, *, seed: int = 9, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def dense(acts: SparseActs, d_sae: int) -> torch.Tensor:
    out = acts.values.new_zeros(len(acts.offsets) - 1, d_sae)
    for i in range(len(out)):
        a, b = int(acts.offsets[i]), int(acts.offsets[i + 1])
        assert len(set(acts.features[a:b].tolist())) == b - a  # no feature twice
        out[i, acts.features[a:b]] = acts.values[a:b]
    return out


def by_equation(sae: Sae, x: torch.Tensor) -> torch.Tensor:
    """Dense activations, from the module's docstring's references and nothing else."""
    pre = (x - sae.b_dec if sae.spec.apply_b_dec_to_input else x) @ sae.W_enc + sae.b_enc
    match sae.spec.architecture:
        case "topk":
            out = torch.zeros_like(pre)
            for row, target in zip(pre, out, strict=True):
                chosen = torch.topk(row, sae.spec.k).indices
                target[chosen] = torch.relu(row[chosen])
            return out
        case "standard":
            return torch.clamp(pre, min=0)
        case "jumprelu" | "batchtopk":
            return torch.where(pre > sae.threshold, pre, 0)
        case "gated":
            linear = (x - sae.b_dec if sae.spec.apply_b_dec_to_input else x) @ sae.W_enc
            return (linear + sae.b_enc > 0) * torch.relu(linear * torch.exp(sae.r_mag) + sae.b_mag)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_every_family_follows_its_equation(random_sae, architecture, apply_b_dec):
    sae = random_sae(architecture, dtype=torch.float64, apply_b_dec_to_input=apply_b_dec)
    x = rows(dtype=torch.float64)
    acts, info = sae.encode(x)
    found, expected = dense(acts, 64), by_equation(sae, x)
    assert 0 < int((expected > 0).sum()) < expected.numel()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(sae.decode(acts, info), expected @ sae.W_dec + sae.b_dec)
    assert (acts.values > 0).all()
    for i in range(len(x)):  # strongest first
        values = acts.values[acts.offsets[i] : acts.offsets[i + 1]]
        assert (values.diff() <= 0).all()


def hand_sae(k: int, W_enc: torch.Tensor) -> Sae:
    d, m = W_enc.shape
    return Sae(SaeSpec("topk", d, m, k), W_enc, torch.zeros(m), torch.eye(m)[:, :d].contiguous(), torch.zeros(d)).checked()


def test_topk_with_ties_zeros_and_negatives():
    """Pre-activations are the inputs themselves: what is not positive is never active, and L0 may stay below k."""
    sae = hand_sae(2, torch.eye(4))
    acts, _ = sae.encode(torch.tensor([[3.0, 1.0, 2.0, -5.0], [0.0, 0.0, 0.0, 0.0], [-1.0, -2.0, 4.0, -3.0], [2.0, 2.0, 2.0, 1.0]]))
    assert acts.offsets.tolist() == [0, 2, 2, 3, 5]
    assert acts.features[:3].tolist() == [0, 2, 2]
    assert acts.values.tolist() == [3, 2, 4, 2, 2]
    assert set(acts.features[3:].tolist()) < {0, 1, 2}


def test_k_is_chosen_over_all_latents_and_bounds_l0(random_sae):
    sae = random_sae("topk", d_sae=256, k=7)
    acts, _ = sae.encode(rows(40))
    assert int(acts.offsets.diff().max()) <= 7


@given(
    n=st.integers(0, 5),
    groups=st.integers(1, 40),
    extra=st.integers(0, 3),
    k=st.integers(1, 9),
    coarse=st.booleans(),
    seed=st.integers(0, 99),
)
def test_topk_rows_equals_torch_topk(n, groups, extra, k, coarse, seed):
    """Values are equal in order; where values tie, the indices may differ but point at those values."""
    pre = torch.randn(n, groups * 32 + extra, generator=torch.Generator().manual_seed(seed))
    if coarse:
        pre = pre.round()  # many ties
    values, indices = topk_rows(pre, k)
    expected = torch.topk(pre, k, dim=-1)
    assert torch.equal(values, expected.values)
    assert torch.equal(pre.gather(1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())
    if not coarse:
        assert torch.equal(indices, expected.indices)


def test_topk_rows_of_infinities_and_strides():
    pre = torch.randn(6, 4096, generator=torch.Generator().manual_seed(0))
    pre[0, 5] = torch.inf
    pre[1] = -torch.inf
    assert torch.equal(topk_rows(pre, 16)[0], torch.topk(pre, 16).values)
    unordered = topk_rows(pre, 16, ordered=False)
    assert torch.equal(unordered[0].sort(1, descending=True).values, torch.topk(pre, 16).values)
    assert torch.equal(pre.gather(1, unordered[1]), unordered[0])
    assert torch.equal(topk_rows(pre.T.contiguous().T, 16)[0], torch.topk(pre, 16).values)


def test_rows_are_worked_on_in_chunks_without_a_seam(random_sae, monkeypatch):
    whole = {a: random_sae(a).encode(rows(50))[0] for a in ARCHITECTURES}
    monkeypatch.setattr("sae_explore.saes.sae._CHUNK_ELEMENTS", 1)  # 16 rows at a time
    for architecture, expected in whole.items():
        found, _ = random_sae(architecture).encode(rows(50))
        assert torch.equal(found.offsets, expected.offsets)
        torch.testing.assert_close(dense(found, 64), dense(expected, 64))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_rows_and_silent_rows(random_sae, architecture):
    sae = random_sae(architecture)
    acts, info = sae.encode(torch.zeros(0, 16))
    assert acts.offsets.tolist() == [0]
    assert sae.decode(acts, info).shape == (0, 16)
    silenced = replace(sae, W_enc=torch.zeros_like(sae.W_enc), b_enc=-torch.ones(64))
    acts, info = silenced.encode(rows(3))
    assert acts.offsets.tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(silenced.decode(acts, info), sae.b_dec.expand(3, -1))


def test_layer_norm_uses_the_unbiased_deviation_with_eps_outside_the_root(random_sae):
    sae, x = random_sae(dtype=torch.float64, normalise="layer_norm"), 3 * rows(dtype=torch.float64) + 2
    mean = x.sum(-1, keepdim=True) / 16
    deviation = ((x - mean).square().sum(-1, keepdim=True) / 15).sqrt()
    prepared, info = sae.prepare(x)
    torch.testing.assert_close(prepared, (x - mean) / (deviation + 1e-5))
    acts, _ = sae.encode(x)
    z = by_equation(sae, (x - mean) / (deviation + 1e-5))
    torch.testing.assert_close(sae.decode(acts, info), (z @ sae.W_dec + sae.b_dec) * deviation + mean)
    torch.testing.assert_close(sae.target(x), x)


def test_constant_norm_and_centring(random_sae):
    x = rows(dtype=torch.float64) + 1
    sae = random_sae(dtype=torch.float64, normalise="constant_norm")
    prepared, info = sae.prepare(x)
    torch.testing.assert_close(prepared.norm(dim=-1), torch.full((12,), 4.0, dtype=torch.float64))
    acts, _ = sae.encode(x)
    torch.testing.assert_close(sae.decode(acts, info), (dense(acts, 64) @ sae.W_dec + sae.b_dec) * x.norm(dim=-1, keepdim=True) / 4)
    centring = random_sae(dtype=torch.float64, center_input=True)
    centred = x - x.mean(-1, keepdim=True)
    torch.testing.assert_close(dense(centring.encode(x)[0], 64), by_equation(centring, centred))
    torch.testing.assert_close(centring.target(x), centred)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
def test_folding_decoder_norms_scales_activations_and_keeps_reconstructions(random_sae, architecture):
    sae, x = random_sae(architecture, dtype=torch.float64), rows(dtype=torch.float64)
    folded = sae.fold_decoder_norms()
    (before, info), (after, _) = sae.encode(x), folded.encode(x)
    torch.testing.assert_close(dense(after, 64), dense(before, 64) * sae.W_dec.norm(dim=-1))
    torch.testing.assert_close(folded.decode(after, info), sae.decode(before, info))
    torch.testing.assert_close(folded.W_dec.norm(dim=-1), torch.ones(64, dtype=torch.float64))
    assert folded.spec.decoder_norms_folded


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_folding_is_refused_where_it_would_change_the_selection(random_sae, architecture):
    with pytest.raises(SaeError, match="must not be folded"):
        random_sae(architecture).fold_decoder_norms()


@pytest.mark.parametrize("normalise", ["none", "layer_norm"])
def test_shared_by_threads_without_state(random_sae, normalise):
    """Each of many calls at once gets its own answer, and the object holds nothing new afterwards."""
    sae = random_sae(normalise=normalise, d_sae=512)
    inputs = [(1 + i) * rows(seed=i) for i in range(12)]

    def rebuilt(x):
        acts, info = sae.encode(x)
        return sae.decode(acts, info)

    alone, before = [rebuilt(x) for x in inputs], dict(vars(sae))
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(rebuilt, inputs * 4))
    for i, found in enumerate(together):
        assert torch.equal(found, alone[i % 12])
    assert vars(sae).keys() == before.keys()
    assert all(vars(sae)[name] is value for name, value in before.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_enc": torch.zeros(64, 16)}, r"W_enc has shape \(64, 16\), expected \(16, 64\)"),
        ({"b_dec": torch.zeros(64)}, "b_dec has shape"),
        ({"W_dec": torch.full((64, 16), torch.nan)}, "W_dec holds values that are not finite"),
        ({"threshold": None}, "no threshold, which a jumprelu SAE needs"),
        ({"spec": SaeSpec("topk", 16, 64)}, "k is None"),
        ({"spec": SaeSpec("topk", 16, 64, 65)}, "k is 65, but must be between 1 and the number of latents, 64"),
        ({"spec": SaeSpec("dense", 16, 64)}, "architecture 'dense' is not supported; known: topk"),
        ({"spec": SaeSpec("standard", 16, 64, normalise="batch")}, "normalisation 'batch' is not supported; known: none"),
    ],
)
def test_wrong_weights_are_named(random_sae, change, message):
    with pytest.raises(SaeError, match=message):
        replace(random_sae("jumprelu"), **change).checked()


def test_reconstruction_stats_over_batches_equal_the_definition(random_sae):
    sae, x = random_sae(dtype=torch.float64), rows(30, dtype=torch.float64)
    acts, info = sae.encode(x)
    x_hat, stats = sae.decode(acts, info), ReconstructionStats(16, 64)
    for part in (slice(0, 7), slice(7, 30)):
        stats.add(x[part], x_hat[part], sae.encode(x[part])[0])
    error, spread = ((x - x_hat) ** 2).sum(), ((x - x.mean(0)) ** 2).sum()
    assert stats.explained_variance == pytest.approx(float(1 - error / spread))
    assert stats.l0 == pytest.approx(float((dense(acts, 64) > 0).sum() / 30))
    assert stats.dead == int((dense(acts, 64) == 0).all(0).sum())
    assert stats.tokens == 30


def test_a_jumprelu_latent_fires_above_its_threshold_and_not_at_it():
    spec = SaeSpec("jumprelu", 3, 3)
    sae = Sae(spec, torch.eye(3), torch.zeros(3), torch.eye(3), torch.zeros(3), threshold=torch.ones(3)).checked()
    acts, _ = sae.encode(torch.tensor([[1.0, 1.5, 0.5]]))
    assert (acts.features.tolist(), acts.values.tolist()) == ([1], [1.5])


def test_reconstruction_stats_are_exact_far_from_zero():
    """Where a residual's offset is a thousand times its spread, sums in fp32 would leave no digit."""
    x = 1_000 + rows(2_000)
    x_hat, stats = x + 0.5 * rows(2_000, seed=1), ReconstructionStats(16, 64)
    nothing = SparseActs(torch.zeros(2_001, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    for a, b in zip(x.split(300), x_hat.split(300), strict=True):
        stats.add(a, b, nothing)
    x, x_hat = x.double(), x_hat.double()
    expected = 1 - float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())
    assert stats.explained_variance == pytest.approx(expected, abs=1e-6)


def test_a_long_text_is_encoded_in_chunks_with_the_same_answer(random_sae, monkeypatch):
    sae, x, seen, own = random_sae(), rows(100), [], Sae.pre_activations
    whole, _ = sae.encode(x)
    monkeypatch.setattr(sae_module, "_CHUNK_ELEMENTS", 20 * 64)
    monkeypatch.setattr(Sae, "pre_activations", lambda self, part: seen.append(len(part)) or own(self, part))
    parts, _ = sae.encode(x)
    assert seen == [20] * 5
    torch.testing.assert_close(dense(parts, 64), dense(whole, 64))
