"""Text files of every type: what is read, and what is refused with the place named."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import random
import re
import string
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_checks import refusal, texts, write_jsonl

from sae_explore.texts import text_files
from sae_explore.texts.dataset import load_texts
from sae_explore.types import Document


def test_paragraphs_of_a_text_file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes("\ufeffOne line\r\nand another.\r\n\r\n \t\r\n  Indented é\n\n\nLast, without an end".encode())
    loaded = load_texts([str(path)])
    assert loaded.documents == (
        Document("notes/0", "notes.txt", "notes", "One line\nand another."),
        Document("notes/1", "notes.txt", "notes", "  Indented é"),
        Document("notes/2", "notes.txt", "notes", "Last, without an end"),
    )
    assert loaded.notes == ()
    (info,) = loaded.sources
    assert (info.spec, info.name, info.texts) == (str(path), "notes.txt", 3)
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


ROWS = [
    {"id": "a", "text": "first text", "source": "press", "category": "news"},
    {"id": "b", "text": 'second, with "quotes"\nand a line', "source": "", "category": ""},
    {"id": "", "text": "third\ttext", "source": "diary", "category": "7"},
]


def write_rows(path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
        return
    buffer = io.StringIO(newline="")
    if ".json" in path.name:
        buffer.writelines(json.dumps(row) + "\n\n" for row in ROWS)
    else:
        writer = csv.DictWriter(buffer, list(ROWS[0]), delimiter="\t" if ".tsv" in path.name else ",")
        writer.writeheader()
        writer.writerows(ROWS)
    data = buffer.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl", "d.json", "d.csv.gz", "d.tsv.gz", "d.jsonl.gz", "d.parquet"])
def test_every_type_gives_the_same_documents(tmp_path, name):
    write_rows(tmp_path / name)
    assert load_texts([str(tmp_path / name)]).documents == (
        Document("d/a", "press", "news", "first text"),
        Document("d/b", name, "d", 'second, with "quotes"\nand a line'),
        Document("d/row-2", "diary", "7", "third\ttext"),
    )


def test_a_gzipped_text_file(tmp_path):
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"a b\n\nc d"))
    assert texts(str(tmp_path / "d.txt.gz")) == ["a b", "c d"]


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(st.lists(any_text, max_size=12))
def test_jsonl_round_trip(tmp_path, values):
    path = tmp_path / "d.jsonl"
    write_jsonl(path, [{"text": value} for value in values])
    check_round_trip(path, values)


@given(st.lists(any_text, max_size=12))
def test_csv_round_trip(tmp_path, values):
    path = tmp_path / "d.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["n", "Text"], *([n, value] for n, value in enumerate(values))])
    check_round_trip(path, values)


def check_round_trip(path: Path, values: list[str]) -> None:
    """Exactly the usable texts, each once, in order, and their rows in the ids."""
    usable: dict[str, int] = {}
    for row, value in enumerate(values):
        if value.strip() and "\0" not in value:
            usable.setdefault(value, row)
    if not usable:
        assert "no usable text" in refusal(str(path))
        return
    loaded = load_texts([str(path)])
    assert {d.text: d.id for d in loaded.documents} == {text: f"d/{row}" for text, row in usable.items()}
    assert [d.text for d in loaded.documents] == list(usable)
    assert (loaded.notes == ()) == (len(usable) == len(values))


def test_columns_are_found_in_order_and_without_case(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("Content,Label,TEXT\nc,x,t\n")
    assert load_texts([str(path)]).documents == (Document("d/0", "d.csv", "x", "t"),)
    assert texts(f"{path}?column=Content") == ["c"]
    path.write_text("abstract,sentence\na,s\n")
    assert texts(str(path)) == ["a"]


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl", "d.parquet"])
def test_a_missing_column_is_named_with_those_there_are(tmp_path, name):
    write_rows(tmp_path / name)
    message = refusal(f"{tmp_path / name}?column=body")
    assert "no column 'body'" in message
    assert "'id', 'text', 'source', 'category'" in message
    path = tmp_path / "other.csv"
    path.write_text("a;b\n1;2\n")
    assert "no column text or content or abstract or article or document or sentence; it has 'a;b'" in refusal(str(path))


def test_class_names_of_a_parquet_file(tmp_path):
    features = {"label": {"names": ["World", "Sports"], "_type": "ClassLabel"}, "text": {"dtype": "string", "_type": "Value"}}
    table = pa.table({"text": ["a", "b", "c", "d"], "label": pa.array([0, 1, -1, None], pa.int64())})
    named = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(named, tmp_path / "d.parquet")
    assert [d.category for d in load_texts([str(tmp_path / "d.parquet")]).documents] == ["World", "Sports", "d", "d"]
    pq.write_table(table, tmp_path / "d.parquet")
    assert [d.category for d in load_texts([str(tmp_path / "d.parquet")]).documents] == ["0", "1", "-1", "d"]


def test_parquet_strings_of_other_kinds(tmp_path):
    values = pa.array(["a", None, "b", "a"])
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(pa.table({"text": values.cast(kind)}), tmp_path / "d.parquet")
        loaded = load_texts([str(tmp_path / "d.parquet")])
        assert [d.text for d in loaded.documents] == ["a", "b"]
        assert loaded.notes == ("d.parquet: 1 empty, left out, 1 equal to an earlier text, left out",)
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "d.parquet")
    assert "holds int64, not text" in refusal(str(tmp_path / "d.parquet"))


class Counted(io.FileIO):
    """A file that counts the bytes read from it."""

    count = 0

    def readinto(self, buffer) -> int:
        read = super().readinto(buffer)
        self.count += read
        return read

    def read(self, size=-1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


@pytest.mark.parametrize("name", ["d.txt", "d.csv", "d.jsonl", "d.jsonl.gz", "d.parquet"])
def test_large_files_are_read_piece_by_piece(tmp_path, name):
    generator = random.Random(0)
    lines = ["".join(generator.choices(string.ascii_letters, k=1000)) for _ in range(2000)]
    path = tmp_path / name
    if name == "d.parquet":
        pq.write_table(pa.table({"text": lines}), path, row_group_size=100, compression="none", use_dictionary=False)
    else:
        form = {".txt": "{}\n\n", ".csv": "{}\n"}.get(path.suffix, '{{"text": "{}"}}\n')
        data = (("text\n" if path.suffix == ".csv" else "") + "".join(form.format(line) for line in lines)).encode()
        path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    with Counted(path) as raw, io.BufferedReader(raw) as buffered:
        rows = text_files.read_rows(raw if name == "d.parquet" else buffered, name)
        assert [next(rows).text for _ in range(3)] == lines[:3]
        rows.close()
        assert raw.count < path.stat().st_size / 4


def test_globs_and_stems(tmp_path):
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.txt").write_text(f"text of {folder}\n\nmore of {folder}")
    (tmp_path / "c" / "part.csv").write_text("text\nin a table\n")
    loaded = load_texts([f"{tmp_path}/**/*.txt", f"{tmp_path}/c/part.csv"])
    assert [d.id for d in loaded.documents] == ["part/0", "part/1", "part~2/0", "part~2/1", "part~3/0", "part~3/1", "part~4/0"]
    assert [s.texts for s in loaded.sources] == [2, 2, 2, 1]
    assert sorted(t.split()[-1] for t in texts(f"{tmp_path}/?/part.txt?n=1")) == ["a", "b", "c"]
    assert texts(f"{tmp_path}/a/part.txt?chars=6") == ["text", "more"]
    (tmp_path / "odd[1]?column=x.txt").write_text("literal name")
    assert texts(f"{tmp_path}/odd[1]?column=x.txt") == ["literal name"]


def test_repeated_ids_are_told_apart(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"text": f"t{i}", "id": name} for i, name in enumerate(["x", "x", 5, "row-4", None])])
    assert [d.id for d in load_texts([path]).documents] == ["d/x", "d/x~1", "d/5", "d/row-4", "d/row-4~4"]


def test_names_that_look_like_others_keep_ids_unique(tmp_path):
    (tmp_path / "other").mkdir()
    rows = [{"text": "t"}, {"text": "u"}]
    paths = [
        write_jsonl(tmp_path / name, [{**row, "text": name + row["text"]} for row in rows])
        for name in ("a.jsonl", "a~2.jsonl", "other/a.jsonl")
    ]
    ids = [d.id for d in load_texts(paths).documents]
    assert ids == ["a/0", "a/1", "a~2/0", "a~2/1", "a~3/0", "a~3/1"]


def test_labels_are_short_and_printable(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"text": "t", "id": "a\nb\0\ud800 c", "category": "x" * 999, "source": ["no", "label"]}])
    (document,) = load_texts([path]).documents
    assert (document.id, document.category, document.source) == ("d/a b c", "x" * 200, "d.jsonl")


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("d.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 of .*d.jsonl is not JSON: Expecting value at column"),
        ("d.jsonl", b'{"text": "a"}\n["b"]\n', "line 2 of .* is no JSON object but list"),
        ("d.jsonl", b'{"text": "a"}\n{"text": 5}\n', "row 1 of .* has int in column 'text', not text"),
        ("d.jsonl", b"[" * 100_000, "line 1 of .* is not JSON"),
        ("d.jsonl", b'{"text": ' + b"1" * 5000 + b"}", "line 1 of .* is not JSON"),
        ("d.json", b'[\n{"text": "a"}]\n', "line 1 of .* is not JSON"),
        ("d.txt", b"ok\n\ncaf\xe9\n", "line 3 of .*d.txt is not UTF-8 .byte 0xe9"),
        ("d.txt", "text".encode("utf-16"), "line 1 of .* is not UTF-8 .byte 0xff"),
        ("d.csv", b"\x89PNG\r\n\x1a\n\0\0", "line 1 of .*d.csv is not UTF-8"),
        ("d.csv", b"text,b\na,b\nc, d, e\n", "line 3 of .* has 3 fields, the header has 2"),
        ("d.csv", b'text,b\n"a"x,b\n', "line 2 of .* is malformed"),
        ("d.csv", b'text,b\n"never closed,b\n', "line 2 of .* is malformed: unexpected end of data"),
        ("d.jsonl.gz", b"plain", "damaged or no gzip file"),
        ("d.jsonl.gz", gzip.compress(os.urandom(5000))[:-2000], "damaged or no gzip file|not UTF-8"),
        ("d.parquet", b"PAR1 no PAR1", "cannot be read as Parquet"),
        ("d.parquet", b"", "cannot be read as Parquet"),
        ("d.txt", b"", "there is no usable text in .*d.txt; d.txt has no usable text"),
        ("d.csv", b"", "no usable text"),
        ("d.csv", b"text\n", "no usable text"),
        ("d.txt", b"\0" * 100, "1 with a NUL or a broken character, left out"),
        ("d.pdf", b"%PDF", "'d.pdf' is of no type that is read here: .txt"),
        ("d.parquet.gz", b"", "is of no type that is read here"),
    ],
)
def test_a_damaged_file_is_refused_with_the_place(tmp_path, name, data, expected):
    (tmp_path / name).write_bytes(data)
    assert re.search(expected, refusal(str(tmp_path / name)))


def test_a_cut_gzip_file_is_refused(tmp_path):
    whole = gzip.compress("".join(f'{{"text": "text {i}"}}\n' for i in range(2000)).encode())
    (tmp_path / "d.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    assert "is damaged or no gzip file (Compressed file ended" in refusal(str(tmp_path / "d.jsonl.gz"))


def test_endless_lines_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_MAX_LINE", 1 << 20)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b"0" * (3 << 20)))
    assert "line 1 of" in (message := refusal(str(tmp_path / "d.jsonl.gz")))
    assert "longer than 1 MB" in message


def test_a_parquet_file_with_broken_strings_is_refused(tmp_path):
    column = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    pq.write_table(pa.table({"text": column}), tmp_path / "d.parquet")
    assert "cannot be read as Parquet" in refusal(str(tmp_path / "d.parquet"))


def test_a_batch_that_points_outside_itself_is_refused_before_it_is_read(tmp_path, monkeypatch):
    """Arrow hands out what a damaged file says; reading such a text would read any memory."""
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 100, 6)))
    data = pa.py_buffer(b"onetwo" + b"z" * 200).slice(0, 6)  # what lies behind it is ours
    wild = pa.RecordBatch.from_arrays([pa.StringArray.from_buffers(2, offsets, data)], ["text"])
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda self, **_options: iter([wild]))
    assert re.search("a.parquet cannot be read as Parquet: .*out of bounds: 100 > 6", refusal(str(tmp_path / "a.parquet")))


def test_a_repeated_text_is_held_once(tmp_path, monkeypatch):
    """A file of some kilobytes can repeat a long text a million times."""
    kinds = []
    monkeypatch.setattr(text_files, "_check_lengths", lambda values, _where: kinds.append(values.type))
    pq.write_table(pa.table({"text": ["again and again"] * 200}), tmp_path / "a.parquet")
    assert [d.text for d in load_texts([str(tmp_path / "a.parquet")]).documents] == ["again and again"]
    assert kinds
    assert all(pa.types.is_dictionary(kind) for kind in kinds)
