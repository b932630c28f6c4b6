"""Estimates, by numbers worked out by hand from the formulas in the module's docstring."""

import json
import math
import os

import numpy as np
import pytest

from sae_explore.building import estimate as estimates
from sae_explore.building.build_request import BuildRequest
from sae_explore.building.estimate import Amount, Machine, amount_of, estimate, product_rate, size_words, this_machine, time_words
from sae_explore.errors import InputError, ModelError
from sae_explore.features.feature_map import can_draw
from sae_explore.models.model_facts import ModelFacts, facts_of
from sae_explore.models.model_sources import GPT2, SMOLLM2
from sae_explore.texts.embedded import embedded_rows

FACTS = ModelFacts("m", "m", layers=4, width=10, block_parameters=1_200, vocabulary=100, positions=128, here=True)
REQUEST = BuildRequest("b", "m", "blocks.1.hook_resid_post", latents=50, k=2, epochs=3, context=20)
MACHINE = Machine(rate=1e6, memory=1 << 40, disk=1 << 40)
FORWARD = (2 * 1_200 + 4 * 20 * 10) * 2 / 0.85  # a token through two blocks
ENCODE = 2 * 10 * 50


def test_seconds_of_a_trained_sae():
    found = estimate(REQUEST, FACTS, [Amount(10, 430)], MACHINE)  # 100 tokens, ten a text: each is read once
    assert found.tokens == 100
    steps = 300 / 512
    sae = 100 * FORWARD + 300 * (ENCODE + 100 * 2 * 10) + steps * 700 * 50 * 10 + 1.5 * 100 * (FORWARD + ENCODE)
    whole = 2 * (4 * 1_200 + 100 * 10) / 0.85
    expected = {
        "model": 1e6,
        "sae": sae / 1e6,
        "store": 100 * (FORWARD + ENCODE) / 1e6,
        "features": 50 * (3.5e8 + 4.5 * 10 * 100 + 2 * 50 * 10) / 1e6,
        "map": 50 * 2e8 / 1e6 * can_draw(),
        "metrics": (100 * (FORWARD + ENCODE) + 100 * (2 * FORWARD + 4 * whole)) / 1e6,
    }
    assert found.seconds == pytest.approx(expected)
    assert found.total == pytest.approx(sum(expected.values()))


def test_half_the_rate_is_twice_the_time_and_limits_are_minded():
    whole = estimate(REQUEST, FACTS, [Amount(1_000, 4_300_000)], MACHINE)
    assert whole.tokens == 1_000_000
    assert estimate(REQUEST, FACTS, [Amount(1_000, 4_300_000)], MACHINE._replace(rate=5e5)).total == pytest.approx(2 * whole.total)
    # texts of 1,000 tokens in windows of 20 that overlap by half: each token is read 1.98 times
    assert whole.seconds["store"] == pytest.approx(1e6 * 1.98 * (FORWARD + ENCODE) / 1e6)
    few = BuildRequest("b", "m", REQUEST.hook, latents=50, k=2, epochs=3, context=20, max_texts=100, max_tokens=1_000)
    assert estimate(few, FACTS, [Amount(1_000, 4_300_000)], MACHINE).tokens == 100_000


def test_a_given_sae_is_not_trained():
    given = BuildRequest("b", "m", REQUEST.hook, sae="folder", context=20)
    found = estimate(given, FACTS, [Amount(10, 430)], MACHINE, sae_latents=200, sae_firing=7)
    assert found.seconds["store"] == pytest.approx(100 * (FORWARD + 2 * 10 * 200) / 1e6)
    assert found.seconds["sae"] == pytest.approx(16_384 * FORWARD / 1e6)
    assert found.kept == 8 * 200 * 10 + 100 * (8 * 7 + 16) + 1_500 * 200 + 215
    assert found.download == 8 * 200 * 10
    assert found.disk == found.kept + 100 * 12 * 7 + found.download
    here = estimate(given, FACTS, [Amount(10, 430)], MACHINE, sae_latents=200, sae_firing=7, sae_here=True)
    assert (here.download, here.disk) == (0, found.disk - found.download)


def test_disk_and_downloads():
    found = estimate(REQUEST, FACTS, [Amount(10, 430)], MACHINE)
    assert found.kept == 8 * 50 * 10 + 100 * (8 * 2 + 16) + 1_500 * 50 + 215
    assert found.disk == found.kept + 4 * 100 * 10 + 3 * 8 * 50 * 10 + 100 * 12 * 2
    away = ModelFacts(**{**vars(FACTS), "here": False})
    assert estimate(REQUEST, away, [Amount(10, 430)], MACHINE).download == 4 * (4 * 1_200 + 1_000)


def test_memory_grows_with_what_the_warning_tells_to_make_smaller():
    def memory(**changes):
        return estimate(
            BuildRequest("b", GPT2, "blocks.6.hook_resid_post", **changes), facts_of(GPT2, models=os), [Amount(800, 850_000)], MACHINE
        ).memory

    assert 1.5e9 < memory(latents=2_048) < 3e9  # measured: about 2 GB
    assert memory(latents=65_536) > 2 * memory(latents=2_048)
    assert memory(latents=2_048, batch_size=1_024) > memory(latents=2_048)


