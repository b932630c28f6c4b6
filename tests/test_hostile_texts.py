"""Texts and files of texts of strangers: read or refused in one sentence, within the limits on rows, columns and unpacked bytes."""

import gzip
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_explore.bundles.bundle import Bundle
from sae_explore.bundles.tracer import Tracer
from sae_explore.errors import ExploreError, InputError
from sae_explore.explore.text_view import check_own_text
from sae_explore.files.bundle_files import check_name
from sae_explore.notebook.notes_json import read_json, to_json
from sae_explore.texts import text_files, uploads
from sae_explore.texts.dataset import load_texts
from sae_explore.texts.uploads import check_upload, safe_name

pytest_plugins = ["bundle_fixtures"]
hostile = settings(derandomize=True, max_examples=60)
NAMES = ("a.txt", "a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.txt.gz", "a.csv.gz", "a.jsonl.gz")


def refusal(name: str, data: bytes, **options) -> str:
    with pytest.raises(InputError) as caught:
        check_upload(name, io.BytesIO(data), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1_000
    return message


def read_or_refuse(name: str, data: bytes):
    try:
        return check_upload(name, io.BytesIO(data))
    except InputError as error:
        return None if "\n" not in str(error) and str(error).isprintable() else pytest.fail(repr(str(error)))


def parquet(table: pa.Table, **options) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


# ---- files of any bytes ------------------------------------------------------------------------------------------------

cells = st.text(max_size=12) | st.sampled_from(["", '"', '"x', "a,b", "\0", "\r", "\u2028", "\u202e", "x" * 300, "=1+1"])
odd_bytes = st.sampled_from(
    [b"text\n", b'{"text": "x"}\n', b'"', b",", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"PAR1", b"\x1f\x8b\x08", b"[", b'{"text":']
)


@hostile
@given(st.sampled_from(NAMES), st.lists(odd_bytes | st.binary(max_size=10), max_size=12).map(b"".join), st.booleans())
def test_any_bytes_are_read_or_refused(name, data, packed):
    read_or_refuse(name, gzip.compress(data) if packed and name.endswith(".gz") else data)


@hostile
@given(st.lists(st.lists(cells, max_size=4), max_size=5), st.sampled_from(["a.csv", "a.tsv"]))
def test_any_table_is_read_or_refused(name_rows, name):
    data = "\n".join(("," if name == "a.csv" else "\t").join(row) for row in [["text", "id", "category"], *name_rows])
    read_or_refuse(name, data.encode())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "id", "x"]), inner, max_size=3),
    max_leaves=6,
)


@hostile
@given(st.lists(json_values | st.fixed_dictionaries({"text": json_values, "id": json_values, "category": json_values}), max_size=4))
def test_any_json_lines_are_read_or_refused(rows):
    read_or_refuse("a.jsonl", "\n".join(map(json.dumps, rows)).encode())


@hostile
@given(st.data())
def test_any_flipped_bytes_of_a_parquet_file_are_read_or_refused(data):
    options = {"compression": data.draw(st.sampled_from(["none", "snappy", "zstd", "gzip"])), "use_dictionary": data.draw(st.booleans())}
    content = bytearray(parquet(pa.table({"text": ["one", "two", None, "x" * 200], "id": [1, 2, 3, None]}), **options))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    read_or_refuse("a.parquet", bytes(content))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_brackets_without_end(name):
    data = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert "line 1 of" in refusal(name, gzip.compress(data) if name.endswith(".gz") else data)


ODD_TABLES = {
    "lists of lists": pa.table({"text": [[["a"]]]}),
    "objects": pa.table({"text": [{"a": "b"}]}),
    "bytes": pa.table({"text": [b"\xff"]}),
    "times": pa.table({"text": pa.array([1], pa.timestamp("s"))}),
    "a dictionary of numbers": pa.table({"text": pa.array([1, 1]).dictionary_encode()}),
    "nothing": pa.table({"text": pa.nulls(3)}),
    "no columns": pa.table({}),
}


@pytest.mark.parametrize("what", ODD_TABLES)
def test_columns_that_are_no_texts_are_refused(what):
    assert "a.parquet" in refusal("a.parquet", parquet(ODD_TABLES[what]))


ODD_LABELS = {
    "lists": pa.array([[1]]),
    "objects": pa.array([{"x": 1}]),
    "times beyond the calendar": pa.array([2**62], pa.timestamp("us")),
    "durations": pa.array([2**62], pa.duration("ns")),
    "bytes": pa.array([b"\xff"]),
    "decimals": pa.array([1]).cast(pa.decimal128(38, 5)),
    "nothing": pa.nulls(1),
}


