"""SAELens's format: `cfg.json` + `sae_weights.safetensors`, read in its old forms (before 6.0) and in that of 6.x, written in the latter.

Old configurations are flat and hold every setting of the training run; those of 6.x keep the place in the model under "metadata". A
"standard" architecture with a TopK activation function is how the OpenAI SAEs for GPT-2 are published: it is a TopK SAE (SAELens#553).
Written files load in SAELens as they are: the format is that of `sae_lens.saes.sae.SAE.save_model`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sae_explore.errors import SaeError
from sae_explore.saes.sae import Sae
from sae_explore.saes.sae_files import (
    MAX_WIDTH,
    check_keys,
    flag,
    floating,
    must_be,
    one_of,
    part,
    read_config,
    read_safetensors,
    shown,
    whole,
)
from sae_explore.saes.sae_saelens_keys import MODERN_KEYS, OLD_KEYS
from sae_explore.types import HookPoint, SaeSpec

FORMAT = "saelens"
CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
FILES = (CONFIG_FILE, WEIGHTS_FILE)

_DENSE = ("W_enc", "b_enc", "W_dec", "b_dec")
_TENSORS = {
    "topk": _DENSE,
    "standard": _DENSE,
    "jumprelu": (*_DENSE, "threshold"),
    "batchtopk": (*_DENSE, "topk_threshold"),
    "gated": ("W_enc", "b_gate", "W_dec", "b_dec", "r_mag", "b_mag"),
}
_FOREIGN_NAMES = {"b_gate": "b_enc"}  # the gated family's gate bias stands where the other families' encoder bias stands
_SAME_EQUATIONS = {"matryoshka_batchtopk": "batchtopk"}  # saved so while they are trained; when done, SAELens writes JumpReLU SAEs
_NORMALISE = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}
_SCALED = "expected_average_only_in"  # by one factor, which SAELens folds into the weights when it saves

_FORMAT_VERSION = "6.0.0"  # of cfg.json; without it SAELens takes a file for one of before 6.0 and drops its metadata


def read(folder: Path, name: str) -> Sae:
    """The SAE of a folder as it is stored, with constant scales folded. SaeError if it is not understood."""
    config = read_config(folder / CONFIG_FILE)
    old = "metadata" not in config and ("hook_name" in config or "hook_point" in config or "sae_lens_version" in config)
    config, metadata = _modern(config) if old else (config, part(CONFIG_FILE, config, "metadata"))
    stated = one_of(CONFIG_FILE, config, "architecture", (*_TENSORS, *_SAME_EQUATIONS))
    family = _SAME_EQUATIONS.get(stated, stated)
    if not old:
        check_keys(CONFIG_FILE, config, MODERN_KEYS, of=f"a {family} SAE")
    must_be(CONFIG_FILE, config, "reshape_activations", "none", None, why="SAEs of the residual stream alone are read here")
    must_be(CONFIG_FILE, metadata, "hook_head_index", None, why="SAEs of single attention heads are not read here")
    must_be(CONFIG_FILE, metadata, "hook_name_out", None, why="transcoders are not read here")
    normalise, scale = _normalisation(config)
    hook = metadata.get("hook_name")
    if not isinstance(hook, str):
        raise SaeError(f"{CONFIG_FILE}: metadata.hook_name is missing, so the SAE's place in the model is not known")
    spec = SaeSpec(
        architecture=family,
        d_in=whole(CONFIG_FILE, config, "d_in"),
        d_sae=whole(CONFIG_FILE, config, "d_sae"),
        k=whole(CONFIG_FILE, config, "k") if family == "topk" else _average_k(config) if family == "batchtopk" else None,
        hook=HookPoint.parse(hook).name,
        model=shown(metadata.get("model_name") or ""),
        context=whole(CONFIG_FILE, metadata, "context_size", default=0),
        prepend_bos=flag(CONFIG_FILE, metadata, "prepend_bos", default=True),
        apply_b_dec_to_input=flag(CONFIG_FILE, config, "apply_b_dec_to_input", default=True),
        center_input=flag(
            CONFIG_FILE, part(CONFIG_FILE, metadata, "model_from_pretrained_kwargs"), "center_writing_weights", default=False
        ),
        normalise=normalise,
        source=name,
        format=FORMAT,
    )
    sae = _with_tensors(spec, folder / WEIGHTS_FILE)
    if flag(CONFIG_FILE, config, "rescale_acts_by_decoder_norm", default=False):
        if family not in ("topk", "batchtopk"):
            raise SaeError(f"{CONFIG_FILE}: rescale_acts_by_decoder_norm is true, which a {family} SAE does not have")
        sae = _noted(_decoder_norms_in_encoder(sae), "decoder norms folded as rescale_acts_by_decoder_norm says")
    return _noted(sae.scale_input(scale), f"the input scale {scale:g} of its training folded into the weights") if scale != 1 else sae


def _modern(config: dict) -> tuple[dict, dict]:
    """(configuration, metadata) of one from before 6.0 in the terms of 6.x. SaeError for what cannot be said in them."""
    check_keys(CONFIG_FILE, config, OLD_KEYS, of="an SAE from before SAELens 6")
    must_be(CONFIG_FILE, config, "finetuning_scaling_factor", False, None, why="a finetuned scale of the activations is not read here")
    must_be(CONFIG_FILE, config, "hook_point_head_index", None, why="SAEs of single attention heads are not read here")
    config = {**config, "architecture": config.get("architecture") or "standard"}
    given = {key: config[key] for key in ("activation_fn_str", "activation_fn") if config.get(key) is not None}
    options = part(CONFIG_FILE, config, "activation_fn_kwargs")
    for key in given:
        one_of(CONFIG_FILE, given, key, ("relu", "topk"))
    if "topk" in given.values() or "k" in options or config["architecture"] == "topk":
        if set(given.values()) - {"topk"} or config["architecture"] not in ("standard", "topk"):
            raise SaeError(f"{CONFIG_FILE}: architecture, activation_fn and activation_fn_kwargs do not agree whether this is a TopK SAE")
        check_keys(CONFIG_FILE, options, {"k"}, of="activation_fn_kwargs")
        config |= {"architecture": "topk", "k": options.get("k")}
    elif options:
        check_keys(CONFIG_FILE, options, (), of="activation_fn_kwargs")
    hooks = [config[key] for key in ("hook_name", "hook_point") if config.get(key) is not None]
    metadata = {
        key: config.get(key) for key in ("model_name", "prepend_bos", "context_size", "model_from_pretrained_kwargs", "hook_head_index")
    }
    return config, metadata | {"hook_name": hooks[0] if hooks else None}


def _average_k(config: dict) -> int:
    """How many latents of a BatchTopK SAE are active on average, rounded."""
    k = config.get("k")
    if isinstance(k, bool) or not isinstance(k, int | float) or not 0.5 <= k <= MAX_WIDTH:
        raise SaeError(f"{CONFIG_FILE}: k is {shown(k)!r}, expected a number of at least 1")
    return round(k)


def _normalisation(config: dict) -> tuple[str, float]:
    """(normalisation of the input, constant factor of it)."""
    given = config.get("normalize_activations")
    given = {True: _SCALED, False: "none", None: "none"}[given] if given is None or isinstance(given, bool) else given
    factor = config.get("norm_scaling_factor")
    if given == _SCALED or factor is not None:
        if given not in (_SCALED, "none") or isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1e12:
            raise SaeError(
                f"{CONFIG_FILE}: normalize_activations {shown(given)!r} needs its factor, norm_scaling_factor, which is {shown(factor)!r}; "
                "fold it into the weights (SAELens: fold_activation_norm_scaling_factor) or write it into the file"
            )
        return "none", float(factor)
    return _NORMALISE[one_of(CONFIG_FILE, {"normalize_activations": given}, "normalize_activations", tuple(_NORMALISE))], 1.0


def _with_tensors(spec: SaeSpec, path: Path) -> Sae:
    tensors = read_safetensors(path)
    known = f"a {spec.architecture} SAE"
    if "log_threshold" in tensors and spec.architecture == "jumprelu":  # checkpoints of some versions
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    found = floating(path.name, tensors, _TENSORS[spec.architecture], optional=("scaling_factor",), known=known)
    scaling = found.pop("scaling_factor", None)  # written for a while; of no effect where it is 1
    if scaling is not None and not torch.allclose(scaling, torch.ones_like(scaling)):
        raise SaeError(f"{path.name}: scaling_factor is not 1 throughout: a finetuned scale of the activations is not read here")
    if (one := found.pop("topk_threshold", None)) is not None:
        if one.numel() != 1 or not float(one) > 0:
            raise SaeError(f"{path.name}: topk_threshold is no positive number: this BatchTopK SAE has learned no threshold yet")
        found["threshold"] = one.reshape(1).expand(spec.d_sae).contiguous()
    return Sae(spec, **{_FOREIGN_NAMES.get(name, name): tensor for name, tensor in found.items()}).checked()


def _decoder_norms_in_encoder(sae: Sae) -> Sae:
    """TopK over pre * norm: exactly a decoder of unit norm with a scaled encoder, so that this fold changes no selection."""
    norms = sae.W_dec.norm(dim=-1)
    return replace(sae, W_enc=sae.W_enc * norms, b_enc=sae.b_enc * norms, W_dec=sae.W_dec / norms.clamp_min(1e-12)[:, None])


def _noted(sae: Sae, note: str) -> Sae:
    return replace(sae, spec=replace(sae.spec, notes=(*sae.spec.notes, note)))


def save_sae(sae: Sae, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write an SAE in SAELens's format; fp16 halves the file and rounds the weights to 11 bits. BatchTopK is written as JumpReLU."""
    spec = sae.spec
    family = "jumprelu" if spec.architecture == "batchtopk" else spec.architecture
    if family not in _TENSORS:
        raise SaeError(f"a {family} SAE cannot be written; known: {', '.join(_TENSORS)}")
    folder.mkdir(parents=True, exist_ok=True)
    names = {name: _FOREIGN_NAMES.get(name, name) for name in _TENSORS[family]}
    tensors = {name: getattr(sae, ours).detach().to("cpu", dtype).contiguous() for name, ours in names.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise SaeError(f"{name} does not fit into {str(dtype).removeprefix('torch.')}; store it as float32")
    config = {
        "architecture": family,
        "d_in": spec.d_in,
        "d_sae": spec.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": spec.apply_b_dec_to_input,
        "normalize_activations": {ours: theirs for theirs, ours in _NORMALISE.items()}[spec.normalise],
        "reshape_activations": "none",
        "metadata": {
            "model_name": spec.model,
            "hook_name": spec.hook,
            "context_size": spec.context,
            "prepend_bos": spec.prepend_bos,
            "sae_lens_version": _FORMAT_VERSION,
        },
    }
    if spec.center_input:
        config["metadata"]["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    if family == "topk":
        config |= {"k": spec.k, "rescale_acts_by_decoder_norm": False}
    try:
        save_file(tensors, folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise SaeError(f"{folder / WEIGHTS_FILE} cannot be written: {str(error)[:200]}") from error
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    shutil.copymode(folder / CONFIG_FILE, folder / WEIGHTS_FILE)  # safetensors lets nobody but the owner read its files
