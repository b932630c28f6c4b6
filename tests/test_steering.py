"""Steered continuations against transformers' own generation and plain forward passes with hooks, token by token."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from lab_checks import TEXT, hooked_logits, state_of

from sae_explore.errors import InputError
from sae_explore.models.tokens import Vocabulary
from sae_explore.whatif.edits import MAX_NEW_TOKENS, Push, Sampling
from sae_explore.whatif.steering import _Writer, continuations, draw

pytest_plugins = ["lab_fixtures"]
GREEDY = Sampling(temperature=0)


def run(lab, pushes, n=12, **options):
    """([ids without], [ids with], text without, text with)."""
    steps = list(continuations(lab, options.pop("prompt", TEXT), pushes, new_tokens=n, **options))
    ids = [[s.ids[i] for s in steps if s.ids[i] is not None] for i in (0, 1)]
    return *ids, "".join(s.plain for s in steps), "".join(s.steered for s in steps)


def reference(lab, pushes, n, *, on_prompt=True, text=TEXT):
    """Greedy continuation with hooks and without a cache."""
    reading = lab.read(text)
    sae, ids, wanted = lab.tracer.sae, reading.ids, [False] * reading.lead + (reading.counted & on_prompt).tolist()
    found = []
    for _ in range(n):

        def push(x):
            out = x.clone()
            for t in np.flatnonzero(wanted):
                scale = 1.0
                if sae.spec.normalise == "layer_norm":
                    scale = float(x[0, t].std() + 1e-5)
                for p in pushes:
                    out[0, t] += p.amount * scale * sae.W_dec[p.feature]
            return out

        found.append(int(hooked_logits(lab.full, ids, lab.tracer.model.hook, push)[-1].argmax()))
        ids = torch.cat([ids, torch.tensor([[found[-1]]])], 1)
        wanted.append(True)
        if lab.tracer.model.vocabulary.special[found[-1]]:
            return found[:-1]
    return found


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_left_alone_it_writes_what_transformers_writes(make_lab, kind):
    lab = make_lab(kind)
    reading = lab.read(TEXT)
    expected = lab.full.generate(
        reading.ids, attention_mask=torch.ones_like(reading.ids), do_sample=False, max_new_tokens=12, pad_token_id=0
    )[0, reading.ids.shape[1] :].tolist()
    plain, steered, text, other = run(lab, [Push(3, 0.0)], sampling=GREEDY)
    assert plain == steered == [i for i in expected if i]
    assert text == other


@pytest.mark.parametrize(
    ("kind", "hook", "options", "on_prompt"),
    [
        ("gpt2", "blocks.1.hook_resid_post", {}, True),
        ("gpt2", "blocks.1.hook_resid_post", {}, False),
        ("gpt2", "blocks.3.hook_resid_post", {"sae": "standard"}, True),
        ("llama", "blocks.2.hook_resid_pre", {"normalise": "layer_norm"}, True),
    ],
)
def test_steered_it_writes_what_hooks_give(make_lab, kind, hook, options, on_prompt):
    lab = make_lab(kind, hook, **options)
    pushes = [Push(5, 6.0), Push(9, -4.0)]
    plain, steered, *_ = run(lab, pushes, sampling=GREEDY, on_prompt=on_prompt)
    assert steered == reference(lab, pushes, 12, on_prompt=on_prompt)
    assert plain == reference(lab, [], 12)
    assert plain != steered


def test_pushing_the_prompt_makes_a_difference(make_lab):
    lab = make_lab()
    assert run(lab, [Push(5, 6.0)], sampling=GREEDY)[1] != run(lab, [Push(5, 6.0)], sampling=GREEDY, on_prompt=False)[1]


def test_sinks_and_special_tokens_are_not_pushed(make_lab):
    sinks = make_lab(median_norm=1e-9)
    plain, steered, *_ = run(sinks, [Push(5, 6.0)], sampling=GREEDY)
    assert plain == steered
    lab = make_lab()
    pushes = [Push(5, 6.0)]
    assert run(lab, pushes, sampling=GREEDY, prompt="one<|endoftext|>two")[1] == reference(lab, pushes, 12, text="one<|endoftext|>two")


def test_a_seed_gives_the_same_again_and_another_seed_something_else(make_lab):
    lab = make_lab()
    once, again, other = (run(lab, [Push(5, 4.0)], sampling=Sampling(1.0, 1.0, seed)) for seed in (3, 3, 4))
    assert once == again
    assert once[0] != other[0]
    assert once[1] != other[1]
    zero = run(lab, [Push(5, 0.0)], sampling=Sampling(1.0, 0.9, 3))
    assert zero[0] == zero[1]
    assert zero[2] == zero[3]


def test_tokens_are_drawn_by_their_probabilities():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 40)) * 2
    for temperature, top_p in ((1.0, 1.0), (0.5, 0.9), (1.7, 0.3), (1.0, 1e-9)):
        p = np.exp(logits / temperature)
        p /= p.sum(1, keepdims=True)
        for u in rng.random(30):
            expected = []
            for row in p:
                order = np.argsort(-row)
                kept = order[: 1 + np.searchsorted(np.cumsum(row[order]), top_p - 1e-12)]
                shares = np.cumsum(row[kept]) / row[kept].sum()
                expected.append(int(kept[np.searchsorted(shares, u, side="right")]))
            assert draw(torch.from_numpy(logits), Sampling(temperature, top_p), float(u)) == expected
    assert draw(torch.from_numpy(logits), GREEDY, 0.999) == logits.argmax(1).tolist()
    assert draw(torch.from_numpy(logits), Sampling(1.0, 1.0), 1.0 - 1e-16) == logits.argmin(1).tolist()


def test_characters_appear_when_their_last_byte_is_there(gpt2_model, byte_tokenizer):
    text = "a 🦜 — é"
    ids = gpt2_model.tokenize(text).ids.tolist()
    assert len(ids) > len(text)
    writer = _Writer(gpt2_model.vocabulary)
    said = [writer.add(i, last=False) for i in ids]
    assert "".join(said) == text
    assert "" in said
    assert all("\ufffd" not in s for s in said)
    cut = _Writer(gpt2_model.vocabulary)
    parrot = gpt2_model.tokenize("🦜").ids.tolist()
    assert "".join(cut.add(i, last=i == parrot[-2]) for i in parrot[:-1]) == "\ufffd"  # the end comes before the character is whole


def test_the_texts_are_those_of_the_tokens(make_lab):
    lab = make_lab()
    plain, steered, *texts = run(lab, [Push(5, 4.0)], n=30, sampling=Sampling(1.5, 1.0, 1))
    for ids, text in zip((plain, steered), texts, strict=True):
        data = b"".join(lab.tracer.model.vocabulary.bytes_of(i) for i in ids)
        assert text == data.decode("utf-8", "replace")


def test_it_ends_at_a_special_token(make_lab):
    lab = make_lab()
    plain, steered, *_ = run(lab, [Push(5, 6.0)], sampling=GREEDY)
    stop = next(i for i in plain if i not in steered)
    at = plain.index(stop)
    model = lab.tracer.model
    special = model.vocabulary.special.copy()
    special[stop] = True
    other = replace(
        lab,
        tracer=replace(lab.tracer, model=replace(model, vocabulary=Vocabulary(model.vocabulary.blob, model.vocabulary.offsets, special))),
    )
    steps = list(continuations(other, TEXT, [Push(5, 6.0)], sampling=GREEDY, new_tokens=12))
    assert [s.ids[0] for s in steps] == plain[:at] + [None] * (12 - at)
    assert [s.ended[0] for s in steps] == [i >= at for i in range(12)]
    assert [s.ids[1] for s in steps] == steered
    assert all(s.plain == "" for s in steps[at:])


def test_it_comes_token_by_token_and_can_be_stopped(make_lab):
    lab = make_lab()
    before = state_of(lab.full)
    steps = continuations(lab, TEXT, [Push(5, 4.0)], sampling=GREEDY)
    first = list(itertools.islice(steps, 3))
    steps.close()
    assert next(steps, None) is None
    assert [s.ids[0] for s in first] == run(lab, [Push(5, 4.0)], n=3, sampling=GREEDY)[0]
    assert state_of(lab.full) == before
    assert not torch.is_inference_mode_enabled()


def test_visitors_at_once_get_their_own_texts(make_lab):
    lab = make_lab("llama")

    def one(i):
        return run(lab, [Push(i, 5.0)], sampling=Sampling(1.0, 0.95, i))

    alone = [one(i) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for i, found in enumerate(pool.map(one, list(range(4)) * 2)):
            assert found == alone[i % 4]


@pytest.mark.parametrize(
    ("pushes", "options", "said"),
    [
        ([], {}, "0 features"),
        ([Push(64, 1.0)], {}, "no feature 64"),
        ([Push(1, float("inf"))], {}, "not finite"),
        ([Push(1, 1.0)], {"new_tokens": 0}, "0 new tokens were asked for; allowed are 1 to 80"),
        ([Push(1, 1.0)], {"new_tokens": MAX_NEW_TOKENS + 1}, "81 new tokens"),
        ([Push(1, 1.0)], {"sampling": Sampling(-0.1)}, "temperature is -0.1; allowed are 0 to 2"),
        ([Push(1, 1.0)], {"sampling": Sampling(top_p=0)}, "top-p is 0"),
        ([Push(1, 1.0)], {"prompt": " "}, "empty"),
        ([Push(1, 1.0)], {"prompt": "one two three " * 13, "new_tokens": 80}, "more than this model can read"),
    ],
)
def test_options_that_are_not_understood_are_named_at_once(make_lab, pushes, options, said):
    options = dict(options)
    with pytest.raises(InputError, match=said):
        continuations(make_lab(), options.pop("prompt", TEXT), pushes, **options)
