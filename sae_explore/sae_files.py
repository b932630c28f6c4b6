"""Reading the files of SAEs that others wrote: JSON, safetensors, PyTorch pickles and NumPy archives, none of them trusted.

Nothing in a file is run: pickles are read with `weights_only=True`, archives without pickled objects. What cannot be read, or is not
what it should be, is an SaeError of one sentence that names the file and the key.
"""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sae_explore.errors import InputError, SaeError

MAX_WIDTH = 1 << 24  # of any side of an SAE
_SHOWN = 60  # characters of a foreign key or value in a message


def read_config(path: Path) -> dict:
    """A JSON object; InputError if there is no such file."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent} is no SAE folder: it holds no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SaeError(f"{path} cannot be read as JSON: {_reason(error)}") from error
    if not isinstance(config, dict):
        raise SaeError(f"{path} holds no JSON object")
    return config


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise SaeError(f"{path.parent} holds no {path.name}") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise SaeError(f"{path} cannot be read: {_reason(error)}") from error


def read_pickle(path: Path) -> dict:
    """A state dict: tensors by name, and what else the file holds of plain values. No object of any other kind is made."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that PyTorch did not write
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SaeError(f"{path.parent} holds no {path.name}") from None
    except pickle.UnpicklingError as error:
        raise SaeError(f"{path} is no file of tensors that PyTorch wrote, or holds other objects, of which none is made here") from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, AttributeError, TypeError, IndexError, zipfile.BadZipFile) as error:
        raise SaeError(f"{path} cannot be read: {_reason(error)}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise SaeError(f"{path} holds {type(found).__name__}, expected tensors by name")
    return found


def read_npz(path: Path) -> dict[str, torch.Tensor]:
    """Arrays of numbers by name."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise SaeError(f"{path} is no archive of arrays")
            arrays = {name: archive[name] for name in archive.files}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    except FileNotFoundError:
        raise SaeError(f"{path.parent} holds no {path.name}") from None
    except (OSError, ValueError, EOFError, TypeError, KeyError, NotImplementedError, zipfile.BadZipFile) as error:
        raise SaeError(f"{path} cannot be read: {_reason(error)}") from error


def floating(
    where: str, tensors: dict, names: Collection[str], *, optional: Collection[str] = (), known: str = ""
) -> dict[str, torch.Tensor]:
    """Exactly these tensors, and of the optional ones those that are there, in fp32. SaeError names what is missing, unknown or no tensor.

    `known` says whose tensors these are, for the message.
    """
    missing, unknown = set(names) - set(tensors), set(tensors) - set(names) - set(optional)
    if missing or unknown:
        wrong = ", ".join(sorted(missing | unknown))[:200]
        raise SaeError(f"{where}: the tensors of {known or 'this SAE'} are {', '.join(sorted(names))}; missing or unknown: {wrong}")
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or tensor.is_sparse:
            kind = str(tensor.dtype).removeprefix("torch.") if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise SaeError(f"{where}: {name} is {kind}, expected a tensor of floating-point numbers")
    return {name: tensor.detach().float() for name, tensor in tensors.items()}


def matrix_sides(where: str, name: str, tensor: torch.Tensor) -> tuple[int, int]:
    """(rows, columns) of what must be a matrix."""
    if tensor.ndim != 2 or not all(1 <= side <= MAX_WIDTH for side in tensor.shape):
        raise SaeError(f"{where}: {name} has shape {tuple(tensor.shape)}, expected a matrix")
    return int(tensor.shape[0]), int(tensor.shape[1])


def check_keys(where: str, config: dict, known: Collection[str], *, of: str) -> None:
    """SaeError naming a key that is not understood: it might change the numbers."""
    unknown = sorted(set(config) - set(known), key=str)
    if unknown:
        shown = ", ".join(sorted(known)) if len(known) <= 15 else ""
        raise SaeError(f"{where}: the key {str(unknown[0])[:_SHOWN]!r} of {of} is not understood" + (f"; known: {shown}" if shown else ""))


def whole(where: str, config: dict, key: str, *, default: int | None = None) -> int:
    """A whole number of at least 1; the default where the key is absent or null."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not (1 <= value <= MAX_WIDTH or (value == default)):
        raise SaeError(f"{where}: {key} is {str(value)[:_SHOWN]!r}, expected a whole number of at least 1")
    return value


def flag(where: str, config: dict, key: str, *, default: bool) -> bool:
    """True or false; the default where the key is absent or null."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise SaeError(f"{where}: {key} is {str(value)[:_SHOWN]!r}, expected true or false")
    return value


def one_of(where: str, config: dict, key: str, allowed: Collection[str], *, default: str | None = None) -> str:
    """One of some words; the default where the key is absent or null."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, str) or value not in allowed:
        raise SaeError(f"{where}: {key} {str(value)[:_SHOWN]!r} is not supported; known: {', '.join(allowed)}")
    return value


def must_be(where: str, config: dict, key: str, *allowed: object, why: str) -> None:
    """SaeError unless the key is absent or has one of these values: another one would change the numbers."""
    if key in config and not any(type(config[key]) is type(value) and config[key] == value for value in allowed):
        raise SaeError(f"{where}: {key} {str(config[key])[:_SHOWN]!r} is not supported: {why}")


def part(where: str, config: dict, key: str) -> dict:
    """An object inside the object; {} where the key is absent or null."""
    value = config.get(key)
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise SaeError(f"{where}: {key} is {type(value).__name__}, expected an object")
    return value


def _reason(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
