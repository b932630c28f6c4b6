"""Dequantise a GGUF file into an ordinary model folder (fp32 safetensors, tokenizer.json): python -m sae_explore.models.gguf_model FILE FOLDER.

transformers' own GGUF loader does the work. Two things it leaves to us: its result refuses to be saved, though it is plain
fp32 once loaded, and it does not know the pre-tokenizer that llama.cpp calls "smollm" (digits one by one before byte level).
"""

from __future__ import annotations

import sys
from pathlib import Path


def convert(gguf: Path, folder: Path) -> None:
    """Write `folder` with the model and tokenizer of a GGUF file."""
    import torch
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    field = GGUFReader(gguf).fields.get("tokenizer.ggml.pre")
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if field is not None and field.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
