"""Read and write SAEs on disk in SAELens's format: `cfg.json` + `sae_weights.safetensors` (SAELens 6.x).

Written files load in SAELens as they are; read files are checked key by key, and what this program does not understand is
refused by name instead of being ignored. The format is that of `sae_lens.saes.sae.SAE.save_model`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sae_explore.errors import InputError, SaeError
from sae_explore.sae import Sae
from sae_explore.types import HookPoint, SaeSpec

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"

# What SAELens 6.x writes at the top level of cfg.json, by family. Keys that change the numbers must have a value we support.
_COMMON = {"architecture", "d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input", "normalize_activations",
           "reshape_activations", "metadata"}  # fmt: skip
_BY_FAMILY = {"topk": {"k", "rescale_acts_by_decoder_norm"}, "standard": set(), "jumprelu": set(), "gated": set()}
_NORMALISE = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}
_TENSORS = {
    "topk": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "standard": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "jumprelu": ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"),
    "gated": ("W_enc", "b_gate", "W_dec", "b_dec", "r_mag", "b_mag"),
}
_FORMAT_VERSION = "6.0.0"  # of cfg.json; without it SAELens takes a file for one of before 6.0 and drops its metadata
_FOREIGN_NAMES = {"b_gate": "b_enc"}  # the gated family's gate bias stands where the other families' encoder bias stands


def load_sae(folder: Path, *, source: str = "", fold: bool = True) -> Sae:
    """Read a SAELens folder. SaeError in one sentence if it is not understood, InputError if it is no such folder.

    With `fold`, families whose selection does not depend on it get unit decoder rows (activations scaled to compensate, SAELens#463).
    """
    config = _read_config(folder)
    family = config.get("architecture")
    if not isinstance(family, str) or family not in _BY_FAMILY:
        raise SaeError(f"{CONFIG_FILE}: SAE architecture {str(family)[:60]!r} is not supported; known: {', '.join(_BY_FAMILY)}")
    unknown = sorted(set(config) - _COMMON - _BY_FAMILY[family])
    if unknown:
        known = ", ".join(sorted(_COMMON | _BY_FAMILY[family]))
        raise SaeError(f"{CONFIG_FILE}: the key {unknown[0][:60]!r} of a {family} SAE is not understood; known: {known}")
    spec = _spec_of(config, family, source or str(folder))
    sae = _with_tensors(spec, folder)
    norms = sae.W_dec.norm(dim=-1)
    if config.get("rescale_acts_by_decoder_norm"):  # TopK over pre * norm: exactly a unit-norm decoder with a scaled encoder
        sae = replace(sae, W_enc=sae.W_enc * norms, b_enc=sae.b_enc * norms, W_dec=sae.W_dec / norms.clamp_min(1e-12)[:, None],
                      spec=replace(spec, notes=(*spec.notes, "decoder norms folded as rescale_acts_by_decoder_norm says")))  # fmt: skip
    elif fold and family != "topk" and float((norms - 1).abs().max()) > 1e-3:
        sae = sae.fold_decoder_norms()
    return sae


def save_sae(sae: Sae, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a SAE in SAELens's format; fp16 halves the file and rounds the weights to 11 bits."""
    spec = sae.spec
    if spec.architecture not in _TENSORS:
        raise SaeError(f"a {spec.architecture} SAE cannot be written; known: {', '.join(_TENSORS)}")
    folder.mkdir(parents=True, exist_ok=True)
    names = {name: _FOREIGN_NAMES.get(name, name) for name in _TENSORS[spec.architecture]}
    tensors = {name: getattr(sae, ours).detach().to("cpu", dtype).contiguous() for name, ours in names.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise SaeError(f"{name} does not fit into {str(dtype).removeprefix('torch.')}; store it as float32")
    config = {
        "architecture": spec.architecture,
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
    if spec.architecture == "topk":
        config |= {"k": spec.k, "rescale_acts_by_decoder_norm": False}
    try:
        save_file(tensors, folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise SaeError(f"{folder / WEIGHTS_FILE} cannot be written: {str(error)[:200]}") from error
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    shutil.copymode(folder / CONFIG_FILE, folder / WEIGHTS_FILE)  # safetensors lets nobody but the owner read its files


def _read_config(folder: Path) -> dict:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder} is no SAE folder: it holds no {CONFIG_FILE}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SaeError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise SaeError(f"{path} holds no JSON object")
    return config


def _spec_of(config: dict, family: str, source: str) -> SaeSpec:
    metadata = config.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise SaeError(f"{CONFIG_FILE}: metadata is {type(metadata).__name__}, expected an object")
    normalise = config.get("normalize_activations", "none")
    if not isinstance(normalise, str) or normalise not in _NORMALISE:
        raise SaeError(f"{CONFIG_FILE}: normalize_activations {str(normalise)[:60]!r} is not supported; known: {', '.join(_NORMALISE)}")
    if config.get("reshape_activations", "none") != "none":
        raise SaeError(f"{CONFIG_FILE}: reshape_activations {str(config['reshape_activations'])[:60]!r} is not supported; known: none")
    hook = metadata.get("hook_name")
    if not isinstance(hook, str):
        raise SaeError(f"{CONFIG_FILE}: metadata.hook_name is missing, so the SAE's place in the model is not known")
    return SaeSpec(
        architecture=family,
        d_in=_whole(config, "d_in"),
        d_sae=_whole(config, "d_sae"),
        k=_whole(config, "k") if family == "topk" else None,
        hook=HookPoint.parse(hook).name,
        model=str(metadata.get("model_name") or ""),
        context=_whole(metadata, "context_size", default=128),
        prepend_bos=_flag(metadata, "prepend_bos"),
        apply_b_dec_to_input=_flag(config, "apply_b_dec_to_input"),
        normalise=_NORMALISE[normalise],
        source=source,
    )


def _whole(config: dict, key: str, *, default: int | None = None) -> int:
    value = config.get(key, default)
    if value is None and default is not None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 24:
        raise SaeError(f"{CONFIG_FILE}: {key} is {str(value)[:60]!r}, expected a whole number of at least 1")
    return value


def _flag(config: dict, key: str) -> bool:
    """A flag that SAELens takes for set where it is not given."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise SaeError(f"{CONFIG_FILE}: {key} is {str(value)[:60]!r}, expected true or false")
    return value is not False


def _with_tensors(spec: SaeSpec, folder: Path) -> Sae:
    path = folder / WEIGHTS_FILE
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise SaeError(f"{folder} holds no {WEIGHTS_FILE}") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise SaeError(f"{path} cannot be read: {(str(error).splitlines() or ['no reason given'])[0][:200]}") from error
    expected = set(_TENSORS[spec.architecture])
    if set(tensors) != expected:
        wrong, known = ", ".join(sorted(set(tensors) ^ expected))[:200], ", ".join(sorted(expected))
        raise SaeError(f"{path.name}: the tensors of a {spec.architecture} SAE are {known}; missing or unknown: {wrong}")
    ours = {_FOREIGN_NAMES.get(name, name): tensor.float() for name, tensor in tensors.items()}
    return Sae(spec, **ours).checked()
