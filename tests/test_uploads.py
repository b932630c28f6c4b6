"""Uploaded texts: read through before a build, kept under a safe name, and refused with the visitor's own name for them."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sae_explore.building import build_choices
from sae_explore.building.build_request import BuildRequest
from sae_explore.building.presets import request_for
from sae_explore.errors import InputError
from sae_explore.models.model_facts import facts_of
from sae_explore.models.model_sources import GPT2, SMOLLM2
from sae_explore.texts import uploads
from sae_explore.texts.dataset import load_texts
from sae_explore.texts.text_specs import HubSpec, parse_spec
from sae_explore.texts.uploads import check_total, check_upload, safe_name

TEXTS = ["A first text, with a comma.", "A second one\nin two lines — ünïcode 🦜"]


def file_of(name: str, column: str = "text") -> io.BytesIO:
    rows = [{column: text, "n": i} for i, text in enumerate(TEXTS)]
    out = io.BytesIO()
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), out)
        return out
    if ".jsonl" in name:
        data = "".join(json.dumps(row) + "\n" for row in rows)
    elif ".csv" in name:
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        data = buffer.getvalue()
    else:
        data = "\n\n".join(TEXTS)
    return io.BytesIO(gzip.compress(data.encode()) if name.endswith(".gz") else data.encode())


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.parquet", "a.jsonl.gz"])
@pytest.mark.parametrize("column", [None, "my column"])
def test_every_type_is_read_and_kept_as_it_is(name, column, tmp_path, monkeypatch):
    file = file_of(name, column or "text")
    upload = check_upload(name, file, column=column)
    assert (upload.texts, upload.characters, upload.size) == (2, sum(map(len, TEXTS)), len(file.getvalue()))
    for bad in ("../b", "", "a/b", "uploads"):
        with pytest.raises(InputError, match="is no bundle name"):
            upload.save(tmp_path / "cache", bad)
    assert not list(tmp_path.iterdir())
    upload.save(tmp_path, "b")
    monkeypatch.chdir(tmp_path)  # where a build looks from
    loaded = load_texts([upload.spec("b")])
    assert [d.text for d in loaded.documents] == TEXTS
    assert {d.category for d in loaded.documents} == {"a"}
    assert (tmp_path / "uploads" / "b" / upload.digest / name).read_bytes() == file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.pdf", b"%PDF", "'a.pdf' is of no type that is read here: .txt, .csv"),
        ("../../etc/a.csv", b"x,y\n1,2\n", "a.csv has no column text or content"),
        ("a.csv", b"text,y\n1\n", "line 2 of a.csv has 1 fields, the header has 2"),
        ("a.jsonl", b'{"text": "x"}\n{', "line 2 of a.jsonl is not JSON"),
        ("a.txt", b"\xff\xfe", "line 1 of a.txt is not UTF-8"),
        ("a.txt.gz", b"no gzip", "a.txt.gz is damaged or no gzip file"),
        ("a.parquet", b"PAR1", "a.parquet cannot be read as Parquet"),
        ("a.txt", b" \n\n ", "a.txt holds no text"),
        ("empty.csv", b"", "empty.csv holds no text"),
    ],
)
def test_bad_files_are_named_as_the_visitor_named_them(name, data, message):
    with pytest.raises(InputError) as caught:
        check_upload(name, io.BytesIO(data))
    assert str(caught.value).startswith(message)


def test_large_files_are_refused(monkeypatch):
    monkeypatch.setattr(uploads, "MAX_FILE_MB", 0)
    with pytest.raises(InputError, match="the limit of a file is 0 MB"):
        check_upload("a.txt", file_of("a.txt"))
    monkeypatch.undo()
    monkeypatch.setattr(uploads, "_MAX_CHARACTERS", 30)  # a small file can unpack to a large one
    with pytest.raises(InputError, match="holds more than 30 characters"):
        check_upload("a.txt.gz", file_of("a.txt.gz"))
    monkeypatch.undo()
    upload = check_upload("a.txt", file_of("a.txt"))
    check_total([upload])
    monkeypatch.setattr(uploads, "MAX_ALL_MB", 0)
    with pytest.raises(InputError, match="the limit is 0 MB"):
        check_total([upload])


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("my texts.csv", "my_texts.csv"),
        ("a.b.jsonl.gz", "a_b.jsonl.gz"),
        ("../../x.txt", "x.txt"),
        ("<b>&'\".txt", "b.txt"),
        ("日本.txt", "texts.txt"),
        ("-rf.csv", "rf.csv"),
        (".txt", "texts.txt"),
        ("x?column=y.csv", "x_column_y.csv"),
        ("*.csv", "texts.csv"),
        ("x" * 200 + ".parquet", "x" * 60 + ".parquet"),
    ],
)
def test_safe_names(name, safe):
    assert safe_name(name) == safe


# ---- from choices to a request -----------------------------------------------------------------------------------------


def test_names_that_are_offered():
    assert build_choices.default_name(GPT2, 6, trained=True, taken=[]) == "gpt2-topk"
    assert build_choices.default_name(GPT2, 6, trained=False, taken=[]) == "gpt2"
    assert build_choices.default_name(GPT2, 8, trained=False, taken=["gpt2"]) == "gpt2-8"
    assert build_choices.default_name(SMOLLM2, 22, trained=True, taken=["smollm2", "smollm2-2"]) == "smollm2-3"
    assert build_choices.default_name("/a/folder/My Model!", 3, trained=True, taken=[]) == "my-model-3"
    assert build_choices.default_name("???", 0, trained=True, taken=[]) == "bundle-0"


def test_a_data_set_of_the_hub():
    spec = build_choices.hub_texts(" user/set ", config="a&b", split="", column="my column", texts=30)
    assert parse_spec(spec) == HubSpec(spec, "user/set", config="a&b", column="my column", n=30)
    assert build_choices.hub_texts("hf:set") == "hf:set"
    for name in ("", "a b", "../x", "a/b/c", "user/x?n=3", "<b>"):
        with pytest.raises(InputError, match="is no name of a Hub data set"):
            build_choices.hub_texts(name)


def test_what_needs_the_hub_is_said_before_anything_starts(tmp_path, gpt2_folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    here = BuildRequest("b", str(gpt2_folder), texts=("embedded", "uploads/b/h/a.txt"))
    assert build_choices.what_needs_the_hub(here, models=tmp_path) == []
    assert build_choices.missing_hub(here, models=tmp_path) is None
    away = BuildRequest("b", "user/not-here", sae="user/sae:folder", texts=("diverse", "hf:a/b?n=3"))
    assert build_choices.what_needs_the_hub(away, models=tmp_path) == ["user/not-here", "the SAE", "the diverse texts", "a/b"]
    said = build_choices.missing_hub(away, models=tmp_path)
    assert said.startswith(
        "user/not-here, the SAE, the diverse texts and a/b would come from the Hugging Face Hub, but HF_HUB_OFFLINE is set"
    )
    assert build_choices.what_needs_the_hub(BuildRequest("b", str(gpt2_folder), sae=str(tmp_path)), models=tmp_path) == [
        "the diverse texts"
    ]


def test_a_given_sae(tmp_path, monkeypatch):
    (tmp_path / "sae").mkdir()
    monkeypatch.chdir(tmp_path)
    assert build_choices.given_sae("sae") == build_choices.given_sae("./sae") == str(tmp_path / "sae")
    for spec in ("user/sae", "user/sae:a/folder", "user/sae@rev:folder"):
        assert build_choices.given_sae(spec) == spec
    for path in ("./nowhere", "/no/such/folder", "~/nowhere", "a/b/c"):
        with pytest.raises(InputError, match="there is no SAE folder"):
            build_choices.given_sae(path)


def test_the_published_sae_of_a_layer():
    preset = request_for("gpt2")
    assert build_choices.published_at(GPT2, 6) == preset.sae
    assert preset.sae.partition(":")[2] == preset.hook
    assert build_choices.published_at(GPT2, 11).endswith(":blocks.11.hook_resid_post")
    assert build_choices.published_at(SMOLLM2, 6) is None


def test_the_layer_to_begin_with(tmp_path, gpt2_folder):
    assert build_choices.default_layer(facts_of(GPT2, models=tmp_path)) == 6
    assert build_choices.default_layer(facts_of(str(gpt2_folder), models=tmp_path)) == 2
