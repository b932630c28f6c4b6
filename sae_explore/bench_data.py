"""Synthetic models, SAEs and bundles of real size for `bench`: random numbers in the right shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sae_explore.activations.activation_store import STORE_FILE, StoreWriter
from sae_explore.activations.feature_stats import COACTIVE, EXAMPLE_INTERVALS, HISTOGRAM_BINS, PER_INTERVAL, RANDOM_EXAMPLES, TOP_EXAMPLES
from sae_explore.bundles import bundle as bundle_module
from sae_explore.bundles.bundle import Bundle
from sae_explore.bundles.bundle_checks import CROSS_ENTROPIES
from sae_explore.features.feature_table import NEIGHBOURS
from sae_explore.features.lens import CONVENTIONS, LENS_TOP, LOGIT_BINS
from sae_explore.files.bundle_files import publish
from sae_explore.files.tensor_file import write_tensors
from sae_explore.models import products
from sae_explore.models.model import LanguageModel, Unembedding
from sae_explore.models.tokens import Vocabulary
from sae_explore.saes.sae import Sae
from sae_explore.types import HookPoint, SaeSpec

VOCABULARY = 50_257
_DOCUMENT = 100  # tokens
_CATEGORIES = ("a", "b", "c", "d")


class WordTokenizer:
    """A tokenizer for random weights: token i is the word "w<i> "; enough of the interface for `tokens.tokenize`."""

    def text_of(self, ids: np.ndarray) -> str:
        return "".join(f"w{i} " for i in ids)

    def __call__(self, text: str, **_options: object) -> dict:
        words = text.split()
        ends = np.cumsum([len(w) + 1 for w in words]).tolist()
        return {"input_ids": [int(w[1:]) for w in words], "offset_mapping": list(zip([0, *ends[:-1]], ends, strict=True))}


def _vocabulary() -> Vocabulary:
    pieces = [f"w{i} ".encode() for i in range(VOCABULARY)]
    return Vocabulary(
        np.frombuffer(b"".join(pieces), np.uint8), np.concatenate([[0], np.cumsum([len(p) for p in pieces])]), np.zeros(VOCABULARY, bool)
    )


def random_gpt2(hook: HookPoint, *, eager: bool = False, width: int = 768) -> LanguageModel:
    """`GPT2Config()` (of `width` dimensions) up to the hook with seeded random weights. `eager`: run by transformers as it comes."""
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    config = GPT2Config(n_layer=hook.depth, n_embd=width, attn_implementation="eager" if eager else "sdpa")
    base = GPT2Model(config).eval().requires_grad_(False)
    if not eager:
        products.use_in(base)
    base.ln_f = torch.nn.Identity()
    unembedding = Unembedding(base.wte.weight, torch.ones(config.n_embd), True)
    return LanguageModel(
        "random GPT-2", "", hook, base, WordTokenizer(), _vocabulary(), unembedding, 12, config.n_embd, 50_256, 1_024, torch.device("cpu")
    )


def random_sae(d_in: int, d_sae: int, k: int = 32) -> Sae:
    """A TopK SAE with tied unit rows."""
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(0)), dim=1)
    return Sae(SaeSpec("topk", d_in, d_sae, k), W_dec.T.contiguous(), torch.zeros(d_sae), W_dec, torch.zeros(d_in))


def synthetic_bundle(folder: Path, *, latents: int, tokens: int, k: int = 32, d_in: int = 768) -> Bundle:
    """A bundle with random activations: feature 0 fires on half of the tokens, the others on k - 1 random ones a token."""
    rng, out = np.random.default_rng(0), folder / "work"
    documents = tokens // _DOCUMENT
    writer = StoreWriter(folder / "parts", latents)
    for part, start in enumerate(range(0, tokens, 50_000)):
        n = min(50_000, tokens - start)
        features = rng.integers(1, latents, (n, k), dtype=np.uint32)
        features[:, 0] = np.where(rng.random(n) < 0.5, 0, features[:, 0])
        values = rng.gamma(2.0, 2.0, (n, k)).astype(np.float32) + 0.01
        writer.write_part(part, np.arange(0, n * k + 1, k), features.ravel(), values.ravel())
    out.mkdir(parents=True)
    totals = writer.finish(out / STORE_FILE)
    categories = [_CATEGORIES[i % len(_CATEGORIES)] for i in range(documents)]
    ids = rng.integers(0, VOCABULARY, tokens).astype(np.uint16)
    vocabulary = _vocabulary()
    lengths = np.diff(vocabulary.offsets)[ids].reshape(documents, _DOCUMENT)
    texts = ["".join(f"w{i} " for i in row) for row in ids.reshape(documents, _DOCUMENT)]
    pq.write_table(
        pa.table({"id": [f"d/{i}" for i in range(documents)], "source": ["synthetic"] * documents, "category": categories, "text": texts}),
        out / bundle_module.DOCUMENTS_FILE,
    )
    write_tensors(
        out / bundle_module.TOKENS_FILE,
        {
            "ids": ids,
            "offsets": np.arange(0, tokens + 1, _DOCUMENT),
            "char_ends": np.cumsum(lengths, 1).astype(np.uint32).ravel(),
            "ignored": np.zeros(tokens, bool),
        },
    )
    write_tensors(
        out / bundle_module.VOCABULARY_FILE,
        {"blob": vocabulary.blob, "offsets": vocabulary.offsets.astype(np.uint32), "special": vocabulary.special},
    )
    examples = {"top": (TOP_EXAMPLES,), "interval": (EXAMPLE_INTERVALS, PER_INTERVAL), "random": (RANDOM_EXAMPLES,)}
    write_tensors(
        out / bundle_module.EXAMPLES_FILE, {n: rng.integers(0, tokens, (latents, *s)).astype(np.uint32) for n, s in examples.items()}
    )
    _write_feature_arrays(out, rng, latents, totals)
    write_tensors(out / bundle_module.SAE_FOLDER / bundle_module.SAE_WEIGHTS, {"W_dec": rng.standard_normal((latents, d_in), np.float32)})
    manifest = {
        "model": {"spec": "synthetic", "display": "synthetic", "revision": "", "licence": None, "n_layers": 12},
        "hook": "blocks.6.hook_resid_post",
        "units": "",
        "context": 128,
        "bos": False,
        "median_norm": 1.0,
        "sae": {"architecture": "topk", "d_in": d_in, "d_sae": latents, "k": k, "normalise": "none", "source": "", "notes": []},
        "train": None,
        "corpus": {
            "documents": documents,
            "tokens": tokens,
            "categories": list(_CATEGORIES),
            "category_share": dict.fromkeys(_CATEGORIES, 0.25),
        }
        | {key: [] for key in ("texts", "sources", "train_sources", "notes")},
        "lens": {
            "default": "folded",
            "conventions": list(CONVENTIONS),
            "agreement": dict.fromkeys(CONVENTIONS, 0.0),
            "random": {"directions": 0, "strength": 0.0, "top_logit": dict.fromkeys(CONVENTIONS, 0.0)},
        },
        "features": {"dead": 0, "dense": 1, "dense_above": 0.1, "counted_tokens": tokens, "l0": float(k), "kinds": {}},
        "metrics": dict.fromkeys(("dead", "tokens_eval", "tokens_ce"), 0)
        | dict.fromkeys(("evaluated_set", "evaluated_on"), "")
        | dict.fromkeys(("tokens_train", "explained_variance_train", "held_out_of_training_sources"))
        | dict.fromkeys(("explained_variance", "l0", *CROSS_ENTROPIES), 0.0)
        | {"latents": latents, "by_category": {}},
        "warnings": [],
    }
    publish(out, folder / "synthetic", manifest)
    return Bundle(folder / "synthetic")


def _write_feature_arrays(out: Path, rng: np.random.Generator, latents: int, totals) -> None:
    near = {
        f"{w}_{c}": v
        for w in ("decoder", "encoder")
        for c, v in (
            ("neighbours", rng.integers(0, latents, (latents, NEIGHBOURS), dtype=np.int32)),
            ("cosines", rng.random((latents, NEIGHBOURS)).astype(np.float16)),
        )
    }
    arrays = {
        "max": totals.max,
        "histogram": rng.integers(0, 99, (latents, HISTOGRAM_BINS)).astype(np.uint32),
        "categories": rng.integers(0, 99, (latents, len(_CATEGORIES))).astype(np.uint32),
        "coactive_feature": rng.integers(0, latents, (latents, COACTIVE), dtype=np.int32),
        "coactive_probability": rng.random((latents, COACTIVE)).astype(np.float16),
        "coactive_correlation": rng.random((latents, COACTIVE)).astype(np.float16),
        "coactive_count": rng.integers(0, 99, (latents, COACTIVE)).astype(np.uint32),
        **near,
    }
    write_tensors(out / bundle_module.ARRAYS_FILE, arrays)
    lens = {}
    for convention in CONVENTIONS:
        for side in ("positive", "negative"):
            lens[f"{convention}.{side}_ids"] = rng.integers(0, VOCABULARY, (latents, LENS_TOP)).astype(np.uint32)
            lens[f"{convention}.{side}"] = rng.random((latents, LENS_TOP)).astype(np.float16)
    lens |= {
        "folded.histogram": rng.integers(0, 99, (latents, LOGIT_BINS)).astype(np.uint32),
        "folded.low": np.full(latents, -1, np.float32),
        "folded.high": np.ones(latents, np.float32),
    }
    write_tensors(out / bundle_module.LENS_FILE, lens)
    names = ("mean", "std", "skew", "kurtosis", "strength", "strength_ratio", "lens_kurtosis", "decoder_norm", "confidence")
    numbers = {name: rng.random(latents).astype(np.float32) for name in names}
    counted = max(int(totals.count.max()) * 2, 1)
    words = {n: [f"{n} {i}" for i in range(latents)] for n in ("peak_token", "lens_tokens", "label")} | {"label_kind": ["token"] * latents}
    pq.write_table(
        pa.table(
            {
                "feature": np.arange(latents, dtype=np.int32),
                "count": totals.count,
                "density": (totals.count / counted).astype(np.float32),
                "max": totals.max.astype(np.float32),
                **numbers,
                **words,
            }
        ),
        out / bundle_module.FEATURES_FILE,
    )
