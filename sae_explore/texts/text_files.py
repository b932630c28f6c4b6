"""Rows of text out of open files, one at a time: paragraphs, CSV, JSON lines and Parquet, local or on the Hub.

Nothing is read whole: text files go line by line, Parquet by small batches. A file whose structure is wrong is refused with
the place named; what to do with an unusable text is left to the caller.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from sae_explore.errors import InputError
from sae_explore.terminal import clean
from sae_explore.texts.text_specs import PARQUET, text_format

MAX_TEXT = 1_000_000  # characters of one text; longer ones are shortened
_MAX_LINE = 64 << 20  # bytes of one line or value, several times what a text of MAX_TEXT can need
_MAX_COLUMNS = 10_000
_BATCH = 64  # rows of a Parquet file read at once
_TEXT_COLUMNS = ("text", "content", "abstract", "article", "document", "sentence")
_LABEL_LENGTH = 200


class TextRow(NamedTuple):
    """One row of a file. A label is "" where the file has none."""

    number: int  # of the row in its file, from 0
    text: str | None
    id: str = ""
    source: str = ""
    category: str = ""


class Limits(NamedTuple):
    """How much of a file that nobody vouches for is read: a small one can unpack to a huge one."""

    rows: int  # lines, or rows of a Parquet file
    unpacked: int  # bytes


def read_rows(file: BinaryIO, name: str, *, column: str | None = None, limits: Limits | None = None) -> Iterator[TextRow]:
    """Rows of an open file whose type its `name` tells.

    A .txt file holds one text per paragraph: paragraphs are separated by blank lines. The others have a column of texts, named
    or found as text, content, abstract, article, document or sentence, and may have columns id, source and category (or label).

    Raises InputError if the file is damaged, not UTF-8, larger than the limits or lacks the column; errors of the file system pass through.
    """
    kind = text_format(name)
    if kind == PARQUET:
        yield from _parquet_rows(file, name, column, limits)
        return
    lines = _lines(gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file, name, limits)
    if kind == ".txt":
        if column is not None:
            raise InputError(f"{name} is plain text and has no column {column!r}")
        yield from _paragraphs(lines)
    elif kind == ".jsonl":
        yield from _json_rows(lines, name, column)
    else:
        yield from _csv_rows(lines, name, column, "\t" if kind == ".tsv" else ",")


def _check_size(name: str, rows: int, unpacked: int, limits: Limits | None) -> None:
    if limits is not None and rows > limits.rows:
        raise InputError(f"{name} has more than {limits.rows:,} lines or rows, the limit here; split it, or build in the terminal")
    if limits is not None and unpacked > limits.unpacked:
        raise InputError(f"{name} unpacks to more than {limits.unpacked:,} bytes, the limit here; split it, or build in the terminal")


def _lines(file: BinaryIO, name: str, limits: Limits | None) -> Iterator[tuple[int, str]]:
    """(number from 1, line with its end) of a UTF-8 file, bounded in length."""
    number = size = 0
    while True:
        number += 1
        try:
            raw = file.readline(_MAX_LINE + 1)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{name} is damaged or no gzip file ({error}); line {number} cannot be read") from error
        if not raw:
            return
        size += len(raw)
        _check_size(name, number, size, limits)
        if len(raw) > _MAX_LINE:
            raise InputError(f"line {number} of {name} is longer than {_MAX_LINE >> 20} MB; is it a file of texts?")
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = raw[error.start]
            raise InputError(f"line {number} of {name} is not UTF-8 (byte 0x{byte:02x}); convert it, if it is a text file") from error
        yield number, line.removeprefix("\ufeff") if number == 1 else line


def _paragraphs(lines: Iterator[tuple[int, str]]) -> Iterator[TextRow]:
    count, size, kept = 0, 0, []
    for _, line in lines:
        line = line.rstrip("\r\n")
        if line.strip():
            if size <= MAX_TEXT:  # what comes after is cut in any case
                kept.append(line)
            size += len(line) + 1
        elif kept:
            yield TextRow(count, "\n".join(kept))
            count, size, kept = count + 1, 0, []
    if kept:
        yield TextRow(count, "\n".join(kept))


def _json_rows(lines: Iterator[tuple[int, str]], name: str, column: str | None) -> Iterator[TextRow]:
    columns, count = None, 0
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise InputError(f"line {number} of {name} is not JSON: {reason}") from error
        if not isinstance(row, dict):
            raise InputError(f"line {number} of {name} is no JSON object but {type(row).__name__}; expected is one a line")
        columns = columns or _find_columns(list(row), name, column)
        yield _row(count, {field: row.get(key) for field, key in columns.items()}, name, columns)
        count += 1


def _csv_rows(lines: Iterator[tuple[int, str]], name: str, column: str | None, delimiter: str) -> Iterator[TextRow]:
    csv.field_size_limit(_MAX_LINE)  # the library's own limit is 128 kB, for the whole process
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        if len(header) > _MAX_COLUMNS:
            raise InputError(f"{name} has {len(header):,} columns, the limit is {_MAX_COLUMNS:,}; is it a table of texts?")
        columns = _find_columns(header, name, column)
        at = {field: None if key is None else header.index(key) for field, key in columns.items()}
        count = 0
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise InputError(f"line {reader.line_num} of {name} has {len(cells)} fields, the header has {len(header)}")
            yield _row(count, {field: None if i is None else cells[i] for field, i in at.items()}, name, columns)
            count += 1
    except csv.Error as error:
        raise InputError(f"line {reader.line_num} of {name} is malformed: {str(error).replace(chr(9), 'tab')}") from error


def _parquet_rows(file: BinaryIO, name: str, column: str | None, limits: Limits | None) -> Iterator[TextRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file, pre_buffer=False)
        schema = table.schema_arrow
        columns = _find_columns(schema.names, name, column)
        kinds = {key: _value_type(schema.field(schema.names.index(key)).type) for key in columns.values() if key is not None}
        kind = kinds[columns["text"]]
        if not (_is_text(kind) or pa.types.is_null(kind)):
            raise InputError(
                f"column {columns['text']!r} of {name} holds {schema.field(schema.names.index(columns['text'])).type}, not text"
            )
        labels = {key for key, kind in kinds.items() if _is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)}
        columns = {field: key if field == "text" or key in labels else None for field, key in columns.items()}
        names = _class_names(schema.metadata or {}, columns["category"])
        wanted = [c for c in dict.fromkeys(columns.values()) if c is not None]
        _check_size(name, table.metadata.num_rows, _unpacked_size(table.metadata), limits)
        # Repeated values stay one value each: a file of some kilobytes can repeat a long text a million times.
        repeated = [key for key in wanted if pa.types.is_string(kinds[key])]
        table = pq.ParquetFile(file, metadata=table.metadata, pre_buffer=False, read_dictionary=repeated)
        count = 0
        for batch in table.iter_batches(batch_size=_BATCH, columns=wanted, use_threads=False):
            batch.validate(full=True)  # a damaged file can hold indices and offsets that point anywhere in memory
            found = {key: batch.column(batch.schema.get_field_index(key)) for key in wanted}
            for key, values in found.items():
                _check_lengths(values, f"column {key!r} of {name}")
            for i in range(batch.num_rows):
                values = {field: None if key is None else found[key][i].as_py() for field, key in columns.items()}
                if names and isinstance(values["category"], int):
                    values["category"] = names[values["category"]] if 0 <= values["category"] < len(names) else None
                yield _row(count, values, name, columns)
                count += 1
                _check_size(name, count, 0, limits)
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError, LookupError) as error:
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):  # of the file system or the network
            raise
        raise InputError(f"{name} cannot be read as Parquet: {clean(' '.join(str(error).split()))[:200]}") from error


def _value_type(kind):
    """The type of a column's values, which may be kept in a dictionary."""
    return getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind


