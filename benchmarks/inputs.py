"""What both sides of the comparison read, written into one folder: model, SAE, texts, token ids, residuals.

    setup.json      sizes, seeds and what was substituted
    model/          GPT-2 with seeded random weights and a tokenizer, in Hugging Face's layout (speed does not depend on the weights)
    sae/            a TopK SAE in SAELens's format: random unit rows, encoder tied, b_dec = the mean residual
    texts.jsonl     one text a window: a piece of the embedded corpus of exactly context - 1 tokens, so that BOS + text fill a window
    tokens.npy      (windows, context) int64: the same windows as ids, the BOS in front
    residuals.npy   (rows, d_model) fp32: residuals of the first 64 windows at the hook, BOS left out, to train on

A text fills one window exactly, so both sides read the same windows and count the same tokens: all but the BOS.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

from sae_explore.activations.collect import residual_blocks
from sae_explore.bench_data import random_sae
from sae_explore.errors import InputError
from sae_explore.models.model import load_model, load_tokenizer
from sae_explore.saes.sae_formats import save_sae
from sae_explore.texts.embedded import embedded_rows
from sae_explore.types import HookPoint

log = logging.getLogger(__name__)

BOS = "<|endoftext|>"
GPT2_TOKENIZER = Path(__file__).resolve().parents[2] / "shared" / "gpt2_tokenizer"
SETUP_FILE = "setup.json"
_RESIDUAL_WINDOWS = 64


@dataclass(frozen=True)
class Setup:
    """Sizes of the comparison. The defaults of the model are those of GPT-2 small."""

    windows: int = 64
    context: int = 128
    latents: int = 2_048
    k: int = 32
    hook: str = "blocks.6.hook_resid_post"
    layers: int = 12
    width: int = 768
    heads: int = 12
    train_latents: tuple[int, ...] = (2_048, 24_576)
    train_batch: int = 2_048
    train_steps: int = 10
    peer_features: int = 0  # of which the peer makes its data; 0: all
    seed: int = 0
    clock: str = "wall"  # or "cpu": processor time of all threads, for a busy machine and one thread
    tokenizer: str = ""  # which one was taken; set by `make_inputs`

    @property
    def counted_tokens(self) -> int:
        """Tokens that both sides count: all but the BOS of each window."""
        return self.windows * (self.context - 1)


def read_setup(folder: Path) -> Setup:
    """The setup that `make_inputs` wrote."""
    found = json.loads((folder / SETUP_FILE).read_text(encoding="utf-8"))
    return Setup(**{**found, "train_latents": tuple(found["train_latents"])})


def make_inputs(folder: Path, setup: Setup) -> Setup:
    """Write everything into `folder`; returns the setup with the tokenizer named. InputError if the corpus is too small."""
    setup = replace(setup, tokenizer=_write_model(folder / "model", setup, GPT2_TOKENIZER))
    hook = HookPoint.parse(setup.hook)
    model = load_model(folder / "model", hook=hook, name="benchmark")
    ids_of = _write_texts(folder, setup, model.tokenizer)
    tokens = np.stack([np.concatenate([[model.bos_id], ids]) for ids in ids_of]).astype(np.int64)
    np.save(folder / "tokens.npy", tokens)
    blocks = residual_blocks(model, ids_of[:_RESIDUAL_WINDOWS], context=setup.context, bos=True)
    residuals = torch.cat([rows for _, _, rows in blocks])
    np.save(folder / "residuals.npy", residuals.numpy())
    sae = random_sae(setup.width, setup.latents, setup.k)
    spec = replace(sae.spec, hook=hook.name, model="model", context=setup.context, prepend_bos=True)
    save_sae(replace(sae, spec=spec, b_dec=residuals.mean(0)), folder / "sae")
    (folder / SETUP_FILE).write_text(json.dumps(asdict(setup), indent=1), encoding="utf-8")
    return setup


def _write_model(folder: Path, setup: Setup, tokenizer: Path) -> str:
    """A random GPT-2 with GPT-2's vocabulary where its files are there, else with a substitute; says which."""
    hf_logging.disable_progress_bar()
    folder.mkdir(parents=True)
    named = write_tokenizer(folder, tokenizer)
    size = len(load_tokenizer(folder))
    bos = load_tokenizer(folder).convert_tokens_to_ids(BOS)
    torch.manual_seed(setup.seed)
    config = GPT2Config(
        vocab_size=max(size, GPT2Config().vocab_size) if setup.width == GPT2Config().n_embd else size,
        n_embd=setup.width,
        n_layer=setup.layers,
        n_head=setup.heads,
        bos_token_id=bos,
        eos_token_id=bos,
    )
    GPT2LMHeadModel(config).eval().save_pretrained(folder)
    return named


def write_tokenizer(folder: Path, tokenizer: Path = GPT2_TOKENIZER) -> str:
    """GPT-2's vocabulary where its files are there, else a substitute; says which."""
    if tokenizer.is_dir():
        for path in tokenizer.iterdir():
            shutil.copyfile(path, folder / path.name)
        return "GPT-2's own"
    log.warning("GPT-2's vocabulary is not in %s; a byte-level BPE trained on the embedded corpus takes its place", tokenizer)
    _substitute_tokenizer().save_pretrained(folder)
    return "substitute: byte-level BPE trained on the embedded corpus"


def _substitute_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4_000, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((row.text for row in embedded_rows()), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS)


def _write_texts(folder: Path, setup: Setup, tokenizer) -> list[np.ndarray]:
    """texts.jsonl, and the ids of its texts without a BOS; neighbouring pieces come from different documents."""
    pieces = exact_pieces([row.text for row in embedded_rows()], tokenizer, setup.context - 1)
    found = [piece for _, piece in zip(range(setup.windows), pieces, strict=False)]
    if len(found) < setup.windows:
        raise InputError(
            f"the embedded corpus holds {len(found)} windows of {setup.context} tokens, fewer than {setup.windows}; ask for fewer tokens"
        )
    with (folder / "texts.jsonl").open("w", encoding="utf-8") as file:
        for i, (text, _) in enumerate(found):
            file.write(json.dumps({"id": str(i), "text": text, "category": "embedded"}) + "\n")
    return [np.asarray(ids, np.int32) for _, ids in found]


def exact_pieces(texts: list[str], tokenizer, length: int) -> Iterator[tuple[str, list[int]]]:
    """Pieces of texts that read as exactly `length` tokens on their own, one of each text in turn, until all are used up."""
    starts = dict.fromkeys(range(len(texts)), 0)
    seen = set()
    while starts:
        for i in list(starts):
            piece, starts[i] = _next_piece(texts[i], starts[i], tokenizer, length)
            if piece is None:
                del starts[i]
            elif piece[0] not in seen:
                seen.add(piece[0])
                yield piece


def _next_piece(text: str, start: int, tokenizer, length: int):
    """The first such piece that begins at a word from `start` on, and where to go on; (None, ...) if there is none."""
    while start < len(text):
        encoded = tokenizer(text[start:], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        if len(encoded["input_ids"]) < length:
            return None, start
        piece = text[start : start + encoded["offset_mapping"][length - 1][1]].strip()
        ids = tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) == length:
            return (piece, ids), _next_word(text, start + len(piece))
        start = _next_word(text, start)
    return None, start


def _next_word(text: str, at: int) -> int:
    """Where the next word after a space begins."""
    space = text.find(" ", at)
    return len(text) if space < 0 else space + 1
