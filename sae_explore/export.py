"""Taking features along: one HTML file to read, or a table of features to work with, as Parquet, CSV or JSON lines.

A table has a row a feature: the columns of `features.parquet` and, beside the automatic label, those given by hand and by the visitor;
lens lists, nearest features, firings by category and the histogram as lists. In CSV lists are JSON, and a cell that a spreadsheet would
take for a formula begins with an apostrophe; Parquet and JSON lines hold every string as it is. A file appears when it is whole.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing.standalone_html import feature_html, feature_html_parts
from sae_explore.errors import InputError
from sae_explore.explore.text_view import ranked_csv
from sae_explore.json_output import trace_json
from sae_explore.models.tokens import readable
from sae_explore.notebook.notes import Notes, OwnLabel
from sae_explore.types import TextTrace

__all__ = [
    "FORMATS",
    "TABLES",
    "TRACES",
    "atomic_file",
    "csv_cell",
    "feature_html",
    "features_table",
    "write_features",
    "write_table",
    "write_trace",
]

TRACES = ("json", "csv")
TABLES = ("parquet", "csv", "jsonl")
FORMATS = ("html", *TABLES)
LENS = 10  # tokens of each lens list
_BATCH = 1_024  # features worked on at once
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def features_table(bundle: Bundle, features: Sequence[int] | np.ndarray, *, notes: Notes | None = None) -> pa.Table:
    """The rows of these features, in their order."""
    features = np.asarray(features, np.int64)
    table = bundle.features.take(features)
    automatic = table["label"].to_pylist()
    own = [(notes.labels.get(f) if notes else None) for f in features.tolist()]
    human = [bundle.human_labels.get(f) for f in features.tolist()]
    shown = [(o.label if o else "") or h or a for o, h, a in zip(own, human, automatic, strict=True)]
    at = table.column_names.index("label")
    table = table.set_column(at, "label", pa.array(shown, pa.string()))
    for offset, (name, values) in enumerate(
        (
            ("automatic_label", automatic),
            ("human_label", human),
            ("own_label", [o.label or None if o else None for o in own]),
            ("note", [o.note or None if o else None for o in own]),
        ),
        1,
    ):
        table = table.add_column(at + offset, name, pa.array(values, pa.string()))
    for side in ("positive", "negative"):
        ids, logits = (np.asarray(bundle.lens[f"{bundle.lens_default}.{part}"][features, :LENS]) for part in (f"{side}_ids", side))
        table = table.append_column(f"{side}_tokens", _lists(_token_texts(bundle, ids), ids.shape[1], pa.string()))
        table = table.append_column(f"{side}_logits", _lists(logits.astype(np.float32).ravel(), ids.shape[1], pa.float32()))
    for name, array, kind in (
        ("neighbours", "decoder_neighbours", pa.int32()),
        ("neighbour_cosines", "decoder_cosines", pa.float32()),
        ("histogram", "histogram", pa.uint32()),
    ):
        rows = np.asarray(bundle.arrays[array][features])
        table = table.append_column(name, _lists(rows.astype(kind.to_pandas_dtype()).ravel(), rows.shape[1], kind))
    counts = np.asarray(bundle.arrays["categories"][features])
    for i, category in enumerate(bundle.categories):
        table = table.append_column(f"firings: {category}", pa.array(counts[:, i], pa.uint32()))
    return table


def _lists(flat: Sequence, width: int, kind: pa.DataType) -> pa.Array:
    """(rows * width,) values as lists of `width`."""
    values = pa.array(flat, kind)
    rows = len(values) // width if width else 0
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * width), values)


def _token_texts(bundle: Bundle, ids: np.ndarray) -> list[str]:
    unique, at = np.unique(ids, return_inverse=True)
    texts = [readable(data) for data in bundle.bytes_of(unique.astype(np.int64))]
    return [texts[i] for i in at.ravel().tolist()]


# ---- tables as files ---------------------------------------------------------------------------------------------------


def write_table(out: BinaryIO, bundle: Bundle, features: Sequence[int] | np.ndarray, form: str, *, notes: Notes | None = None) -> None:
    """Stream the rows of these features into an open file, a batch at a time, as one of TABLES."""
    features = np.asarray(features, np.int64)
    batches = (features_table(bundle, features[a : a + _BATCH], notes=notes) for a in range(0, max(len(features), 1), _BATCH))
    {"parquet": _parquet, "csv": _csv, "jsonl": _jsonl}[form](out, batches)


def _parquet(out: BinaryIO, batches: Iterator[pa.Table]) -> None:
    import pyarrow.parquet as pq

    first = next(batches)
    with pq.ParquetWriter(out, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for batch in batches:
            writer.write_table(batch)


def _csv(out: BinaryIO, batches: Iterator[pa.Table]) -> None:
    text = io.TextIOWrapper(out, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\r\n")  # as RFC 4180 has it; a token that is a lone \r is quoted only so
    for i, batch in enumerate(batches):
        if not i:
            writer.writerow([csv_cell(name) for name in batch.column_names])
        writer.writerows([csv_cell(value) for value in row] for row in zip(*(c.to_pylist() for c in batch.columns), strict=True))
    text.detach()


def csv_cell(value: object) -> object:
    """A value for CSV: lists as JSON, and no text that a spreadsheet would run as a formula."""
    if isinstance(value, list):
        return json.dumps(_plain(value), ensure_ascii=False)
    return f"'{value}" if isinstance(value, str) and len(value) > 1 and value.startswith(_FORMULA) else value


def _jsonl(out: BinaryIO, batches: Iterator[pa.Table]) -> None:
    for batch in batches:
        for row in batch.to_pylist():
            out.write(json.dumps({key: _plain(value) for key, value in row.items()}, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def _plain(value: object) -> object:
    """For JSON, which has no word for numbers that are not finite."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- files -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes `path`'s place when the block ends without an error, and leaves nothing behind otherwise."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_features(
    path: Path,
    bundle: Bundle,
    features: Sequence[int] | np.ndarray,
    form: str,
    *,
    notes: Notes | None = None,
    title: str = "",
    note: str = "",
    entry_notes: Mapping[int, str] | None = None,
) -> int:
    """Write one of FORMATS and return its size in bytes. `title`, `note` and `entry_notes` are a list's, for HTML."""
    notes = notes or Notes()
    labelled = bundle.with_labels(notes.own_labels)
    with atomic_file(path) as file:
        if form == "html":
            said = entry_notes or {}
            own = {int(f): "\n".join(filter(None, (notes.labels.get(f, OwnLabel()).note, said.get(f, "")))) for f in features}
            for part in feature_html_parts(labelled, [int(f) for f in features], title=title, note=note, notes=own):
                file.write(part.encode())
        else:
            write_table(file, bundle, features, form, notes=notes)
        return file.tell()


def write_trace(path: Path, bundle: Bundle, trace: TextTrace, form: str) -> int:
    """Write what fires on a text as one of TRACES and return its size: every activation as JSON, or a row a feature as CSV."""
    made = json.dumps(trace_json(trace, bundle), ensure_ascii=False) + "\n" if form == "json" else ranked_csv(trace, bundle)
    with atomic_file(path) as file:
        return file.write(made.encode())