def _is_text(kind) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _unpacked_size(metadata) -> int:
    """Bytes of all columns, as the file itself says. (PyArrow ends the whole process where a damaged file is asked about single columns.)"""
    return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


def _check_lengths(values, where: str) -> None:
    """InputError for a text that is longer than a line may be, before it is copied."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = values.dictionary if pa.types.is_dictionary(values.type) else values
    if _is_text(values.type) and values.nbytes > _MAX_LINE and pc.max(pc.binary_length(values.cast(pa.large_string()))).as_py() > _MAX_LINE:
        raise InputError(f"{where} holds a text longer than {_MAX_LINE >> 20} MB; is it a column of texts?")


def _class_names(metadata: dict[bytes, bytes], category: str | None) -> Sequence[str]:
    """Names of an integer column's classes, as the `datasets` library writes them into the schema's metadata."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return tuple(str(name) for name in features[category]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()


def _find_columns(names: Sequence[str], name: str, column: str | None) -> dict[str, str | None]:
    """The column of each field of a row, None where there is none; names are compared without case unless one is asked for."""
    by_fold = {n.strip().lower(): n for n in reversed(names)}
    if column is None:
        column = next((by_fold[c] for c in _TEXT_COLUMNS if c in by_fold), None)
        wanted = f"no column {' or '.join(_TEXT_COLUMNS)}"
    else:
        wanted = f"no column {column!r}"
    if column not in names:
        shown = ", ".join(repr(n[:40]) for n in names[:20]) or "none"
        raise InputError(f"{name} has {wanted}; it has {shown}: name one with column=")
    category = by_fold.get("category", by_fold.get("label"))
    return {"text": column, "id": by_fold.get("id"), "source": by_fold.get("source"), "category": category}


def _row(number: int, values: dict[str, object], name: str, columns: dict[str, str | None]) -> TextRow:
    text = values["text"]
    if text is not None and not isinstance(text, str):
        raise InputError(f"row {number} of {name} has {type(text).__name__} in column {columns['text']!r}, not text")
    labels = {field: _label(values[field]) for field in ("id", "source", "category")}
    if columns["id"] is not None and not labels["id"]:
        labels["id"] = f"row-{number}"
    return TextRow(number, text, **labels)


def _label(value: object) -> str:
    """A short printable string; "" for what is none."""
    if not isinstance(value, (str, int)):
        return ""
    shown = "".join(c if c.isprintable() else " " for c in str(value)[: 4 * _LABEL_LENGTH])
    return " ".join(shown.split())[:_LABEL_LENGTH]
