"""OpenAI's SAEs for GPT-2 (openai/sparse_autoencoder): one `.pt` file, a state dict with the name of its activation function.

    TopK: x' = (x - mean(x)) / (std(x) + 1e-5), std unbiased;  z = ReLU(TopK(encoder.weight (x' - pre_bias) + latent_bias))
          x_hat = (decoder.weight z + pre_bias) std(x) + mean(x)
    ReLU: the same without the normalisation

Whether the input is normalised follows from the activation function, as in their own loader. The file does not say where it reads; its
path in their storage does: `resid_post_mlp_v5_32k/autoencoders/6.pt`. Nor does it say whether windows began with a BOS.
"""

from __future__ import annotations

import re
from pathlib import Path

from sae_explore.errors import InputError, SaeError
from sae_explore.saes.sae import Sae
from sae_explore.saes.sae_files import floating, matrix_sides, must_be, one_of, part, read_pickle, whole
from sae_explore.types import HookPoint, SaeSpec

FORMAT = "openai"
_TENSORS = ("pre_bias", "encoder.weight", "latent_bias", "decoder.weight")
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")  # of training
_PLACE = re.compile(r"(?P<place>[a-z_]+?)(?:_v\w+)?/autoencoders/(?P<layer>\d{1,3})(?:\.pt)?")
_OWN_KEYS = ("activation", "activation_state_dict")


def read(file: Path, name: str) -> Sae:
    """The SAE of a `.pt` file; `name` is the path under which it was published, if it is known."""
    state = read_pickle(file)
    where = file.name
    family = one_of(where, state, "activation", ("TopK", "ReLU"), default="ReLU")
    options = part(where, state, "activation_state_dict")
    must_be(where, options, "postact_fn", "ReLU", why="the activations of a TopK SAE go through a ReLU here")
    tensors = {key: value for key, value in state.items() if key not in (*_OWN_KEYS, *_STATISTICS)}
    tensors = floating(where, tensors, _TENSORS, known="an OpenAI SAE whose encoder and decoder are not tied")
    d_sae, d_in = matrix_sides(where, "encoder.weight", tensors["encoder.weight"])
    if family == "TopK" and set(options) - {"k", "postact_fn"}:
        raise SaeError(f"{where}: activation_state_dict holds {sorted(map(str, options))}, expected k and postact_fn")
    spec = SaeSpec(
        "topk" if family == "TopK" else "standard",
        d_in,
        d_sae,
        whole(where, options, "k") if family == "TopK" else None,
        hook=_hook(name),
        model="gpt2",
        context=64,  # of all their autoencoders
        prepend_bos=None,
        normalise="layer_norm" if family == "TopK" else "none",
        source=name,
        format=FORMAT,
    )
    matrices = (tensors[f"{part}coder.weight"].T.contiguous() for part in ("en", "de"))
    W_enc, W_dec = matrices
    return Sae(spec, W_enc, tensors["latent_bias"], W_dec, tensors["pre_bias"]).checked()


def _hook(name: str) -> str:
    """The hook of a path in their storage; "" if it is none, InputError if the SAE reads another place than a block's output."""
    match = _PLACE.search(name.replace("\\", "/"))
    if match is None:
        return ""
    if match["place"] != "resid_post_mlp":
        raise InputError(f"the OpenAI SAE reads {match['place']}; only those of resid_post_mlp, the output of a block, are read here")
    return HookPoint(int(match["layer"])).name