@pytest.mark.parametrize(
    ("machine", "parts"),
    [
        (MACHINE._replace(disk=1_000), ["of disk", "1 MB are free", "fewer texts", "SAE_EXPLORE_CACHE"]),
        (MACHINE._replace(memory=1_000), ["of memory", "fewer latents (now 50)", "smaller batch"]),
    ],
)
def test_what_does_not_fit_is_said_with_what_to_change(machine, parts):
    many = [Amount(100, 43_000)]
    assert estimate(REQUEST, FACTS, many, MACHINE).warnings == ()
    assert estimate(REQUEST, FACTS, many, MACHINE).fits(MACHINE._replace(memory=None))
    assert not estimate(REQUEST, FACTS, many, machine).fits(machine)
    (warning,) = estimate(REQUEST, FACTS, many, machine).warnings
    assert [part for part in parts if part not in warning] == []


def test_few_tokens_are_said():
    (warning,) = estimate(REQUEST, FACTS, [Amount(10, 430)], MACHINE).warnings
    assert "about 100 tokens are few for 50 latents" in warning
    assert estimate(REQUEST, FACTS, [Amount(10, 430)], MACHINE._replace(memory=None)).warnings == (warning,)  # memory that is not known


def test_amounts(tmp_path):
    assert amount_of("embedded") == Amount(len(embedded_rows()), sum(len(r.text) for r in embedded_rows()))
    assert amount_of("diverse").texts == 800
    assert amount_of("hf:a/b?n=30&chars=200") == Amount(30, 6_000)
    assert amount_of("hf:a/b") == Amount(1_000, 1_000_000)
    (tmp_path / "a.txt").write_text("x" * 5_000)
    assert amount_of(str(tmp_path / "a.txt")) == Amount(5, 5_000)
    with pytest.raises(InputError):
        amount_of("nonsense")


def test_this_machine(tmp_path, monkeypatch):
    runs = iter([1.0, 0.25, 0.5])  # seconds a product; the first of four warms up
    clock = [0.0]

    class Slow(np.ndarray):
        def __matmul__(self, other):
            clock[0] += next(runs, 0.5)

    a = np.zeros((2, 2), np.float32).view(Slow)
    monkeypatch.setattr(estimates.np.random, "default_rng", lambda _seed: type("R", (), {"random": lambda *_: a})())
    monkeypatch.setattr(estimates.time, "perf_counter", lambda: clock[0])
    assert product_rate(100, seconds=0.0) == 2 * 100**3 / 0.25
    monkeypatch.undo()
    monkeypatch.setattr(estimates, "product_rate", lambda: 7.0)
    estimates._rate_at.cache_clear()
    found = this_machine(tmp_path / "not there yet")
    assert (found.rate, found.disk > 0) == (7.0, True)
    estimates._rate_at.cache_clear()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "less than a minute"),
        (49, "less than a minute"),
        (55, "1 min"),
        (61, "2 min"),
        (3_000, "50 min"),
        (3_601, "1 h 5 min"),
        (7_200, "2 h"),
    ],
)
def test_durations(seconds, words):
    assert time_words(seconds) == words


def test_sizes():
    assert [size_words(n) for n in (0, 1_600_000, 999_000_000, 1_449_000_000)] == ["1 MB", "2 MB", "999 MB", "1.4 GB"]


# ---- the model's sizes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_sizes_of_a_model_are_those_of_its_weights(kind, gpt2_folder, llama_folder, gpt2_full, llama_full, tmp_path):
    folder, full = {"gpt2": (gpt2_folder, gpt2_full), "llama": (llama_folder, llama_full)}[kind]
    facts = facts_of(str(folder), models=tmp_path)
    block = full.base_model.h[0] if kind == "gpt2" else full.base_model.layers[0]
    assert facts.block_parameters == sum(p.numel() for p in block.parameters() if p.ndim == 2)
    assert (facts.layers, facts.width, facts.vocabulary, facts.positions, facts.here) == (4, 32, 600, 128, True)


def test_what_is_known_of_the_named_models(tmp_path):
    gpt2, smol = facts_of(GPT2, models=tmp_path), facts_of(SMOLLM2, models=tmp_path)
    assert (gpt2.layers, gpt2.display) == (12, "GPT-2 small")
    assert gpt2.parameters == pytest.approx(124e6, rel=0.01)
    assert smol.parameters == pytest.approx(134.5e6, rel=0.01)
    assert not smol.here


def test_models_that_cannot_be_known(tmp_path):
    assert facts_of("user/model-that-is-not-here", models=tmp_path) is None
    assert facts_of("pypi:x==1", models=tmp_path) is None
    with pytest.raises(InputError, match="is not understood"):
        facts_of("two words", models=tmp_path)
    with pytest.raises(InputError, match="no model folder"):
        facts_of("./nowhere", models=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        facts_of(str(tmp_path / "empty"), models=tmp_path)
    for content in ("", "[]", "{}", json.dumps({"n_layer": 3}), json.dumps({"n_layer": "x", "n_embd": 4, "n_head": 2, "vocab_size": 5})):
        (tmp_path / "empty" / "config.json").write_text(content)
        with pytest.raises(ModelError, match="does not say how large"):
            facts_of(str(tmp_path / "empty"), models=tmp_path)


def test_a_nested_configuration(tmp_path):
    text = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "head_dim": 6, "num_key_value_heads": 1, "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": {**text, "intermediate_size": 16}}))
    facts = facts_of(str(tmp_path), models=tmp_path)
    assert (facts.layers, facts.width) == (2, 8)
    assert facts.block_parameters == 2 * 8 * 6 * (2 + 1) + 3 * 8 * 16
    assert math.isclose(facts.parameters, 2 * facts.block_parameters + 72)
