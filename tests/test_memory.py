"""Pages of files that leave memory, with every value as it was."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sae_explore.memory import FilePages, available_memory, trim

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is looked after on Linux only")


def resident(tensor: torch.Tensor) -> int:
    """KiB of the mapping around a tensor that are in this process's memory."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            a, b = (int(x, 16) for x in first.split("-"))
            inside = a <= tensor.data_ptr() < b
        elif inside and first == "Rss:":
            return int(line.split()[1])
    raise AssertionError("the tensor lies nowhere")


@pytest.fixture
def mapped(tmp_path) -> torch.Tensor:
    save_file({"before": torch.ones(10), "x": torch.arange(1 << 20, dtype=torch.float32)}, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        return file.get_tensor("x")


def test_pages_of_a_file_leave_memory_and_keep_their_values(mapped):
    total = float(mapped.sum())
    assert resident(mapped) >= 4096
    FilePages(mapped).release()
    assert resident(mapped) < 100
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
