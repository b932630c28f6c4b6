"""safetensors files written through memory maps and read back as read-only memory maps, with numpy alone.

The format (8 bytes of header length, JSON header, raw little-endian data) is read here rather than by the library because
its numpy reader copies whole tensors; every length and offset of the header is checked before it is used.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sae_explore.errors import BundleError

_NAME_OF = {
    np.dtype(np.int64): "I64",
    np.dtype(np.int32): "I32",
    np.dtype(np.uint32): "U32",
    np.dtype(np.uint16): "U16",
    np.dtype(np.uint8): "U8",
    np.dtype(np.float16): "F16",
    np.dtype(np.float32): "F32",
    np.dtype(np.bool_): "BOOL",
}
_TYPE_OF = {name: dtype for dtype, name in _NAME_OF.items()}
_MAX_HEADER = 1 << 24
_MAX_DIMENSIONS = 8
_MAX_SIZE = 1 << 48  # the product of the sides that are not 0, which numpy limits in empty tensors too


class TensorWriter:
    """Context manager: a file of tensors of known dtypes and shapes, filled through `map(name)`, renamed into place at the end."""

    def __init__(self, path: Path, tensors: dict[str, tuple[type, tuple[int, ...]]]):
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        header, at = {}, 0
        self._places = {}
        for name, (dtype, shape) in tensors.items():
            dtype = np.dtype(dtype)
            size = dtype.itemsize * math.prod(shape)
            header[name] = {"dtype": _NAME_OF[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
            self._places[name] = (dtype, shape, at)
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._base = 8 + len(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.partial.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                reserve(file, self._base + at)
        except OSError:
            self.partial.unlink(missing_ok=True)
            raise
        self._maps: dict[str, np.ndarray] = {}

    def map(self, name: str) -> np.ndarray:
        if name not in self._maps:
            dtype, shape, at = self._places[name]
            if math.prod(shape) == 0:
                self._maps[name] = np.zeros(shape, dtype)
            else:
                self._maps[name] = np.memmap(self.partial, dtype, "r+", self._base + at, shape)
        return self._maps[name]

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind, value, trace) -> None:
        for array in self._maps.values():
            if isinstance(array, np.memmap):
                array.flush()
        self._maps.clear()
        if kind is None:
            os.replace(self.partial, self.path)
        else:
            self.partial.unlink(missing_ok=True)


def reserve(file: BinaryIO, size: int) -> None:
    """Give an empty file its size and its place on the disk: a full disk is an OSError here, not a crash when its memory map is written."""
    file.flush()
    file.truncate(size)
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # file systems that cannot reserve
                raise OSError(error.errno, error.strerror, file.name) from error


def write_tensors(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write whole arrays at once."""
    with TensorWriter(path, {name: (a.dtype.type, a.shape) for name, a in arrays.items()}) as out:
        for name, array in arrays.items():
            out.map(name)[...] = array


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read-only memory maps of all tensors of a file; BundleError if the header does not describe the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise BundleError(f"{path.name} is damaged: its header length does not fit the file")
            header = json.loads(file.read(length))
            pages = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
        raise BundleError(f"{path.name} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path.name} is damaged: its header is no JSON") from error
    if not isinstance(header, dict):
        raise BundleError(f"{path.name} is damaged: its header is no table of tensors")
    header.pop("__metadata__", None)
    return {name: _read_one(pages, path.name, name, entry, 8 + length) for name, entry in header.items()}


def release(array: np.ndarray) -> None:
    """Take the pages of a memory-mapped array out of this process's memory, which come back when they are read."""
    pages = array
    while isinstance(pages, np.ndarray):
        pages = pages.base
    if isinstance(pages, mmap.mmap) and array.flags.c_contiguous and hasattr(mmap, "MADV_DONTNEED"):
        start = array.ctypes.data - np.ndarray(1, np.uint8, buffer=pages).ctypes.data
        before = start % mmap.PAGESIZE
        pages.madvise(mmap.MADV_DONTNEED, start - before, array.nbytes + before)


def _read_one(pages: mmap.mmap, file: str, name: str, entry: object, base: int) -> np.ndarray:
    try:
        dtype, shape = _TYPE_OF[entry["dtype"]], tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        if any(type(n) is not int for n in (start, stop, *shape)):
            raise TypeError("sizes are whole numbers")
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{file} is damaged: the header of tensor {name[:60]!r} is not understood") from error
    if (
        min((start, *shape)) < 0
        or len(shape) > _MAX_DIMENSIONS
        or math.prod(max(n, 1) for n in shape) > _MAX_SIZE
        or stop - start != dtype.itemsize * math.prod(shape)
        or base + stop > len(pages)
    ):
        raise BundleError(f"{file} is damaged or cut short: tensor {name[:60]!r} does not fit the file")
    if start == stop:
        return np.zeros(shape, dtype)
    # Plain arrays over one map of the file: np.memmap's own indexing is some ten times slower, and each one keeps a file open.
    # Unaligned data (foreign files) is fine: numpy copies what it computes with.
    return np.ndarray(shape, dtype, buffer=pages, offset=base + start)
