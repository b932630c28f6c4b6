"""Reading the files of SAEs that others wrote: JSON, safetensors, PyTorch pickles and NumPy archives, none of them trusted.

Nothing in a file is run: pickles are read with `weights_only=True`, archives without pickled objects. What cannot be read, or is not
what it should be, is an SaeError of one sentence that names the file and the key.
"""

from __future__ import annotations

import json
import math
import pickle
import reprlib
import struct
import tarfile
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sae_explore.errors import InputError, SaeError
from sae_explore.memory import available_memory

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0}  # of NumPy's arrays; the others are read alike
MAX_WIDTH = 1 << 24  # of any side of an SAE
_MAX_CONFIG = 1 << 24  # bytes
_SPARE = 1 << 28  # bytes of memory left to the rest of the program when an archive is unpacked
_SHOWN = 60  # characters of a foreign key or value in a message


def read_config(path: Path) -> dict:
    """A JSON object; InputError if there is no such file."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CONFIG + 1)
        if len(data) > _MAX_CONFIG:
            raise SaeError(f"{path} is larger than {_MAX_CONFIG:,} bytes, so it is no configuration")
        config = json.loads(data.decode("utf-8"))
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
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        raise SaeError(f"{path} cannot be read: {_reason(error)}") from error


def read_pickle(path: Path) -> dict:
    """A state dict: tensors by name, and what else the file holds of plain values. No object of any other kind is made."""
    try:
        if not _begins_as_zip(path) and tarfile.is_tarfile(path):  # PyTorch would unpack it to a folder of the system before it refuses it
            raise SaeError(
                f"{path} cannot be read: it is a tar archive, the form of PyTorch before 2017; save it again with a newer version"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that PyTorch did not write
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SaeError(f"{path.parent} holds no {path.name}") from None
    except pickle.UnpicklingError as error:
        raise SaeError(f"{path} is no file of tensors that PyTorch wrote, or holds other objects, of which none is made here") from error
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, AttributeError, TypeError, ArithmeticError, AssertionError,
            MemoryError, struct.error, zipfile.BadZipFile) as error:  # fmt: skip
        raise SaeError(f"{path} cannot be read: {_reason(error)}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise SaeError(f"{path} holds {type(found).__name__}, expected tensors by name")
    return found


def _begins_as_zip(path: Path) -> bool:
    """PyTorch's own test, stricter than that of `zipfile`: a tar archive with a zip archive behind it is none."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_npz(path: Path) -> dict[str, torch.Tensor]:
    """Arrays of numbers by name."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise SaeError(f"{path} is no archive of arrays")
            _check_sizes(path, archive)
            arrays = {name: archive[name] for name in archive.files}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    except FileNotFoundError:
        raise SaeError(f"{path.parent} holds no {path.name}") from None
    except (OSError, ValueError, EOFError, TypeError, LookupError, RuntimeError, ArithmeticError, MemoryError, SyntaxError, struct.error,
            zlib.error, tokenize.TokenError, zipfile.BadZipFile) as error:  # fmt: skip
        raise SaeError(f"{path} cannot be read: {_reason(error)}") from error


def _check_sizes(path: Path, archive: np.lib.npyio.NpzFile) -> None:
    """SaeError for an archive that unpacks to more than the memory holds, or an array that claims more than its part of the file."""
    sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.zip.infolist()}
    free = available_memory()
    if free is not None and sum(sizes.values()) > max(free - _SPARE, 0):
        raise SaeError(f"{path} unpacks to {sum(sizes.values()) / 1e6:,.0f} MB, more than the {free / 1e6:,.0f} MB of memory that are free")
    for name in archive.files:
        with archive.zip.open(f"{name}.npy" if f"{name}.npy" in archive.zip.namelist() else name) as file:
            if file.peek(6)[:6] != b"\x93NUMPY":
                raise SaeError(f"{path}: {name[:_SHOWN]!r} is no array")
            shape, _, dtype = _HEADERS.get(np.lib.format.read_magic(file), np.lib.format.read_array_header_2_0)(file)
        if dtype.itemsize * math.prod(shape) > sizes[name]:
            raise SaeError(f"{path}: {name[:_SHOWN]!r} is cut short: its header says {shape}")


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
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.") if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise SaeError(f"{where}: {name} is {kind}, expected a tensor of floating-point numbers")
        if not _is_plain(tensor):
            raise SaeError(f"{where}: {name} is sparse, nested, without data or larger than what is stored of it; expected a plain tensor")
    return {name: tensor.detach().float() for name, tensor in tensors.items()}


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is what a file holds of it: not sparse, nested or without data, nor a few numbers repeated to a huge matrix."""
    if tensor.is_nested or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def matrix_sides(where: str, name: str, tensor: torch.Tensor) -> tuple[int, int]:
    """(rows, columns) of what must be a matrix."""
    if tensor.ndim != 2 or not all(1 <= side <= MAX_WIDTH for side in tensor.shape):
        raise SaeError(f"{where}: {name} has shape {tuple(tensor.shape)}, expected a matrix")
    return int(tensor.shape[0]), int(tensor.shape[1])


def check_keys(where: str, config: dict, known: Collection[str], *, of: str) -> None:
    """SaeError naming a key that is not understood: it might change the numbers."""
    unknown = sorted(set(config) - set(known), key=str)
    if unknown:
        listed = ", ".join(sorted(known)) if len(known) <= 15 else ""
        raise SaeError(f"{where}: the key {shown(unknown[0])!r} of {of} is not understood" + (f"; known: {listed}" if listed else ""))


def whole(where: str, config: dict, key: str, *, default: int | None = None) -> int:
    """A whole number of at least 1; the default where the key is absent or null."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not (1 <= value <= MAX_WIDTH or (value == default)):
        raise SaeError(f"{where}: {key} is {shown(value)!r}, expected a whole number of at least 1")
    return value


def flag(where: str, config: dict, key: str, *, default: bool) -> bool:
    """True or false; the default where the key is absent or null."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise SaeError(f"{where}: {key} is {shown(value)!r}, expected true or false")
    return value


def one_of(where: str, config: dict, key: str, allowed: Collection[str], *, default: str | None = None) -> str:
    """One of some words; the default where the key is absent or null."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, str) or value not in allowed:
        raise SaeError(f"{where}: {key} {shown(value)!r} is not supported; known: {', '.join(allowed)}")
    return value


def must_be(where: str, config: dict, key: str, *allowed: object, why: str) -> None:
    """SaeError unless the key is absent or has one of these values: another one would change the numbers."""
    if key in config and not any(type(config[key]) is type(value) and config[key] == value for value in allowed):
        raise SaeError(f"{where}: {key} {shown(config[key])!r} is not supported: {why}")


def part(where: str, config: dict, key: str) -> dict:
    """An object inside the object; {} where the key is absent or null."""
    value = config.get(key)
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise SaeError(f"{where}: {key} is {type(value).__name__}, expected an object")
    return value


def shown(value: object) -> str:
    """A foreign value for a message: short, and however deeply it is nested."""
    return (str(value) if isinstance(value, str | int | float | None) else reprlib.repr(value))[:_SHOWN]


def _reason(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
