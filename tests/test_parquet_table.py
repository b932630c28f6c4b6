"""Large Parquet files as mapped tables: the same rows as pyarrow's own reader gives, outside of the process's own memory."""

import errno
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sae_explore.files import parquet_table
from sae_explore.files.parquet_table import read_table

ROWS = 3_000  # more than two batches


@pytest.fixture
def path(tmp_path):
    rows = {"id": [f"d/{i}" for i in range(ROWS)], "text": [f"Text {i} é ☂ " * 20 for i in range(ROWS)], "n": list(range(ROWS))}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet", compression="zstd")
    return tmp_path / "a.parquet"


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def allocated(read) -> tuple[pa.Table, int]:
    before = pa.total_allocated_bytes()
    table = read()
    return table, pa.total_allocated_bytes() - before


def test_a_large_file_takes_no_memory_of_the_process(path, scratch, monkeypatch):
    held, size = allocated(lambda: read_table(path, scratch=scratch))
    assert size > 200 * ROWS  # its texts
    monkeypatch.setattr(parquet_table, "LARGE", 1)
    mapped, taken = allocated(lambda: read_table(path, scratch=scratch))
    assert taken < size / 50
    assert mapped.equals(held)
    assert mapped.equals(pq.read_table(path))
    assert mapped["text"][ROWS - 1].as_py() == f"Text {ROWS - 1} é ☂ " * 20
    assert mapped["id"].index("d/2999").as_py() == 2999
    assert not list(scratch.iterdir())
    if maps := Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else "":  # each buffer lies in a file without a name
        ranges = [(line.split()[0].split("-"), line) for line in maps.splitlines() if str(scratch) in line]
        for buffer in mapped["text"].chunk(1).buffers()[1:]:
            assert any(int(a, 16) <= buffer.address < int(b, 16) for (a, b), _ in ranges)


def test_what_reading_took_is_given_back(path, scratch):
    """Arrow's own allocators keep it for later."""
    read_table(path, scratch=scratch)
    assert pa.default_memory_pool().backend_name == "system"


def test_without_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_table, "LARGE", 0)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet", scratch=tmp_path).num_rows == 0


def full_disk(*args, **kwargs):
    class File(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    return File()


@pytest.mark.parametrize("trouble", ["full", "no folder"])
def test_without_room_the_rows_are_held_in_memory(path, scratch, monkeypatch, trouble):
    monkeypatch.setattr(parquet_table, "LARGE", 1)
    if trouble == "full":
        monkeypatch.setattr(parquet_table.tempfile, "TemporaryFile", full_disk)
    table, size = allocated(lambda: read_table(path, scratch=scratch if trouble == "full" else scratch / "none"))
    assert size > 200 * ROWS
    assert table.equals(pq.read_table(path))


def test_a_damaged_file_is_an_error_and_leaves_nothing(path, scratch, monkeypatch):
    monkeypatch.setattr(parquet_table, "LARGE", 1)
    data = bytearray(path.read_bytes())
    data[2_000:6_000] = bytes(4_000)
    path.write_bytes(data)
    with pytest.raises((OSError, pa.ArrowException)):
        read_table(path, scratch=scratch)
    assert not list(scratch.iterdir())
