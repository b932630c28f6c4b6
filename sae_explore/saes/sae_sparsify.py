"""EleutherAI's sparsify: a folder named as the module it reads (`layers.5`, `h.5`) with `cfg.json` + `sae.safetensors`.

    z = TopK(ReLU(encoder.weight (x - b_dec) + encoder.bias)),  x_hat = z W_dec + b_dec          (sparsify.sparse_coder.SparseCoder)

`config.json` beside the folders, where it is there, says the model and the length of the windows. Windows begin with what the tokenizer
puts there by itself.
"""

from __future__ import annotations

import re
from pathlib import Path

from sae_explore.errors import InputError, SaeError
from sae_explore.saes.sae import Sae
from sae_explore.saes.sae_files import check_keys, flag, floating, matrix_sides, must_be, one_of, read_config, read_safetensors, whole
from sae_explore.types import HookPoint, SaeSpec

FORMAT = "sparsify"
CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae.safetensors"
FILES = (CONFIG_FILE, WEIGHTS_FILE)
RUN_FILE = "config.json"  # in the folder above

_KEYS = {"activation", "expansion_factor", "normalize_decoder", "num_latents", "k", "multi_topk", "skip_connection", "transcode", "d_in",
         "signed"}  # fmt: skip
_TENSORS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
_BLOCK = re.compile(r"(?:.*\.)?(?:layers|h)[._](\d{1,3})")
_INNER = re.compile(r"(?:.*\.)?(?:layers|h)[._]\d{1,3}\..+|embed_tokens|wte")


def read(folder: Path, name: str) -> Sae:
    """The SAE of a folder; `name` ends in the folder's own name, which says where it reads."""
    config = read_config(folder / CONFIG_FILE)
    check_keys(CONFIG_FILE, config, _KEYS, of="a sparsify SAE")
    one_of(CONFIG_FILE, config, "activation", ("topk",), default="topk")
    for key, why in (
        ("transcode", "transcoders are not read here"),
        ("skip_connection", "transcoders are not read here"),
        ("signed", "signed activations are not read here"),
    ):
        if flag(CONFIG_FILE, config, key, default=False):
            raise SaeError(f"{CONFIG_FILE}: {key} is true: {why}")
    tensors = floating(WEIGHTS_FILE, read_safetensors(folder / WEIGHTS_FILE), _TENSORS, known="a sparsify SAE")
    d_sae, d_in = matrix_sides(WEIGHTS_FILE, "encoder.weight", tensors["encoder.weight"])
    must_be(CONFIG_FILE, config, "d_in", d_in, why=f"encoder.weight has {d_in} columns")
    must_be(CONFIG_FILE, config, "num_latents", d_sae, 0, None, why=f"encoder.weight has {d_sae} rows")
    if not config.get("num_latents") and whole(CONFIG_FILE, config, "expansion_factor", default=32) * d_in != d_sae:
        raise SaeError(
            f"{CONFIG_FILE}: expansion_factor {config.get('expansion_factor')} is not that of encoder.weight, which is {d_sae} x {d_in}"
        )
    run = read_config(folder.parent / RUN_FILE) if (folder.parent / RUN_FILE).is_file() else {}
    spec = SaeSpec(
        "topk",
        d_in,
        d_sae,
        whole(CONFIG_FILE, config, "k", default=32),
        hook=_hook(re.split(r"[/\\:]", name)[-1]),
        model=run["model"] if isinstance(run.get("model"), str) else "",
        context=whole(RUN_FILE, run, "ctx_len", default=0),
        prepend_bos=None,
        source=name,
        format=FORMAT,
    )
    return Sae(spec, tensors["encoder.weight"].T.contiguous(), tensors["encoder.bias"], tensors["W_dec"], tensors["b_dec"]).checked()


def _hook(folder: str) -> str:
    """The hook of a folder's name; "" if it says nothing, InputError if it names another place than a block."""
    if match := _BLOCK.fullmatch(folder):
        return HookPoint(int(match[1])).name
    if _INNER.fullmatch(folder):
        raise InputError(f"the sparsify SAE {folder[:60]!r} does not read the output of a block, the only place that is read here")
    return ""
