"""Tiny models, tokenizers and SAEs, made when the tests run: nothing is downloaded and no weights are stored."""

import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from app_server import CHROMIUM, FLAGS
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as hf_logging

from sae_explore.models.model import LanguageModel, load_full_model, load_model, load_tokenizer
from sae_explore.saes.sae import Sae
from sae_explore.types import HookPoint, SaeSpec

torch.set_num_threads(1)  # on tensors this small, threads only wait for each other
hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()
settings.register_profile("quick", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("quick")

MIDDLE = "blocks.1.hook_resid_post"
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def corpus_texts() -> list[str]:
    """Paragraphs of the embedded corpus, as they stand in its files."""
    return tiny_models.paragraphs()


@pytest.fixture(scope="session")
def byte_tokenizer(corpus_texts) -> Tokenizer:
    """Byte-level BPE of 600 entries, <|endoftext|> = 0, no special token added by itself."""
    return tiny_models.byte_tokenizer(corpus_texts)


@pytest.fixture(scope="session")
def save_model(byte_tokenizer):
    """A function that writes a model and the tokenizer as a Hugging Face folder, with norms that are not the identity."""

    return lambda model, folder: tiny_models.save_model(model, byte_tokenizer, folder)


@pytest.fixture(scope="session")
def gpt2_folder(save_model, tmp_path_factory) -> Path:
    """GPT-2 of 4 blocks and 32 dimensions, context 128."""
    return save_model(tiny_models.tiny_gpt2(), tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture(scope="session")
def llama_folder(save_model, tmp_path_factory) -> Path:
    """Llama of 4 blocks and 32 dimensions with tied embeddings, in the manner of SmolLM2."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    return save_model(LlamaForCausalLM(config), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def gpt2_model(gpt2_folder) -> LanguageModel:
    """The tiny GPT-2 up to the output of block 1."""
    return load_model(gpt2_folder, hook=HookPoint.parse(MIDDLE), name="tiny-gpt2")


@pytest.fixture(scope="session")
def llama_model(llama_folder) -> LanguageModel:
    """The tiny Llama up to the output of block 1."""
    return load_model(llama_folder, hook=HookPoint.parse(MIDDLE), name="tiny-llama")


@pytest.fixture(scope="session")
def gpt2_full(gpt2_folder) -> torch.nn.Module:
    return load_full_model(gpt2_folder)


@pytest.fixture(scope="session")
def llama_full(llama_folder) -> torch.nn.Module:
    return load_full_model(llama_folder)


@pytest.fixture(scope="session")
def gpt2_ids(gpt2_model, corpus_texts) -> list[np.ndarray]:
    """Token ids of 24 texts, some shorter and some longer than a window."""
    return [gpt2_model.tokenize(text).ids for text in corpus_texts[:24]]


@pytest.fixture(scope="session")
def real_gpt2_tokenizer():
    """GPT-2's own vocabulary, where the shared files are there."""
    folder = SHARED / "gpt2_tokenizer"
    if not folder.is_dir():
        pytest.skip("GPT-2's vocabulary is not in ../shared/gpt2_tokenizer")
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def random_sae():
    """A function that makes an SAE of any family with random weights."""

    def make(architecture: str = "topk", d_in: int = 16, d_sae: int = 64, *, seed: int = 0, dtype=torch.float32, **spec) -> Sae:
        g = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

        if architecture == "topk":
            spec.setdefault("k", 5)
        extra = {}
        if architecture in ("jumprelu", "batchtopk"):
            extra["threshold"] = draw(d_sae).abs()
        if architecture == "gated":
            extra |= {"r_mag": 0.3 * draw(d_sae), "b_mag": draw(d_sae)}
        return Sae(
            SaeSpec(architecture, d_in, d_sae, **spec), draw(d_in, d_sae), draw(d_sae), draw(d_sae, d_in), draw(d_in), **extra
        ).checked()

    return make


@pytest.fixture(scope="session")
def planted_sae():
    """A function that makes an SAE whose features are known.

    Feature i has the direction rows[i] of an orthonormal basis and reads off exactly how much of it a residual holds.
    """

    def make(d_in: int, d_sae: int, *, seed: int = 0, **spec) -> Sae:
        basis, _ = torch.linalg.qr(torch.randn(d_in, d_in, generator=torch.Generator().manual_seed(seed)))
        rows = basis[:d_sae].contiguous()
        spec = SaeSpec("standard", d_in, d_sae, **{"prepend_bos": True, **spec})
        return Sae(spec, rows.T.contiguous(), torch.zeros(d_sae), rows, torch.zeros(d_in)).checked()

    return make


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window."""
    if not CHROMIUM:
        pytest.skip("no Chromium is installed; `apt-get install chromium` brings one")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()
