"""Weights kept in the files' own precision, memory-mapped, and read in fp32: the same numbers in a half of the memory or less.

fp16 and bf16 values are exactly representable in fp32, so converting a matrix each time it is used changes no result, only time:
    embedding   the rows of the tokens at hand are converted; the matrix itself is never copied
    blocks      "float32": copied to fp32 once when loaded (fast)
                "stored": left on disk and converted one block at a time in every run; a short text takes up to some two or three
                times as long, thousands of tokens at once a few per cent
    fp32 files  are used as they are, memory-mapped, with nothing converted at all
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from sae_explore.errors import InputError
from sae_explore.memory import FilePages, available_memory
from sae_explore.models.model_structure import StandIn, path_of

CHOICES = ("auto", "float32", "stored")
_HALF = {"F16": torch.float16, "BF16": torch.bfloat16}
_SHARE = 0.5  # of the available memory that fp32 copies of half-precision blocks may take


def half_tensors(folder: Path) -> dict[str, torch.dtype]:
    """Names and dtypes of the tensors that a folder's safetensors files hold in half precision. Bad files are for the loader to report."""
    found = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    if dtype := _HALF.get(file.get_slice(name).get_dtype()):
                        found[name] = dtype
        except (OSError, SafetensorError):
            continue
    return found


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return [folder / "model.safetensors"]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []
    return [folder / str(name) for name in sorted(names, key=str)]


def expect_half(model: nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    """Give the parameters of a model without data (on the meta device) the dtypes of their files, so that none is converted."""
    prefix = f"{model.base_model_prefix}."
    for name, parameter in list(model.named_parameters()):
        dtype = dtypes.get(name) or dtypes.get(name.removeprefix(prefix)) or dtypes.get(prefix + name)
        if dtype and parameter.dtype == torch.float32:
            path, _, leaf = name.rpartition(".")
            model.get_submodule(path)._parameters[leaf] = nn.Parameter(torch.empty_like(parameter, dtype=dtype), requires_grad=False)


def settle(model: nn.Module, blocks: nn.ModuleList, weights: str, *, whole: bool) -> str:
    """Make a loaded model compute in fp32 whatever its files hold; what was chosen, in words.

    `weights` is one of CHOICES. Of a model that is not `whole` the unembedding stays as stored: only the lens reads it.
    """
    if weights not in CHOICES:
        raise InputError(f"weights {weights!r} is not understood; use {', '.join(CHOICES)}")
    model.requires_grad_(False)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    half = next((p.dtype for p in model.parameters() if p.dtype in _HALF.values()), None)
    keep = half is not None and (weights == "stored" or (weights == "auto" and not _fits(model if whole else blocks)))
    if keep:
        for i, block in enumerate(blocks):
            blocks[i] = _Converted(block)
        if whole:
            _replace(model, head, _Converted(head))
    if keep or not whole:
        _replace(model, embedding, _Rows(embedding))
    for module in model.modules():
        if whole or module is not head:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
    if half is None:
        return "fp32"
    how = "block by block in each run" if keep else "when loaded"
    return f"{str(half).removeprefix('torch.')}, converted to fp32 {how}, which is exact"


def _fits(module: nn.Module) -> bool:
    """Whether fp32 copies of a module's half-precision parameters leave enough of the available memory."""
    needed = sum(4 * p.numel() for p in module.parameters() if p.dtype in _HALF.values())
    available = available_memory()
    return available is None or needed <= _SHARE * available


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    path, _, leaf = path_of(model, old).rpartition(".")
    model.get_submodule(path)._modules[leaf] = new


class _Kept(StandIn):
    """Holds a module whose parameters stay as stored, hidden from the model."""

    def __init__(self, module: nn.Module):
        nn.Module.__init__(self)
        self.__dict__["block"] = module
        self._parameters["anchor"] = nn.Parameter(torch.zeros(0), requires_grad=False)  # what the model takes its dtype and device from

    def __getattr__(self, name: str):
        return getattr(self.__dict__["block"], name)

    def _apply(self, fn, recurse=True):  # `.to(device)` reaches what is hidden
        self.__dict__["block"]._apply(fn, recurse)
        return super()._apply(fn, recurse)


class _Converted(_Kept):
    """A block whose parameters are converted to fp32 while it runs, in a copy of its own: calls at once do not meet."""

    def forward(self, *args, **kwargs):
        return _in_fp32(self.__dict__["block"])(*args, **kwargs)


class _Rows(_Kept):
    """An embedding of which the matrix stays on disk and only the rows at hand are read, in fp32."""

    def __init__(self, embedding: nn.Module):
        super().__init__(embedding)
        embedding.padding_idx = None  # means nothing among the rows at hand; it matters for gradients only
        self.__dict__["pages"] = FilePages(embedding.weight.detach())

    def forward(self, ids: torch.Tensor):
        embedding = self.__dict__["block"]
        if embedding.weight.dtype == torch.float32:
            out = embedding(ids)
        else:
            wanted, at = torch.unique(ids, return_inverse=True)
            view = copy.copy(embedding)  # its own code runs on the rows: Gemma's scales them
            view._parameters = {"weight": embedding.weight[wanted].float()}
            out = view(at)
        self.__dict__["pages"].release()
        return out


def _in_fp32(module: nn.Module) -> nn.Module:
    """A copy of the module object, and of those in it, with fp32 parameters."""
    view = copy.copy(module)
    view._parameters = {name: None if p is None else p.float() for name, p in module._parameters.items()}
    view._modules = {name: None if child is None else _in_fp32(child) for name, child in module._modules.items()}
    return view