@pytest.mark.parametrize("kind", ODD_LABELS)
@pytest.mark.parametrize("field", ["id", "source", "category"])
def test_labels_of_odd_kinds_are_passed_over(tmp_path, kind, field):
    (tmp_path / "a.parquet").write_bytes(parquet(pa.table({"text": ["x"], field: ODD_LABELS[kind]})))
    (document,) = load_texts([str(tmp_path / "a.parquet")]).documents
    assert (document.text, document.source, document.category) == ("x", "a.parquet", "a")


@pytest.mark.parametrize(
    "metadata", ["[" * 100_000, '{"info": 3}', '{"info":{"features":{"label":{"names":5}}}}', "\xff", '{"info":{"features":[]}}']
)
def test_odd_metadata_of_a_parquet_file_is_passed_over(metadata):
    table = pa.table({"text": ["x"], "label": [1]}).replace_schema_metadata({"huggingface": metadata})
    assert check_upload("a.parquet", io.BytesIO(parquet(table))).texts == 1


# ---- limits ------------------------------------------------------------------------------------------------------------


def test_a_million_columns_are_refused():
    header = ",".join(f"c{i}" for i in range(10**6))
    assert "a.csv has 1,000,001 columns, the limit is 10,000" in refusal("a.csv", f"text,{header}\n".encode())


@pytest.mark.parametrize("name", ["a.txt.gz", "a.csv.gz", "a.jsonl.gz"])
def test_empty_lines_without_end_are_refused(name, monkeypatch):
    """A megabyte of gzip holds a thousand million of them, which would take minutes."""
    monkeypatch.setattr(uploads, "MAX_ROWS", 1_000)
    assert "has more than 1,000 lines or rows" in refusal(name, gzip.compress((b"text" if "csv" in name else b"") + b"\n" * 1_000_000))


def test_rows_without_end_are_refused(monkeypatch):
    monkeypatch.setattr(uploads, "MAX_ROWS", 1_000)
    assert "has more than 1,000 lines or rows" in refusal("a.parquet", parquet(pa.table({"text": pa.nulls(100_000, pa.string())})))


def test_a_gigabyte_of_zeros_is_refused_within_the_limit_of_a_line(monkeypatch):
    monkeypatch.setattr(text_files, "_MAX_LINE", 1 << 20)
    read = []
    real = gzip.GzipFile.readline
    monkeypatch.setattr(gzip.GzipFile, "readline", lambda self, size=-1: read.append(size) or real(self, size))
    bomb = gzip.compress(bytes(1 << 24)) * 64  # members one after the other: a gigabyte
    assert len(bomb) < 2_000_000
    assert "longer than 1 MB" in refusal("a.jsonl.gz", bomb)
    assert read == [(1 << 20) + 1]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
def test_what_unpacks_to_too_much_is_refused(name, monkeypatch):
    monkeypatch.setattr(uploads, "_MAX_UNPACKED", 100_000)
    row = json.dumps({"text": "x", "junk": "y" * 5_000}) if "json" in name else f'x,"{"y" * 5_000}"'
    data = ("" if "json" in name else "text,junk\n") + f"{row}\n" * 100
    assert "unpacks to more than 100,000 bytes" in refusal(name, gzip.compress(data.encode()))


def test_a_parquet_file_that_says_it_is_too_large_is_not_read(monkeypatch):
    monkeypatch.setattr(uploads, "_MAX_UNPACKED", 100_000)
    data = parquet(pa.table({"text": ["x" * 1_000_000]}), compression="zstd")
    assert len(data) < 5_000
    assert "unpacks to more than 100,000 bytes" in refusal("a.parquet", data)


def test_a_repeated_text_is_held_once(monkeypatch):
    """200 MB out of one value of 1 MB: the rows of a batch share it until each is looked at."""
    monkeypatch.setattr(uploads, "_MAX_CHARACTERS", 20_000_000)
    table = pa.table({"text": pa.DictionaryArray.from_arrays(pa.array(np.zeros(200, np.int32)), pa.array(["x" * 1_000_000]))})
    before = pa.total_allocated_bytes()
    peak = []
    real = text_files._check_lengths
    monkeypatch.setattr(text_files, "_check_lengths", lambda *a: peak.append(pa.total_allocated_bytes() - before) or real(*a))
    assert "holds more than 20,000,000 characters" in refusal("a.parquet", parquet(table, compression="zstd"))
    assert max(peak) < 10_000_000


