"""Attribution against finite differences, real ablations with hooks, and a model whose rest is linear, where the estimate is exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lab_checks import TEXT, dense, hooked_logits, state_of, units

from sae_explore.errors import InputError
from sae_explore.features.lens import lens_matrix
from sae_explore.models.model_structure import with_modules
from sae_explore.whatif.attribution import attribute
from sae_explore.whatif.edits import CHECKED, Edit

pytest_plugins = ["lab_fixtures"]
CASES = [
    ("gpt2", "blocks.1.hook_resid_post", {}),
    ("gpt2", "blocks.3.hook_resid_post", {"sae": "standard", "center_input": True}),
    ("llama", "blocks.2.hook_resid_pre", {"normalise": "layer_norm"}),
]
AT = 8


def measured(logits: np.ndarray, target: int, foil: int | None) -> float:
    return float(logits[target] - (logits.mean() if foil is None else logits[foil]))


def with_delta(lab, reading, delta: np.ndarray, at: int = AT) -> np.ndarray:
    """Logits (vocab,) at a position when this is added to the residuals of the text."""

    def add(x):
        out = x.clone()
        out[0, reading.lead :] += torch.from_numpy(delta).float()
        return out

    return hooked_logits(lab.full, reading.ids, lab.tracer.model.hook, add)[reading.lead + at].double().numpy()


def direction(lab, reading, acts, feature: int, positions) -> np.ndarray:
    """(n, d) what the feature adds to the residual at these positions."""
    rows = np.zeros((len(reading), 32))
    weights = (acts[:, feature, None] * units(lab, reading))[positions]
    rows[positions] = weights * lab.tracer.sae.W_dec[feature].double().numpy()
    return rows


@pytest.mark.parametrize(("kind", "hook", "options"), CASES, ids=lambda c: str(c))
@pytest.mark.parametrize("foil", [None, 77])
def test_estimates_are_slopes_and_ablations_are_real(make_lab, kind, hook, options, foil):
    lab = make_lab(kind, hook, **options)
    reading = lab.read(TEXT)
    acts = dense(lab, reading)
    found = attribute(lab, reading, AT, foil=foil)
    clean = with_delta(lab, reading, np.zeros((len(reading), 32)))
    assert found.target == clean.argmax()
    assert found.value == pytest.approx(measured(clean, found.target, foil), rel=1e-4)
    assert found.probability == pytest.approx(float(np.exp(clean[found.target] - np.logaddexp.reduce(clean))), rel=1e-4)
    firing = np.flatnonzero(acts[: AT + 1].max(0) > 0)
    assert sorted(found.features) == firing.tolist()
    scale = np.abs(found.estimate).max()
    for k in [*range(4), len(firing) - 1]:
        feature, step = int(found.features[k]), 0.02
        whole = direction(lab, reading, acts, feature, slice(0, AT + 1))
        ends = [measured(with_delta(lab, reading, s * whole), found.target, foil) for s in (step, -step)]
        assert found.estimate[k] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=0.01 * scale)
        column = acts[: AT + 1, feature]
        assert (found.activation[k], found.strongest[k]) == (pytest.approx(column.max(), rel=1e-4), column.argmax())
        if k < CHECKED:
            off = with_delta(lab, reading, -whole)
            assert found.ablation[k] == pytest.approx(measured(clean, found.target, foil) - measured(off, found.target, foil), abs=1e-3)
    np.testing.assert_array_equal(np.isnan(found.ablation), np.arange(len(firing)) >= CHECKED)
    assert (np.diff(np.abs(found.estimate)) <= 1e-9).all()


def test_sums_and_pairs_agree_and_nothing_after_the_position_counts(make_lab):
    lab = make_lab()
    reading = lab.read(TEXT)
    acts = dense(lab, reading)
    found = attribute(lab, reading, AT)
    assert {(p, f) for p, f in zip(found.pair_position, found.pair_feature, strict=True)} == set(
        zip(*np.nonzero(acts[: AT + 1]), strict=True)
    )
    for k, feature in enumerate(found.features):
        own = found.pair_feature == feature
        assert found.estimate[k] == pytest.approx(found.pair_estimate[own].sum(), rel=1e-4, abs=1e-6)
        assert found.here[k] == pytest.approx(found.pair_estimate[own & (found.pair_position == AT)].sum(), rel=1e-4, abs=1e-6)
    shorter = lab.read("".join(reading.tokens.texts[: AT + 1]))
    assert len(shorter) == AT + 1
    alone = attribute(lab, shorter, AT)
    np.testing.assert_array_equal(alone.features, found.features)
    np.testing.assert_allclose(alone.estimate, found.estimate, rtol=1e-3, atol=1e-5)


def test_features_error_and_bias_make_up_the_whole_residual(make_lab):
    lab = make_lab(sae="standard")
    reading = lab.read(TEXT)
    found = attribute(lab, reading, AT)
    step, n = 0.02, len(reading)
    counted = reading.residual[1:].double().numpy() * (np.arange(n) <= AT)[:, None]
    bias = np.repeat(lab.tracer.sae.b_dec.double().numpy()[None], n, 0) * (np.arange(n) <= AT)[:, None]

    def slope(rows):
        ends = [measured(with_delta(lab, reading, s * rows), found.target, None) for s in (step, -step)]
        return (ends[0] - ends[1]) / (2 * step)

    whole = slope(counted)
    assert found.estimate.sum() + found.error + slope(bias) == pytest.approx(whole, abs=0.02 * max(1, np.abs(found.estimate).max()))


@pytest.mark.parametrize("foil", [None, 12])
def test_where_the_rest_is_linear_the_estimate_is_the_ablation(make_lab, foil):
    """After the last block, with the final norm taken out, the logits are linear in the residual."""
    lab = make_lab("gpt2", "blocks.3.hook_resid_post", sae="standard")
    linear = replace(lab, full=with_modules(lab.full, {"transformer.ln_f": torch.nn.Identity()}))
    found = attribute(linear, linear.read(TEXT), AT, foil=foil, checked=64)
    assert np.abs(found.estimate).max() > 0.5
    np.testing.assert_allclose(found.ablation, found.estimate, atol=2e-3)
    np.testing.assert_allclose(found.here, found.estimate, atol=1e-6)  # nothing moves between positions any more


@pytest.mark.parametrize(("kind", "foil"), [("gpt2", None), ("gpt2", 12), ("llama", None)])
def test_the_direct_effect_is_the_lens_in_this_tokens_units(make_lab, kind, foil):
    lab = make_lab(kind)
    reading = lab.read(TEXT)
    found = attribute(lab, reading, AT, foil=foil)
    matrix = lens_matrix(lab.tracer.model.unembedding, "folded").double().numpy()
    column = matrix[:, found.target] - (0 if foil is None else matrix[:, foil])
    seen = []
    norm = lab.full.transformer.ln_f if kind == "gpt2" else lab.full.model.norm
    handle = norm.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0, reading.lead + AT].double().numpy()))
    lab.full(input_ids=reading.ids, use_cache=False)
    handle.remove()
    size = seen[0].std() if kind == "gpt2" else np.sqrt((seen[0] ** 2).mean())
    acts = dense(lab, reading)[AT]
    expected = acts[found.features] * (lab.tracer.sae.W_dec.double().numpy()[found.features] @ column) / size
    np.testing.assert_allclose(found.direct, expected, rtol=1e-3, atol=1e-4)
    assert np.abs(found.direct).max() > 0.1


def test_a_chosen_target_and_positions_at_both_ends(make_lab):
    lab = make_lab()
    reading = lab.read(TEXT)
    last = attribute(lab, reading, len(reading) - 1, target=42, checked=2)
    assert (last.target, last.foil, last.position) == (42, None, len(reading) - 1)
    assert (~np.isnan(last.ablation)).sum() == 2
    first = attribute(lab, reading, 0)
    assert set(first.pair_position) == {0}


def test_a_token_without_features_has_an_empty_list(make_lab):
    lab = make_lab(median_norm=1e-9)  # every token counts as a sink
    found = attribute(lab, lab.read(TEXT), AT)
    assert len(found.features) == len(found.pair_feature) == 0
    assert found.error == 0
    assert 0 < found.probability < 1


def test_what_cannot_be_asked_is_named(make_lab):
    lab = make_lab()
    reading = lab.read(TEXT)
    predicted = attribute(lab, reading, 3, checked=0).target
    for options, said in (
        ({"position": len(reading)}, f"tokens 0 to {len(reading) - 1}"),
        ({"position": 3, "target": 600}, "target 600 is no token; ids run from 0 to 599"),
        ({"position": 3, "foil": -1}, "foil -1 is no token"),
        ({"position": 3, "target": 5, "foil": 5}, "the same"),
        ({"position": 3, "foil": predicted}, "is the predicted one itself"),
    ):
        with pytest.raises(InputError, match=said):
            attribute(lab, reading, **options)


def test_nothing_is_left_on_the_model(make_lab):
    lab = make_lab("llama")
    before = state_of(lab.full)
    reading = lab.read(TEXT)
    found = attribute(lab, reading, AT)
    assert state_of(lab.full) == before
    effect = lab.effect(reading, [Edit(int(found.features[0]), "ablate")])
    assert effect.kl[AT] > 0
