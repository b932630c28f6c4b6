"""Own texts through a bundle's model and SAE."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae_explore.activations import encoding
from sae_explore.activations.encoding import trace_text
from sae_explore.bundles.bundle import open_bundle
from sae_explore.bundles.tracer import Tracer, with_mapped_decoder
from sae_explore.errors import InputError, ModelError
from sae_explore.models.model import load_model
from sae_explore.saes.sae_formats import WEIGHTS_FILE

pytest_plugins = ["bundle_fixtures"]


@pytest.fixture(scope="module")
def tracer(tiny_cache) -> Tracer:
    return Tracer.load(open_bundle("tiny", cache=tiny_cache))


def test_what_is_loaded_is_what_the_bundle_says(tracer, tiny_cache):
    bundle = open_bundle("tiny", cache=tiny_cache)
    assert (tracer.bundle, tracer.context, tracer.bos) == ("tiny", 64, True)
    assert tracer.median_norm == bundle.manifest["median_norm"] > 0
    assert tracer.sae.spec.k == 6
    assert tracer.sae.spec.source == "trained here"
    np.testing.assert_array_equal(tracer.sae.W_dec.numpy(), bundle.W_dec)
    assert tracer.model.hook.name == bundle.hook
    assert tracer.model.revision == bundle.manifest["model"]["revision"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_decoder_stays_on_disk_as_it_is_stored(random_sae, tmp_path, dtype):
    sae = random_sae("topk", 32, 256, k=6)
    sae = replace(sae, W_dec=sae.W_dec.half().float())
    save_file({n: getattr(sae, n).to(dtype) for n in ("W_enc", "b_enc", "W_dec", "b_dec")}, tmp_path / WEIGHTS_FILE)
    lean = with_mapped_decoder(sae, tmp_path)
    assert lean.W_dec.dtype == dtype
    assert lean.W_enc is sae.W_enc
    assert torch.equal(lean.W_dec.float(), sae.W_dec)
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    acts, info = sae.encode(x)
    torch.testing.assert_close(lean.decode(acts, info), sae.decode(acts, info), rtol=1e-6, atol=1e-6)
    assert lean.decode(acts, info).dtype == torch.float32


def test_a_decoder_that_was_changed_when_loaded_is_kept(random_sae, tmp_path):
    sae = random_sae("topk", 32, 256, k=6)
    save_file({"W_dec": sae.W_dec.half()}, tmp_path / WEIGHTS_FILE)
    changed = replace(sae, W_dec=2 * sae.W_dec.half().float())
    assert with_mapped_decoder(changed, tmp_path).W_dec is changed.W_dec


def test_a_text_read_in_parts_gives_what_it_gives_at_once(tracer, monkeypatch):
    text = "Nobody knows why the old map shows a river between the two hills. " * 20
    at_once = tracer.trace(text)
    monkeypatch.setattr(encoding, "_TEXT_ELEMENTS", 1)  # 16 rows
    monkeypatch.setattr(encoding, "_TEXT_WINDOWS", 1)
    in_parts = tracer.trace(text)
    assert len(at_once.tokens) > 256
    np.testing.assert_array_equal(in_parts.rows.offsets, at_once.rows.offsets)
    np.testing.assert_array_equal(in_parts.rows.features, at_once.rows.features)
    np.testing.assert_allclose(in_parts.rows.values, at_once.rows.values, rtol=1e-4)


def test_one_model_may_serve_several_bundles(tiny_cache):
    loaded = []

    def load(folder, **options):
        loaded.append((folder, options))
        return load_model(folder, **options)

    Tracer.load(open_bundle("planted", cache=tiny_cache), load=load)
    Tracer.load(open_bundle("tiny", cache=tiny_cache), load=load)
    assert loaded[0] == loaded[1]


def test_a_trace_is_the_sae_on_the_models_residuals(tracer):
    text = "The parrot — 🦜 — knows why.\n" * 2
    trace = tracer.trace(text)
    assert trace.text == "".join(trace.tokens.texts) == text
    assert len(trace.rows) == len(trace.ignored) == len(trace.tokens)
    ids = torch.tensor([[tracer.model.bos_id, *trace.tokens.ids.tolist()]])
    rows = tracer.model.residual(ids)[0, 1:]
    pre = (rows - tracer.sae.b_dec) @ tracer.sae.W_enc + tracer.sae.b_enc
    best = pre.topk(6, dim=1)
    dense = torch.zeros_like(pre).scatter(1, best.indices, best.values).relu().numpy()
    dense[trace.ignored] = 0
    np.testing.assert_allclose(np.stack([trace.rows.column(f) for f in range(64)], 1), dense, rtol=1e-4, atol=1e-4)


def test_special_tokens_in_a_text_are_ignored(tracer):
    trace = tracer.trace("before<|endoftext|>after")
    special = [i for i, t in enumerate(trace.tokens.texts) if t == "<|endoftext|>"]
    assert len(special) == 1
    assert trace.tokens.special[special[0]]
    assert trace.ignored[special[0]]
    assert len(trace.rows.row(special[0])[0]) == 0


def test_sinks_are_ignored(tracer):
    text = "Nobody knows why the old map shows a river."
    usual = tracer.trace(text)
    assert not usual.ignored.any()
    rows = tracer.model.residual(torch.tensor([[tracer.model.bos_id, *usual.tokens.ids.tolist()]]))[0, 1:]
    norms = rows.norm(dim=1)
    limit = float(norms.sort().values[-3:-1].mean())  # between the second and the third largest norm
    found = replace(tracer, median_norm=limit / 5).trace(text)
    assert found.ignored.tolist() == (norms > limit).tolist()
    assert found.ignored.sum() == 2
    for i in range(len(usual.tokens)):
        expected = ([], []) if found.ignored[i] else tuple(x.tolist() for x in usual.rows.row(i))
        assert tuple(x.tolist() for x in found.rows.row(i)) == expected


@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000"])
def test_an_empty_text(tracer, text):
    with pytest.raises(InputError, match="the text is empty"):
        tracer.trace(text)


def test_texts_that_are_too_long_or_broken(tracer):
    with pytest.raises(InputError, match=r"the text has \d+ tokens, the limit here is 10; paste a shorter piece"):
        tracer.trace("one two three four five six seven", max_tokens=10)
    with pytest.raises(InputError, match="lone surrogate"):
        tracer.trace("half \ud83e")


def test_one_token(tracer):
    trace = tracer.trace("a")
    assert len(trace.tokens) == 1
    assert not trace.ignored[0]  # the BOS stands in front of it


def test_without_a_bos_the_first_token_is_ignored(tracer, gpt2_model):
    options = {"bundle": "b", "units": "", "context": 16, "median_norm": 1e9}
    long = "Nobody knows why the old map shows a river between the two hills."
    trace = trace_text(gpt2_model, tracer.sae, long, bos=False, **options)
    assert len(trace.tokens) > 24
    assert np.flatnonzero(trace.ignored).tolist() == [0]
    with pytest.raises(ModelError, match="has no BOS token, but the SAE wants one"):
        trace_text(replace(gpt2_model, bos_id=None), tracer.sae, long, bos=True, **options)


def test_many_threads_get_the_same_answers(tracer):
    texts = [f"Visitor {i} asks why the {w} is late. " * (i + 1) for i, w in enumerate(("train", "parrot", "map", "river"))]
    alone = [tracer.trace(t) for t in texts]
    wrong = []

    def ask(first: int) -> None:
        for i in range(8):
            at = (first + i) % len(texts)
            found = tracer.trace(texts[at])
            if found.rows.features.tolist() != alone[at].rows.features.tolist() or not np.allclose(
                found.rows.values, alone[at].rows.values, rtol=1e-4
            ):
                wrong.append(at)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
