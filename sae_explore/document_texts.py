"""The texts of a bundle's `documents.parquet`, read when they are asked for: a row group at a time, so that they take no more memory in a
large corpus than in a small one."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GROUP = 1_024  # documents in a row group of the files that are written here
_KEPT = 4  # row groups in memory
COLUMN = "text"


class DocumentTexts:
    """Texts by row number; shared by all threads. The file stays open, so that a newer generation of the bundle takes nothing away.

    pyarrow's exceptions if the file is no Parquet file, KeyError if it has no texts.
    """

    def __init__(self, path: Path):
        self._file = pq.ParquetFile(path, memory_map=True)
        self._index = self._file.schema_arrow.names.index(COLUMN) if COLUMN in self._file.schema_arrow.names else None
        if self._index is None:
            raise KeyError(COLUMN)
        self.type = self._file.schema_arrow.field(COLUMN).type
        metadata = self._file.metadata
        self._starts = np.cumsum([0, *(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))])
        self._lock = threading.Lock()
        self._groups: dict[int, pa.ChunkedArray] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def gaps(self) -> int:
        """Rows without a text: as the file's statistics say, or counted where it has none."""
        metadata, found = self._file.metadata, 0
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(self._index).statistics
            if statistics is not None and statistics.has_null_count:
                found += statistics.null_count
            else:
                found += self._file.read_row_group(group, columns=[COLUMN], use_threads=False).column(0).null_count
        return found

    def __getitem__(self, row: int) -> str | None:
        """None where the file has a gap."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        with self._lock:  # a Parquet file is read by one thread at a time
            texts = self._groups.pop(group, None)
            if texts is None:
                texts = self._file.read_row_group(group, columns=[COLUMN], use_threads=False).column(0)
            self._groups[group] = texts
            while len(self._groups) > _KEPT:
                del self._groups[next(iter(self._groups))]
        return texts[row - int(self._starts[group])].as_py()
