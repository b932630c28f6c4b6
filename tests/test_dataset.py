"""What `load_texts` names, cleans, samples and holds out."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_checks import refusal, texts, write_jsonl

from sae_explore.errors import InputError, SourceError
from sae_explore.texts import dataset
from sae_explore.texts.dataset import is_held_out, load_texts, split_held_out
from sae_explore.texts.text_sampling import sample, shorten
from sae_explore.texts.text_specs import parse_hub_spec, parse_spec
from sae_explore.types import Document

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("hf:", "no name of a Hub data set"),
        ("hf:../etc", "no name of a Hub data set"),
        ("hf:a/b/c", "no name of a Hub data set"),
        ("hf:a/b?colum=x", "'colum' in .* is not known; allowed are config, split, column, n, chars, revision"),
        ("hf:a/b?n=0", "n=0 in .* must be a whole number of at least 1"),
        ("hf:a/b?n=-5", "must be a whole number"),
        ("hf:a/b?n=ten", "must be a whole number"),
        ("hf:a/b?n=1&n=2", "'n' in .* needs one value"),
        ("hf:a/b?column=", "'column' in .* needs one value"),
        ("hf:a/b?config", "'config' in .* needs one value"),
        ("FILE?split=x", "'split' in .* is not known; allowed are column, n, chars"),
        ("FILE?column=x", "is plain text and has no column 'x'"),
    ],
)
def test_wrong_options_are_named(tmp_path, spec, expected):
    (tmp_path / "d.txt").write_text("a")
    assert re.search(expected, refusal(spec.replace("FILE", str(tmp_path / "d.txt"))))


def test_all_names_are_checked_before_anything_is_read(tmp_path):
    (tmp_path / "d.txt").write_text("a")
    seen: list[str] = []
    with pytest.raises(InputError, match="there is no file"):
        load_texts([str(tmp_path / "d.txt"), "absent.txt"], report=seen.append)
    assert seen == []


def test_hub_options_are_read():
    spec = parse_hub_spec("hf:user/set?config=20231101.en&split=test&column=body%20text&n=7&chars=90&revision=refs/convert/parquet")
    assert (spec.name, spec.config, spec.split, spec.column) == ("user/set", "20231101.en", "test", "body text")
    assert (spec.n, spec.chars, spec.revision, spec.category) == (7, 90, "refs/convert/parquet", None)
    assert parse_spec("hf:gpt").split == "train"


def test_what_is_not_there_is_named(tmp_path):
    assert "there is no file" in (message := refusal("diverze"))
    assert "embedded, diverse, hf:NAME" in message
    assert "no file matches" in refusal(f"{tmp_path}/*.txt")
    assert re.search(r"is a directory; name its files, as in '.*/\*\.txt'", refusal(str(tmp_path)))
    assert "is empty" in refusal(" ")
    assert "there is no file" in refusal("x" * 5000)
    assert "there is no file" in refusal("~nobody-of-this-name/x.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    assert "no regular file" in refusal(str(tmp_path / "pipe.txt"))
    with pytest.raises(InputError, match="no texts are named"):
        load_texts([])


def test_a_file_that_cannot_be_read_is_a_source_error(tmp_path, monkeypatch):
    (tmp_path / "d.txt").write_text("a")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(dataset, "sha256_of", refuse)
    assert "d.txt cannot be read: Permission denied" in refusal(str(tmp_path / "d.txt"), SourceError)
    monkeypatch.undo()
    monkeypatch.setattr(dataset, "read_rows", refuse)
    assert "d.txt cannot be read: Permission denied" in refusal(str(tmp_path / "d.txt"), SourceError)


def test_unusable_texts_are_left_out_and_counted(tmp_path):
    rows = ["good", "", "  \n", None, "good", "nul\0inside", "half \ud800 pair", "good ", "also good \U0001f600"]
    path = write_jsonl(tmp_path / "d.jsonl", [*({"text": text} for text in rows), {"other": 1}])
    loaded = load_texts([path])
    assert [d.text for d in loaded.documents] == ["good", "good ", "also good \U0001f600"]
    assert loaded.notes == (
        "d.jsonl: 4 empty, left out, 1 equal to an earlier text, left out, 2 with a NUL or a broken character, left out",
    )


def test_copies_are_found_across_sources(tmp_path):
    first = write_jsonl(tmp_path / "a.jsonl", [{"text": "same"}, {"text": "one"}])
    second = write_jsonl(tmp_path / "b.jsonl", [{"text": "two"}, {"text": "same"}])
    loaded = load_texts([first, second])
    assert [d.id for d in loaded.documents] == ["a/0", "a/1", "b/0"]
    assert loaded.notes == ("b.jsonl: 1 equal to an earlier text, left out",)


def test_long_texts_are_shortened_and_counted(tmp_path):
    path = tmp_path / "d.txt"
    path.write_text(("word " * 500_000) + "\n\n" + "\n".join(["line of words"] * 200_000) + "\n\nshort\n")
    loaded = load_texts([str(path)])
    assert [len(d.text) for d in loaded.documents] == [999_999, 999_999, 5]
    assert loaded.notes == ("d.txt: 2 shortened to 1,000,000 characters",)
    assert loaded.documents[2].id == "d/2"


@given(st.text("ab. \n", max_size=60), st.integers(1, 50))
def test_shortening_keeps_a_beginning(text, chars):
    short = shorten(text, chars)
    assert text.startswith(short)
    assert len(short) <= chars
    assert (short == text) == (len(text) <= chars)
    assert len(short) >= min(len(text), chars // 2)


def test_shortening_prefers_natural_ends():
    text = "One two three. Four five six.\n\nSeven eight. Nine ten"
    assert shorten(text, 45) == "One two three. Four five six."
    assert shorten(text, 29) == "One two three. Four five"
    assert shorten("One two. Three four", 13) == "One two."
    assert shorten("x" * 50, 10) == "x" * 10


def test_samples_keep_the_order_and_depend_on_the_seed(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"text": f"text {i}"} for i in range(500)])
    everything = texts(path)
    assert everything == [f"text {i}" for i in range(500)]
    for options in ({"per_source": 40}, {"max_texts": 40}):
        kept = texts(path, **options)
        assert len(set(kept)) == 40
        assert kept == sorted(kept, key=lambda t: int(t.split()[1]))
        assert kept == texts(path, **options)
        assert kept != texts(path, **options, seed=1)
    assert texts(f"{path}?n=40") == texts(path, per_source=40)
    assert len(texts(f"{path}?n=40", per_source=10)) == 10
    assert texts(path, max_texts=1000) == everything


def test_limits_apply_to_each_source_and_to_all(tmp_path):
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name} {i}"} for i in range(n)]) for name, n in (("a", 5), ("b", 50))]
    loaded = load_texts(paths, per_source=10)
    assert [s.texts for s in loaded.sources] == [5, 10]
    loaded = load_texts(paths, per_source=10, max_texts=12)
    assert sum(s.texts for s in loaded.sources) == len(loaded.documents) == 12
    assert Counter(d.category for d in loaded.documents) == {"a": loaded.sources[0].texts, "b": loaded.sources[1].texts}
    for name in ("per_source", "max_texts"):
        with pytest.raises(InputError, match=rf"^{name} is 0; it must be at least 1$"):
            load_texts(paths, **{name: 0})


def test_every_item_is_as_likely_to_be_kept():
    counts = Counter(item for seed in range(4000) for item in sample(range(10), 3, random.Random(seed)))
    assert all(1080 < counts[item] < 1320 for item in range(10))  # 1,200 expected, standard deviation 29
    assert list(sample(range(4), None, random.Random(0))) == [0, 1, 2, 3]
    assert list(sample(range(4), 9, random.Random(0))) == [0, 1, 2, 3]


def test_the_held_out_rule():
    # the published SHA-256 of "" is e3b0...b855 and of "abc" is ba78...15ad; they leave 49 and 15 when divided by 50
    assert not is_held_out("")
    assert not is_held_out("abc")
    assert [i for i in range(400) if is_held_out(f"text {i}")] == [29, 35, 63, 98, 129, 185, 290, 295, 315, 364, 384, 395]
    assert is_held_out("é 72") == (int.from_bytes(hashlib.sha256(b"\xc3\xa9 72").digest()) % 50 == 0)


def test_a_corpus_splits_into_two_without_loss():
    documents = [Document(f"d/{i}", "s", "c", f"text {i}") for i in range(3000)]
    train, held_out = split_held_out(documents)
    assert sorted([*train, *held_out], key=lambda d: int(d.id[2:])) == documents
    assert all(is_held_out(d.text) for d in held_out)
    assert not any(is_held_out(d.text) for d in train)
    assert 30 < len(held_out) < 90


def test_importing_the_module_is_light():
    heavy = ("torch", "datasets", "pyarrow", "pandas", "huggingface_hub", "transformers")
    code = f"import sys, sae_explore.texts.dataset; print([name for name in {heavy!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"
