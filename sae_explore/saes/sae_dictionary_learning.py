"""saprmarks/dictionary_learning: a folder with `ae.pt` (a state dict) and `config.json` (the trainer's and the buffer's settings).

    AutoEncoder             ReLU, bias taken from the input     GatedAutoEncoder                        gated
    AutoEncoderNew          ReLU, input as it is                JumpReluAutoEncoder                     JumpReLU, input as it is
    AutoEncoderTopK         TopK                                BatchTopKSAE, MatryoshkaBatchTopKSAE    BatchTopK with its one threshold

`normalize_activations` of their training is folded into the saved weights by themselves. Windows begin with what the tokenizer puts
there by itself.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from sae_explore.errors import InputError, SaeError
from sae_explore.saes.sae import Sae
from sae_explore.saes.sae_files import floating, must_be, one_of, part, read_config, read_pickle, shown, whole
from sae_explore.types import HookPoint, SaeSpec

FORMAT = "dictionary_learning"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "ae.pt"
FILES = (CONFIG_FILE, WEIGHTS_FILE)

_LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}  # nn.Linear: stored the other way round
_PLAIN = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_CLASSES = {  # of the trainer's dict_class: family, their tensors by ours
    "AutoEncoder": ("standard", {**_LINEAR, "bias": "b_dec"}),
    "AutoEncoderNew": ("standard", {**_LINEAR, "decoder.bias": "b_dec"}),
    "GatedAutoEncoder": (
        "gated",
        {"encoder.weight": "W_enc", "gate_bias": "b_enc", "decoder.weight": "W_dec", "decoder_bias": "b_dec", "r_mag": "r_mag", "mag_bias": "b_mag"},
    ),
    "JumpReluAutoEncoder": ("jumprelu", {**_PLAIN, "threshold": "threshold"}),
    "AutoEncoderTopK": ("topk", {**_LINEAR, "b_dec": "b_dec"}),
    "BatchTopKSAE": ("batchtopk", {**_LINEAR, "b_dec": "b_dec", "threshold": "threshold"}),
    "MatryoshkaBatchTopKSAE": ("batchtopk", {**_PLAIN, "threshold": "threshold"}),
}  # fmt: skip
_INPUT_AS_IT_IS = ("AutoEncoderNew", "JumpReluAutoEncoder")
_BUFFERS = {"topk": ("k", "threshold"), "batchtopk": ("k", "group_sizes")}  # not needed to encode, or read apart
_PLACE = re.compile(r"resid_post(?:_layer)?_?\d*|(?:.*\.)?(?:layers|h)\.\d+")


def read(folder: Path, name: str) -> Sae:
    """The SAE of a folder."""
    config = read_config(folder / CONFIG_FILE)
    trainer, buffer = part(CONFIG_FILE, config, "trainer"), part(CONFIG_FILE, config, "buffer")
    kind = one_of(CONFIG_FILE, trainer, "dict_class", tuple(_CLASSES))
    must_be(CONFIG_FILE, buffer, "io", "out", why="only SAEs of a module's output are read here")
    family, names = _CLASSES[kind]
    state = read_pickle(folder / WEIGHTS_FILE)
    buffers = {key: state.pop(key) for key in _BUFFERS.get(family, ()) if key in state}
    tensors = floating(WEIGHTS_FILE, state, tuple(names), known=f"a {kind}")
    ours = {names[key]: tensor.T.contiguous() if key.endswith("coder.weight") else tensor for key, tensor in tensors.items()}
    d_in, d_sae = whole(CONFIG_FILE, trainer, "activation_dim"), whole(CONFIG_FILE, trainer, "dict_size")
    if family == "batchtopk":
        ours["threshold"] = _spread(ours["threshold"], d_sae)
    spec = SaeSpec(
        family,
        d_in,
        d_sae,
        _k(trainer, buffers) if family in _BUFFERS else None,
        hook=_hook(trainer),
        model=shown(trainer.get("lm_name") or ""),
        context=whole(CONFIG_FILE, buffer, "ctx_len", default=0),
        prepend_bos=None,
        apply_b_dec_to_input=kind not in _INPUT_AS_IT_IS,
        source=name,
        format=FORMAT,
    )
    return Sae(spec, **ours).checked()


def _spread(threshold: torch.Tensor, d_sae: int) -> torch.Tensor:
    """Their one threshold for every latent. It starts at -1 and is learned late."""
    if threshold.numel() != 1 or not float(threshold) >= 0:
        raise SaeError(f"{WEIGHTS_FILE}: threshold is no number of at least 0: this BatchTopK SAE has learned no threshold yet")
    return threshold.reshape(1).expand(d_sae).contiguous()


def _k(trainer: dict, buffers: dict) -> int:
    k = whole(CONFIG_FILE, trainer, "k")
    stored = buffers.get("k")
    if isinstance(stored, torch.Tensor) and (stored.numel() != 1 or int(stored) != k):
        raise SaeError(f"{CONFIG_FILE}: k is {k}, but {WEIGHTS_FILE} says {stored.tolist()}")
    return k


def _hook(trainer: dict) -> str:
    """The hook that the trainer names; "" if it names none, InputError for another place than a block's output."""
    submodule, layer = trainer.get("submodule_name"), trainer.get("layer")
    if isinstance(submodule, str) and not _PLACE.fullmatch(submodule):
        raise InputError(f"the SAE reads {submodule[:60]!r}; only SAEs of a block's output (resid_post) are read here")
    if layer is None:
        return ""
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < 1000:
        raise SaeError(f"{CONFIG_FILE}: layer is {shown(layer)!r}, expected the number of a block")
    return HookPoint(layer).name
