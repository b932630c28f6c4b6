"""Builds that cannot be: what is wrong is told in a sentence, and nothing half done is left to see."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from build_checks import CONTEXT, write_corpus

from sae_explore.building import sae_stage
from sae_explore.building.build import build
from sae_explore.building.build_context import TRAIN_DOCUMENTS, training_split
from sae_explore.building.build_request import BuildRequest
from sae_explore.errors import ExploreError, InputError, SaeError
from sae_explore.saes.sae_formats import save_sae
from sae_explore.texts.dataset import is_held_out

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, corpus_texts):
    """(file, texts)."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    return path, write_corpus(path, corpus_texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 65, "latents": 64}, "k = 65 is more than the number of latents, 64"),
        ({"latents": 0}, "--latents is 0, but must be at least 1"),
        ({"epochs": -1}, "--epochs is -1"),
        ({"seed": -1}, "--seed is -1"),
        ({"max_tokens": 0}, "--max-tokens is 0"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"context": 4}, "--context is 4, but must be at least 8"),
        ({"latents": 1 << 70}, "not that large"),
        ({"lr": float("nan")}, "--lr is nan"),
        ({"lr": 3.0}, "--lr is 3.0"),
        ({"dtype": "float8"}, "--dtype is 'float8', but must be one of auto"),
        ({"weights": "int4"}, "--weights is 'int4'"),
        ({"center": "yes"}, "--center yes goes with a given --sae"),
        ({"device": "tpu"}, "--device is 'tpu'"),
        ({"device": "cuda:99"}, "--device cuda:99: PyTorch finds"),
        ({"hook": "blocks.1.hook_mlp_out"}, "hook 'blocks.1.hook_mlp_out' is not understood"),
        ({"hook": "blocks.4.hook_resid_pre"}, r"has 4 blocks \(0 to 3\); there is no blocks.4"),
        ({"context": 200}, "a context of 200 tokens is more than the 128 positions"),
        ({"texts": ("nowhere.txt",)}, "there is no file 'nowhere.txt'"),
        ({"name": "../x"}, "is no bundle name"),
        ({"model": "/nowhere/model"}, "there is no model folder"),
        ({"sae": "/nowhere/sae"}, "there is no SAE folder '/nowhere/sae'"),
        ({"sae": "no sae:at all"}, "SAE 'no sae:at all' is not understood; give a Hub id"),
    ],
)
def test_what_cannot_be_built_is_told_in_a_sentence(gpt2_folder, corpus, tmp_path, change, message):
    request = BuildRequest("no", str(gpt2_folder), HOOK, texts=(str(corpus[0]),), latents=64, k=4, context=CONTEXT)
    with pytest.raises(InputError, match=message) as caught:
        build(replace(request, **change), cache=tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "no").exists()


def test_an_sae_of_another_model_is_refused(gpt2_folder, corpus, tmp_path, random_sae):
    save_sae(random_sae("topk", 16, 32, k=2, hook=HOOK), tmp_path / "narrow")
    with pytest.raises(InputError, match="reads 16 dimensions, but gpt2 has 32; is it made for this model"):
        build(BuildRequest("no", str(gpt2_folder), sae=str(tmp_path / "narrow"), texts=(str(corpus[0]),)), cache=tmp_path)
    huge = random_sae("topk", 32, 32, k=2, hook=HOOK, context=CONTEXT)
    save_sae(replace(huge, W_enc=huge.W_enc * 1e5), tmp_path / "huge")
    with pytest.raises(ExploreError, match="does not fit into fp16; is this SAE made for this model"):
        build(BuildRequest("no", str(gpt2_folder), sae=str(tmp_path / "huge"), texts=(str(corpus[0]),)), cache=tmp_path)
    with pytest.raises(SaeError, match="does not fit into float16; store it as float32"):
        build(BuildRequest("no", str(gpt2_folder), sae=str(tmp_path / "huge"), texts=(str(corpus[0]),), weights="float16"), cache=tmp_path)


def test_texts_of_which_nothing_counts(gpt2_folder, tmp_path, random_sae):
    """One token a text and no BOS: each is the first of its window."""
    save_sae(random_sae("topk", 32, 32, k=2, hook=HOOK, context=CONTEXT, prepend_bos=False), tmp_path / "sae")
    (tmp_path / "t.txt").write_text("a\n\nb\n\nc\n")
    with pytest.raises(InputError, match="nothing but special tokens and first positions"):
        build(BuildRequest("no", str(gpt2_folder), sae=str(tmp_path / "sae"), texts=(str(tmp_path / "t.txt"),)), cache=tmp_path)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "memory ran out .64 latents, forward batches of 32 texts of 32 tokens.; try a smaller --batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory ran out"),
        (torch.OutOfMemoryError("CUDA out of memory."), "memory ran out"),
        (
            OSError(28, "No space left on device", "/x/y"),
            "cannot read or write a file .No space left on device: /x/y.; finished stages are kept",
        ),
        (OSError("10 requested and 5 written"), "10 requested and 5 written, is the disk full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "cannot write its training state; is the disk full"),
    ],
)
def test_machines_that_are_too_small(gpt2_folder, corpus, tmp_path, monkeypatch, error, message):
    request = BuildRequest("no", str(gpt2_folder), HOOK, texts=(str(corpus[0]),), latents=64, k=4, context=CONTEXT)

    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(sae_stage, "train_topk", fail)
    with pytest.raises(ExploreError, match=message) as caught:
        build(request, cache=tmp_path)
    assert "\n" not in str(caught.value)


def test_errors_of_the_program_are_not_dressed_up(gpt2_folder, corpus, tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(sae_stage, "train_topk", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        build(BuildRequest("no", str(gpt2_folder), HOOK, texts=(str(corpus[0]),), context=CONTEXT), cache=tmp_path)


def test_a_cache_that_cannot_be_written(gpt2_folder, corpus, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExploreError, match=r"cannot read or write a file \(Not a directory: .*file/cache"):
        build(BuildRequest("no", str(gpt2_folder), HOOK, texts=(str(corpus[0]),)), cache=tmp_path / "file" / "cache")


def test_what_is_held_out_is_not_trained_on_unless_nothing_else_is_there(tmp_path):
    texts = [f"text {i}" for i in range(300)]
    held, others = [t for t in texts if is_held_out(t)], [t for t in texts if not is_held_out(t)]
    assert held
    assert others
    for given, trained, kept in ((texts, others, held), (others, others, []), (held, held, [])):
        pq.write_table(pa.table({"text": given}), tmp_path / TRAIN_DOCUMENTS)
        assert [part["text"].to_pylist() for part in training_split(tmp_path)] == [trained, kept]