def test_a_text_longer_than_a_line_is_refused_before_it_is_copied(monkeypatch):
    monkeypatch.setattr(text_files, "_MAX_LINE", 1_000_000)
    assert "column 'text' of a.parquet holds a text longer than 0 MB" in refusal(
        "a.parquet", parquet(pa.table({"text": ["x" * 1_000_001]}))
    )


# ---- names -------------------------------------------------------------------------------------------------------------

odd_names = st.text(max_size=30) | st.sampled_from(
    ["../../x.txt", "/etc/passwd.txt", "..\\..\\x.txt", "C:\\x.csv", "CON.txt", "nul", "aux.jsonl.gz", "x" * 5_000 + ".txt", ".", "..", "", "\ud800.txt",
     "a\0b.txt", "\u202etxt.exe.csv", "a\r\nb.txt", " .txt", "~.txt", "$(x).txt", "a.txt/", "-rf.txt"])  # fmt: skip


@hostile
@given(odd_names)
def test_any_name_is_safe_as_a_file_name(name):
    safe = safe_name(name)
    assert safe.isascii()
    assert safe.isprintable()
    assert 0 < len(safe) < 90
    assert not set(safe) & set('/\\:*?"<>| \0')
    assert not safe.startswith((".", "-"))
    assert safe.split(".")[0].lower() not in ("con", "prn", "aux", "nul", "com1", "lpt1")


@hostile
@given(odd_names | st.text(max_size=10).map(lambda s: s + ".txt"))
def test_uploads_lie_in_their_folder_and_nowhere_else(tmp_path, name):
    try:
        upload = check_upload(name, io.BytesIO(b"some text"))
    except InputError as error:
        assert str(error).isprintable()  # noqa: PT017
        return
    cache = tmp_path / "deep" / "er" / "cache"
    upload.save(cache, "b")
    folder = cache / "uploads" / "b" / upload.digest
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert all(p.parent == folder for p in files)
    assert (folder / upload.name).read_bytes() == b"some text"
    assert (cache / upload.spec("b").partition("?")[0]).is_file()


@hostile
@given(odd_names)
def test_no_name_leads_out_of_the_cache(name):
    try:
        found = check_name(name)
    except InputError as error:
        assert str(error).isascii() or str(error).isprintable()  # noqa: PT017
        return
    assert Path("/cache", found).resolve().parent == Path("/cache")
    assert found.lower() not in ("models", "labels", "uploads")


# ---- own texts and notes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracer(tiny_cache) -> Tracer:
    return Tracer.load(Bundle(tiny_cache / "tiny"))


any_text = st.text(max_size=40) | st.lists(
    st.sampled_from(["\0", "\ud800", "\U0001f468\u200d\U0001f469", "\u202e", "\ufeff", "e\u0301" * 40, "<|endoftext|>", "\r\n", "\x1b[2J", " " * 50, "́", "a"]),
    max_size=8,
).map("".join)  # fmt: skip


@hostile
@given(any_text)
def test_any_text_is_traced_or_refused(tracer, text):
    try:
        check_own_text(text)
        trace = tracer.trace(text)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert "".join(trace.tokens.texts) == text
    assert np.isfinite(trace.rows.values).all()
    assert (trace.rows.values > 0).all()


some_labels = st.lists(st.fixed_dictionaries({"feature": json_values, "label": json_values, "note": json_values}), max_size=3)
some_lists = st.lists(st.fixed_dictionaries({"name": json_values, "features": json_values}), max_size=3)


@hostile
@given(json_values | st.fixed_dictionaries({"labels": some_labels, "lists": some_lists}))
def test_any_notes_are_read_or_refused(value):
    try:
        notes = read_json(json.dumps(value).encode(), d_sae=64, sae="s")
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    written = json.dumps(to_json(notes, bundle="b", sae="s"), ensure_ascii=False).encode("utf-8")
    assert read_json(written, d_sae=64, sae="s") == notes
    assert all(0 <= feature < 64 for feature in notes.labels)


def test_every_error_of_a_hostile_file_is_the_users_to_mend(tmp_path):
    """Files of random bytes under every type's name, in one folder, read as a build reads them."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        path = tmp_path / name
        path.write_bytes(rng.bytes(300))
        with pytest.raises(ExploreError) as caught:
            load_texts([str(path)])
        assert os.path.basename(path) in str(caught.value)
