"""Pages of files that leave memory, with every value as it was."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sae_explore import memory
from sae_explore.files.tensor_file import read_tensors, release, write_tensors
from sae_explore.memory import FilePages, available_memory, keep_freed, trim

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is looked after on Linux only")


def resident(address: int) -> int:
    """KiB of the mapping around an address that are in this process's memory."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            a, b = (int(x, 16) for x in first.split("-"))
            inside = a <= address < b
        elif inside and first == "Rss:":
            return int(line.split()[1])
    raise AssertionError("nothing is mapped there")


@pytest.fixture
def mapped(tmp_path) -> torch.Tensor:
    save_file({"before": torch.ones(10), "x": torch.arange(1 << 20, dtype=torch.float32)}, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        return file.get_tensor("x")


def test_pages_of_a_file_leave_memory_and_keep_their_values(mapped):
    total = float(mapped.sum())
    assert resident(mapped.data_ptr()) >= 4096
    FilePages(mapped).release()
    assert resident(mapped.data_ptr()) < 100
    assert float(mapped.sum()) == total
    assert float(mapped[-1]) == (1 << 20) - 1


def test_memory_that_belongs_to_no_file_is_left_alone():
    for tensor in (torch.full((1 << 18,), 3.0), torch.ones(4), torch.zeros(0)):
        before, pages = tensor.clone(), FilePages(tensor)
        assert not pages.mapped
        pages.release()
        assert torch.equal(tensor, before)


def test_parts_and_turned_views(mapped):
    FilePages(mapped[1000:200_000]).release()  # whole pages inside the part only
    FilePages(mapped.view(1024, 1024).T).release()  # not contiguous: nothing is known to be its own
    assert torch.equal(mapped, torch.arange(1 << 20, dtype=torch.float32))


def test_what_is_available_is_known_and_giving_back_harms_nothing():
    assert 1 << 20 < available_memory() < 1 << 50
    kept = torch.ones(1000)
    trim()
    assert float(kept.sum()) == 1000


def test_a_build_has_freed_memory_kept(monkeypatch):
    """Of glibc's settings, as <malloc.h> numbers them: M_TRIM_THRESHOLD is -1, M_MMAP_THRESHOLD is -3."""
    told = {}

    class Libc:
        mallopt = staticmethod(told.__setitem__)

    monkeypatch.setattr(memory, "_libc", Libc)
    keep_freed()
    assert sorted(told) == [-3, -1]
    assert min(told.values()) >= 32 << 20
    assert told[-3] <= 32 << 20  # larger ones are refused: HEAP_MAX_SIZE / 2


@pytest.mark.parametrize(("limit", "expected"), [("max", 2_048_000), ("1500000", 1_000_000), ("400000", 0), ("9000000", 2_048_000)])
def test_what_is_available_is_the_less_of_the_systems_and_the_containers(tmp_path, monkeypatch, limit, expected):
    """2,000 kB of the system's; of a container's limit what its own 500,000 bytes leave (its files' pages can be given back)."""
    files = {
        "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:   2000 kB\n",
        "sys/fs/cgroup/memory.max": f"{limit}\n",
        "sys/fs/cgroup/memory.stat": "file 777\nanon 500000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "Path", lambda name: tmp_path / name.lstrip("/"))
    assert available_memory() == expected


def test_freed_memory_is_given_back(monkeypatch):
    told = []

    class Libc:
        malloc_trim = staticmethod(told.append)

    monkeypatch.setattr(memory, "_libc", Libc)
    trim()
    assert told == [0]


def test_an_array_of_a_bundle_leaves_memory_and_keeps_its_values(tmp_path):
    write_tensors(tmp_path / "a", {"before": np.ones(3, np.uint8), "x": np.arange(1 << 20, dtype=np.float32)})
    array = read_tensors(tmp_path / "a")["x"]
    assert float(array.max()) == (1 << 20) - 1
    assert resident(array.ctypes.data) >= 4096
    release(array)
    assert resident(array.ctypes.data) < 100
    assert float(array[12_345]) == 12_345
