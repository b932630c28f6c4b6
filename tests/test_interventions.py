"""Edited features against a plain forward pass of the whole model with torch's own hooks."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from lab_checks import TEXT, dense, hooked_logits, state_of, strongest_features, units
from transformers import Gemma2Config, Gemma2ForCausalLM

from sae_explore.errors import InputError
from sae_explore.models import next_token
from sae_explore.models.next_token import states_from
from sae_explore.types import HookPoint
from sae_explore.whatif.edits import CONTROLS, MAX_EDITS, TOP, Edit
from sae_explore.whatif.interventions import new_activations, random_like
from sae_explore.whatif.patching import align, patched, patched_maximum

pytest_plugins = ["lab_fixtures"]

CASES = [
    ("gpt2", "blocks.1.hook_resid_post", {}),
    ("gpt2", "blocks.0.hook_resid_pre", {"sae": "standard"}),
    ("gpt2", "blocks.3.hook_resid_post", {"sae": "standard", "center_input": True}),
    ("llama", "blocks.2.hook_resid_pre", {"normalise": "layer_norm"}),
    ("llama", "blocks.1.hook_resid_post", {"normalise": "constant_norm", "bos": False}),
]


def expected_activations(old: np.ndarray, edit: Edit) -> np.ndarray:
    new = old.copy()
    for p in range(len(old)) if edit.positions is None else edit.positions:
        new[p] = {"ablate": 0.0, "set": edit.amount, "scale": old[p] * edit.amount}[edit.mode]
    return new


def reference(lab, reading, edits):
    """(log-probabilities before, after), (n, vocab) in float64."""
    acts = dense(lab, reading)
    delta = np.zeros((len(reading), 32))
    for edit in edits:
        change = (expected_activations(acts[:, edit.feature], edit) - acts[:, edit.feature]) * reading.counted
        delta += change[:, None] * units(lab, reading) * lab.tracer.sae.W_dec[edit.feature].double().numpy()

    def add(x):
        out = x.clone()
        out[0, reading.lead :] += torch.from_numpy(delta).float()
        return out

    logits = [hooked_logits(lab.full, reading.ids, lab.tracer.model.hook, f)[reading.lead :] for f in (lambda x: x, add)]
    return [torch.log_softmax(row.double(), -1).numpy() for row in logits]


@pytest.mark.parametrize(("kind", "hook", "options"), CASES, ids=lambda c: str(c))
@pytest.mark.parametrize("mode", ["ablate", "set", "scale"])
def test_the_effect_equals_forward_hooks(make_lab, kind, hook, options, mode):
    lab = make_lab(kind, hook, **options)
    reading = lab.read(TEXT)
    first, second = strongest_features(lab, reading, 2)
    edits = [Edit(first, mode, 2.5), Edit(second, mode, 1.7, positions=(3, 5, 8))]
    before, after = reference(lab, reading, edits)
    effect = lab.effect(reading, edits)
    kl = (np.exp(before) * (before - after)).sum(1)
    assert kl.max() > 1e-2
    np.testing.assert_allclose(effect.kl, kl, rtol=1e-3, atol=2e-5)
    following = reading.tokens.ids[1:]
    for found, log_p in ((effect.loss_before, before), (effect.loss_after, after)):
        np.testing.assert_allclose(found[:-1], -log_p[np.arange(len(following)), following], rtol=1e-4, atol=1e-4)
        assert np.isnan(found[-1])
    gain = np.exp(after) - np.exp(before)
    for shift, score in ((effect.up, gain), (effect.down, -gain), (effect.likely, np.exp(before)), (effect.likely_after, np.exp(after))):
        rows = np.arange(len(reading))[:, None]
        np.testing.assert_allclose(score[rows, shift.ids], -np.sort(-score, 1)[:, :TOP], atol=1e-5)
        np.testing.assert_allclose(shift.before, np.exp(before)[rows, shift.ids], atol=1e-5)
        np.testing.assert_allclose(shift.after, np.exp(after)[rows, shift.ids], atol=1e-5)


def test_only_the_feature_changes_and_the_saes_error_stays(make_lab):
    lab = make_lab(sae="standard")
    reading, sae = lab.read(TEXT), lab.tracer.sae
    (feature,) = strongest_features(lab, reading, 1)
    acts = torch.from_numpy(dense(lab, reading))
    without = acts.clone()
    without[:, feature] = 0
    error = reading.residual[1:] - (acts @ sae.W_dec + sae.b_dec)
    reads = []
    lab_effect = lab.states(reading, -acts[:, feature, None, None].permute(1, 0, 2) * sae.W_dec[feature])
    expected = hooked_logits(lab.full, reading.ids, lab.tracer.model.hook,
                             lambda x: reads.append(x) or torch.cat([x[:, :1], (without @ sae.W_dec + sae.b_dec + error)[None]], 1))  # fmt: skip
    torch.testing.assert_close(lab_effect.logits(0, len(reading) + 1)[0], expected, rtol=1e-3, atol=1e-3)
    effect = lab.effect(reading, [Edit(feature, "ablate")])
    np.testing.assert_array_equal(effect.changed, acts[:, feature].numpy() > 0)
    size = acts[:, feature] * sae.W_dec[feature].norm() / reading.residual[1:].norm(dim=1)
    np.testing.assert_allclose(effect.size, size.numpy(), rtol=1e-4)


def test_a_silent_feature_and_one_left_as_it_is_change_nothing(make_lab):
    lab = make_lab()
    reading = lab.read(TEXT)
    acts = dense(lab, reading)
    silent, loud = int(np.flatnonzero(acts.max(0) == 0)[0]), strongest_features(lab, reading, 1)[0]
    for edit in (Edit(silent, "ablate"), Edit(silent, "scale", 3.0), Edit(loud, "scale", 1.0), Edit(loud, "set", 9.0, positions=())):
        effect = lab.effect(reading, [edit])
        assert not effect.changed.any()
        assert effect.kl.max() < 1e-6
        assert effect.control.max() < 1e-6
        np.testing.assert_allclose(effect.loss_after, effect.loss_before, atol=1e-5)


def test_nothing_changes_before_the_first_edited_token(make_lab):
    lab = make_lab("llama")
    effect = lab.effect(lab.read(TEXT), [Edit(7, "set", 8.0, positions=(6,))])
    np.testing.assert_array_equal(np.flatnonzero(effect.changed), [6])
    assert effect.kl[:6].max() < 1e-6
    assert effect.kl[6] > 1e-3
    assert effect.control[:6].max() < 1e-6
    assert effect.control[6] > 1e-3


def test_special_tokens_sinks_and_a_first_token_without_bos_are_never_changed(make_lab):
    text = "one map<|endoftext|> two lakes"
    plain = make_lab().read(text)
    special = plain.tokens.special
    assert special.sum() == 1
    norms = plain.residual[1:].norm(dim=1).numpy()
    lab = make_lab(median_norm=float(np.sort(norms)[-3]) / 5 * 1.0001)
    reading = lab.read(text)
    np.testing.assert_array_equal(reading.counted, ~special & (norms <= np.sort(norms)[-3] * 1.0001))
    assert 0 < reading.counted.sum() < len(reading) - 1
    np.testing.assert_array_equal(lab.effect(reading, [Edit(3, "set", 5.0)]).changed, reading.counted)
    first = make_lab(bos=False).read(text)
    assert first.lead == 0
    np.testing.assert_array_equal(first.counted, np.r_[False, ~special[1:]])


def test_controls_are_the_same_change_along_other_directions(make_lab):
    lab = make_lab()
    reading = lab.read(TEXT)
    rows = lab.rows_of([4, 9])
    drawn = random_like(rows, 5)
    torch.testing.assert_close(drawn.norm(dim=1), rows.norm(dim=1))
    assert not torch.allclose(drawn, random_like(rows, 6), atol=0.1)
    found = lab.effect(reading, [Edit(4, "set", 6.0)], seed=11).control
    kls = []
    for i in range(CONTROLS):
        direction = random_like(lab.rows_of([4]), 11 + i)[0]
        change = 6.0 - dense(lab, reading)[:, 4]
        logits = [
            hooked_logits(lab.full, reading.ids, lab.tracer.model.hook, f)[1:]
            for f in (lambda x: x, lambda x, c=change, d=direction: torch.cat([x[:, :1], x[:, 1:] + torch.from_numpy(c)[:, None] * d], 1))
        ]
        before, after = (torch.log_softmax(row, -1) for row in logits)
        kls.append((before.exp() * (before - after)).sum(-1).numpy())
    np.testing.assert_allclose(found, np.mean(kls, 0), rtol=1e-3, atol=1e-5)


def test_logits_in_parts_are_the_logits(make_lab, monkeypatch):
    lab = make_lab()
    reading = lab.read(TEXT)
    whole = lab.effect(reading, [Edit(5, "set", 4.0)])
    monkeypatch.setattr(next_token, "_LOGITS_AT_ONCE", 600 * 4 * 3)
    parts = lab.effect(reading, [Edit(5, "set", 4.0)])
    for name in ("kl", "control", "loss_before", "loss_after"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(parts.likely.ids, whole.likely.ids)


def test_what_a_model_does_after_its_unembedding_is_done_too():
    """Gemma 2 caps its logits softly."""
    torch.manual_seed(0)
    full = Gemma2ForCausalLM(Gemma2Config(vocab_size=90, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
                                          num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.1, initializer_range=0.4,
                                          sliding_window=8)).eval()  # fmt: skip
    ids = torch.arange(1, 12)[None]
    with torch.inference_mode():
        expected = full(input_ids=ids, use_cache=False).logits
        residual = full(input_ids=ids, output_hidden_states=True).hidden_states[2]
        states = states_from(full, HookPoint(1), ids, residual)
        assert 0.05 < expected.abs().max() <= 0.1
        torch.testing.assert_close(torch.cat([states.logits(0, 4), states.logits(4, 11)], 1), expected)


def test_a_window_of_a_long_text_has_the_values_of_the_store(make_lab, corpus_texts):
    lab = make_lab()
    text = " ".join(corpus_texts[:2])
    trace = lab.tracer.trace(text)
    n = len(trace.tokens)
    assert n > 2 * lab.limit
    for position in (0, lab.limit - 1, lab.limit, n // 2, n - 1):
        start, stop = lab.window(n, position)
        assert start <= position < stop <= start + lab.limit
        reading = lab.read(text, start, stop)
        assert reading.tokens.texts == trace.tokens.texts[start:stop]
        for found, stored in zip(reading.rows.row(position - start), trace.rows.row(position), strict=True):
            np.testing.assert_allclose(found, stored, rtol=1e-4)
    assert lab.window(20, 7) == (0, 20)


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ([], "0 changes at once; allowed are 1 to"),
        ([Edit(i, "ablate") for i in range(MAX_EDITS + 1)], "9 changes at once"),
        ([Edit(1, "ablate"), Edit(1, "set")], "changed twice"),
        ([Edit(64, "ablate")], "no feature 64; this SAE has features 0 to 63"),
        ([Edit(-1, "ablate")], "no feature -1"),
        ([Edit(1, "flip")], "'flip' is not known; allowed are ablate, set, scale, patch"),
        ([Edit(1, "set", float("nan"))], "not finite"),
        ([Edit(1, "ablate", positions=(99,))], "the text has tokens 0 to"),
        ([Edit(1, "patch", positions=(1, 2), values=(1.0,))], "1 values were given for 2 positions"),
    ],
)
def test_edits_that_cannot_be_made_are_named(make_lab, edits, said):
    lab = make_lab()
    with pytest.raises(InputError, match=said):
        lab.effect(lab.read(TEXT), edits)


def test_texts_that_cannot_be_read_are_named(make_lab):
    lab = make_lab()
    with pytest.raises(InputError, match="limit here is 127"):
        lab.read("a b " * 200)
    for empty in ("", " \n"):
        with pytest.raises(InputError, match="empty"):
            lab.read(empty)


def test_many_at_once_get_their_own_answers_and_leave_nothing_behind(make_lab):
    lab = make_lab("llama")
    before = state_of(lab.full)
    reading = lab.read(TEXT)

    def one(i):
        return lab.effect(lab.read(TEXT), [Edit(i, "set", 3.0 + i)]).kl

    alone = [one(i) for i in range(6)]
    with ThreadPoolExecutor(4) as pool:
        for i, found in enumerate(pool.map(one, list(range(6)) * 2)):
            np.testing.assert_array_equal(found, alone[i % 6])
    assert not np.allclose(alone[0], alone[1])
    assert state_of(lab.full) == before
    np.testing.assert_array_equal(reading.residual, lab.read(TEXT).residual)


# ---- patching ----


def test_texts_are_aligned_by_what_they_share_and_from_the_right_where_they_differ():
    a, b = np.array([1, 2, 3, 4, 9, 5]), np.array([1, 2, 7, 8, 3, 4, 5])
    assert align(a, b) == {0: 0, 1: 1, 4: 2, 5: 3, 6: 5}
    assert align(np.array([1, 10, 11, 2]), np.array([1, 20, 2])) == {0: 0, 1: 2, 2: 3}  # the last of two differing tokens
    assert align(a, a) == {i: i for i in range(6)}
    assert align(np.array([1]), np.array([2, 3])) == {1: 0}
    assert align(np.array([], int), b) == {}


def test_a_patch_gives_the_activations_of_the_other_text(make_lab):
    lab = make_lab()
    source, target = lab.read("The old river shows three maps."), lab.read("The old map shows three rivers.")
    acts = dense(lab, source)
    feature = strongest_features(lab, source, 1)[0]
    pairs = align(source.tokens.ids, target.tokens.ids)
    assert len(pairs) > 4
    new = new_activations(target, patched(source, feature, pairs))
    expected = dense(lab, target)[:, feature].copy()
    for p, q in pairs.items():
        expected[p] = acts[q, feature]
    np.testing.assert_allclose(new, expected, rtol=1e-4)
    maximum = new_activations(target, patched_maximum(source, feature, [2, 3]))
    np.testing.assert_allclose(maximum[2:4], acts[:, feature].max(), rtol=1e-4)
    effect = lab.effect(target, [patched(source, feature, pairs)])
    one_by_one = lab.effect(target, [replace(patched(source, feature, pairs), positions=(p,), values=(float(expected[p]),))
                                     for p in list(pairs)[:1]])  # fmt: skip
    assert effect.kl.max() > one_by_one.kl.max()


def test_a_text_patched_into_itself_stays_as_it_was(make_lab):
    lab = make_lab()
    reading = lab.read(TEXT)
    edits = [patched(reading, f, {i: i for i in range(len(reading))}) for f in strongest_features(lab, reading, 3)]
    effect = lab.effect(reading, edits)
    assert not effect.changed.any()
    assert effect.kl.max() < 1e-6


def test_a_patch_from_a_position_that_is_not_there_is_refused(make_lab):
    reading = make_lab().read("The old map")
    with pytest.raises(InputError, match=f"tokens 0 to {len(reading) - 1}"):
        patched(reading, 3, {0: len(reading)})
