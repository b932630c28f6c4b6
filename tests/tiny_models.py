"""Tiny models with a tokenizer of their own, written as Hugging Face folders: for the fixtures, and for scripts that run without pytest."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import sae_explore

BOS = "<|endoftext|>"
VOCABULARY = 600


def paragraphs() -> list[str]:
    """400 paragraphs of the embedded corpus, as they stand in its files."""
    files = sorted((Path(sae_explore.__file__).parent / "texts" / "corpus").glob("*.txt"))
    found = [p for file in files for p in file.read_text(encoding="utf-8").split("\n\n") if 150 < len(p) < 900]
    return found[::3][:400]


def byte_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE of 600 entries, <|endoftext|> = 0, no special token added by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_model(model: torch.nn.Module, tokenizer: Tokenizer, folder: Path) -> Path:
    """Write a model and its tokenizer, with norms that are not the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, model_max_length=128)
    fast.save_pretrained(folder)
    return folder


def tiny_gpt2() -> GPT2LMHeadModel:
    """GPT-2 of 4 blocks and 32 dimensions, context 128, always with the same weights."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=128, n_embd=32, n_layer=4, n_head=2, bos_token_id=0, eos_token_id=0, initializer_range=0.2
    )
    return GPT2LMHeadModel(config)
