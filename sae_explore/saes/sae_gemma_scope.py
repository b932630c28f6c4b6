"""Gemma Scope (google/gemma-scope-*): `layer_L/width_W/average_l0_N/params.npz`, JumpReLU SAEs without any configuration.

    z = pre * (pre > threshold), pre = x w_enc + b_enc;  x_hat = z w_dec + b_dec          (Lieberum et al. 2024, arXiv:2408.05147)

The repository's name says which part of the model it reads (`-res`: a block's output), the folder which block. Windows begin with a BOS.
"""

from __future__ import annotations

import re
from pathlib import Path

from sae_explore.errors import InputError
from sae_explore.saes.sae import Sae
from sae_explore.saes.sae_files import floating, matrix_sides, read_npz
from sae_explore.types import HookPoint, SaeSpec

FORMAT = "gemma_scope"
WEIGHTS_FILE = "params.npz"
FILES = (WEIGHTS_FILE,)

_TENSORS = {"w_enc": "W_enc", "b_enc": "b_enc", "w_dec": "W_dec", "b_dec": "b_dec", "threshold": "threshold"}
_LAYER = re.compile(r"(?:^|[/\\:])layer_(\d{1,3})(?:[/\\]|$)")
_OTHER_PLACE = re.compile(r"gemma-scope-[\w.-]*?-(mlp|att|transcoders)\b|(?:^|[/\\:])(embedding)(?:[/\\]|$)")
_MODEL = re.compile(r"gemma-scope-(\d+b)-(pt|it)")


def read(folder: Path, name: str) -> Sae:
    """The SAE of a folder; `name` is the repository and the folder in it, or the folder's path."""
    if match := _OTHER_PLACE.search(name):
        raise InputError(f"the Gemma Scope SAE reads {match[1] or match[2]}; only those of a block's output (-res, layer_L) are read here")
    tensors = floating(WEIGHTS_FILE, read_npz(folder / WEIGHTS_FILE), tuple(_TENSORS), known="a Gemma Scope SAE")
    d_in, d_sae = matrix_sides(WEIGHTS_FILE, "w_enc", tensors["w_enc"])
    layer, model = _LAYER.search(name), _MODEL.search(name)
    spec = SaeSpec(
        "jumprelu",
        d_in,
        d_sae,
        hook=HookPoint(int(layer[1])).name if layer else "",
        model=f"google/gemma-2-{model[1]}" + ("-it" if model[2] == "it" else "") if model else "",
        context=0,
        prepend_bos=True,
        apply_b_dec_to_input=False,
        source=name,
        format=FORMAT,
    )
    return Sae(spec, **{_TENSORS[key]: tensor for key, tensor in tensors.items()}).checked()
