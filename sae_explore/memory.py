"""What this process may take of the machine's memory, and how it gives back what it does not need. Linux; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # asking for the memory alone needs no torch
    import torch

_MADV_DONTNEED = 4
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGEST_FROM_HEAP = 32 << 20  # glibc takes no larger threshold


def available_memory() -> int | None:
    """Bytes that this process may still take: what the system has, or what its container's limit leaves. None where it is not known."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = next(int(x.split()[1]) for x in (group / "memory.stat").read_text().splitlines() if x.startswith("anon "))
            found.append(max(0, int(limit) - used))
    except (OSError, ValueError, StopIteration):
        pass
    return min(found, default=None)


class FilePages:
    """The pages of a tensor that a file is mapped to. Letting go of them changes no value: they are read again when they are needed.

    Only for tensors that nobody writes to: what was written to a private mapping would be lost.
    """

    def __init__(self, tensor: torch.Tensor):
        self._tensor = tensor  # its memory must not be used for something else as long as this object may let go of it
        start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
        self._first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
        self.mapped = tensor.device.type == "cpu" and tensor.is_contiguous() and _maps_a_file(start, stop)
        self._size = max(0, last - self._first) if self.mapped else 0

    def release(self) -> None:
        """Take the pages out of this process's memory; does nothing where the tensor is not mapped."""
        if self._size and (libc := _libc()):
            libc.madvise(ctypes.c_void_p(self._first), ctypes.c_size_t(self._size), _MADV_DONTNEED)


def _maps_a_file(start: int, stop: int) -> bool:
    """Whether the addresses lie in one private or shared mapping of a file."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        addresses, _, _, _, inode, *path = line.split(maxsplit=5)
        first, last = (int(x, 16) for x in addresses.split("-"))
        if first <= start < last:
            return stop <= last and inode != "0" and bool(path)
    return False


def trim() -> None:
    """Give freed memory back to the system, which glibc keeps for later. Takes some milliseconds."""
    if libc := _libc():
        libc.malloc_trim(0)


def keep_freed() -> None:
    """Have freed memory kept for the next allocation. A build makes tensors of the same few megabytes over and over; without this glibc
    gives each back and the kernel hands out zeroed pages again, which takes a twentieth of a forward pass."""
    if libc := _libc():
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_FROM_HEAP)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


@cache
def _libc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if all(hasattr(libc, name) for name in ("madvise", "malloc_trim", "mallopt")) else None
