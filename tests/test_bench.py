"""The benchmark runs from end to end on tiny sizes, and its synthetic data are what they say."""

import numpy as np
import pytest
import torch

from sae_explore import bench
from sae_explore.activations.feature_stats import NONE
from sae_explore.bench import Results, Sizes, run_bench
from sae_explore.bench_data import random_gpt2, random_sae, synthetic_bundle
from sae_explore.types import HookPoint

pytest_plugins = ["bundle_fixtures"]
HOOK = HookPoint.parse("blocks.1.hook_resid_post")


def test_every_figure_is_beside_its_limit(monkeypatch):
    monkeypatch.setattr(bench, "HOOK", HOOK)
    monkeypatch.setattr(bench, "WIDTH", 48)
    monkeypatch.setattr(bench, "LATENTS", (256, 512))
    monkeypatch.setattr(bench, "training_dtype", lambda _requested: torch.bfloat16)  # whatever this processor is good at
    monkeypatch.setattr(bench, "QUICK", Sizes(store_tokens=600, batch=64, card_tokens=2_000))
    said = []
    rows = run_bench(None, quick=True, report=said.append)
    assert [row["what"] for row in rows] == [
        "store build, 256 latents, fp32", "store build, 512 latents, fp32",
        *(f"training step, {n} latents, batch 64, {dtype}" for n in (256, 512) for dtype in ("fp32", "bf16")),
        "own text of 64 tokens, 512 latents",
        "card, 512 latents x 2,000 tokens, 95th percentile", "card, 512 latents x 2,000 tokens, its densest feature (0.50)",
    ]  # fmt: skip
    assert len(said) == 1 + len(rows)
    for row, line in zip(rows, said[1:], strict=True):
        assert set(row) == {"what", "value", "unit", "limit", "limit_is", "ratio"}
        assert row["value"] > 0
        assert row["ratio"] == pytest.approx(row["value"] / row["limit"])
        assert row["what"] in line
        assert f"({row['limit_is']})" in line


def test_results_without_a_limit():
    said = []
    results = Results(said.append)
    results.add("size", 3, "MB")
    assert results.rows == [{"what": "size", "value": 3, "unit": "MB", "limit": None, "limit_is": "", "ratio": None}]
    assert "limit" not in said[1]


def test_the_synthetic_bundle_opens_and_is_dense_where_it_says(tmp_path):
    bundle = synthetic_bundle(tmp_path, latents=300, tokens=3_000, d_in=16)
    bundle.verify()
    counts = bundle.features["count"].to_numpy()
    assert counts[0] / 3_000 == pytest.approx(0.5, abs=0.05)
    assert counts.sum() == len(bundle.store.token_features) == 3_000 * 32
    assert (bundle.examples["top"] != NONE).all()
    assert "".join(bundle.document_tokens(2).texts) == bundle.document_text(2)
    card = bundle.card(0)
    assert (len(card.top), len(card.intervals), len(card.random)) == (10, 20, 8)


def test_the_random_model_reads_its_own_words():
    model = random_gpt2(HOOK, width=24)
    ids = np.array([5, 50_000, 7])
    assert model.tokenize(model.tokenizer.text_of(ids)).ids.tolist() == ids.tolist()
    sae = random_sae(24, 64, 4)
    assert sae.checked().W_dec.norm(dim=1).numpy() == pytest.approx(np.ones(64), abs=1e-5)


def test_the_start_of_the_app_is_measured_in_a_process_of_its_own(tiny_cache, monkeypatch):
    """Without torch, and without the memory of the process that measures."""
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tiny_cache))
    results = Results(None)
    bench._start(results)
    seconds, memory = results.rows
    assert (seconds["unit"], memory["unit"]) == ("s", "MB")
    assert 0 < seconds["value"] < 600
    assert 50 < memory["value"] < 400
