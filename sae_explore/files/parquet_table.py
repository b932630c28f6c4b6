"""A Parquet file as an Arrow table that takes no memory of the process's own, however large it is.

Parquet cannot be memory-mapped: it is compressed. A large file is unpacked once, batch by batch, into a file of Arrow's own format that has
no name and is gone with the process, and that file is mapped: the system reads the rows that are looked at and takes them back where
memory is short. (Reading row groups when they are asked for takes milliseconds each, and a feature's examples lie in forty of them.)
"""

from __future__ import annotations

import logging
import mmap
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

log = logging.getLogger(__name__)

LARGE = 16 << 20  # bytes unpacked; less is held in memory
_ROWS = 1024


def read_table(path: Path, *, scratch: Path) -> pa.Table:
    """All rows. `scratch`: a folder on a disk with room for what a large file unpacks to; where that fails, it is held in memory.

    Raises OSError and pyarrow's errors where the file cannot be read.
    """
    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own keeps some 30 MB of what reading took
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        if sum(group.total_byte_size for group in groups) >= LARGE:
            try:
                return _mapped(file, scratch)
            except OSError as error:  # a read-only folder, a full disk; a damaged file is one too, and is one again below
                log.info("%s is held in memory: %s", path.name, error)
        return file.read()


def _mapped(file: pq.ParquetFile, scratch: Path) -> pa.Table:
    with tempfile.TemporaryFile(dir=scratch) as unpacked:
        with pa.ipc.new_file(unpacked, file.schema_arrow) as out:
            for batch in file.iter_batches(_ROWS):
                out.write_batch(batch)
        unpacked.flush()
        pages = mmap.mmap(unpacked.fileno(), 0, access=mmap.ACCESS_READ)
    return pa.ipc.open_file(pa.py_buffer(pages)).read_all()
