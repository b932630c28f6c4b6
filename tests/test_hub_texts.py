"""Texts of the Hub: the diverse preset, named data sets, failures, and what happens without the Hub."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import socket
import string
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer
from text_checks import refusal

from sae_explore.errors import SourceError
from sae_explore.files import hub
from sae_explore.texts import dataset, hub_texts, text_files
from sae_explore.texts.dataset import load_texts
from sae_explore.texts.text_specs import diverse_specs

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def unreachable(monkeypatch):
    """A Hub at a port where nothing listens, not yet probed."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "_problems", {})


def test_without_the_hub_diverse_is_the_embedded_corpus(unreachable, monkeypatch):
    monkeypatch.setattr(dataset, "open_hub_texts", None)  # nothing may be tried
    lines: list[str] = []
    loaded = load_texts(["diverse"], report=lines.append)
    assert list(loaded.documents) == list(load_texts(["embedded"]).documents)
    (note,) = loaded.notes
    assert re.fullmatch(
        r"none of the diverse data sets can be had \(.* cannot be reached .*\): the embedded corpus takes their place", note
    )
    assert note in lines
    assert [s.name for s in loaded.sources] == ["embedded"]
    both = load_texts(["diverse", "embedded"])
    assert both.documents == loaded.documents
    assert len(both.notes) == 1


def test_without_the_hub_a_named_data_set_is_an_error(unreachable):
    message = refusal("hf:user/set", SourceError)
    assert re.search(r"^the data set user/set would come from the Hugging Face Hub, but .* cannot be reached", message)


def test_if_all_of_diverse_fail_the_embedded_corpus_is_used(monkeypatch):
    def fail(spec):
        raise SourceError(f"no {spec.name}")

    monkeypatch.setattr(dataset, "hub_problem", lambda: None)
    monkeypatch.setattr(dataset, "open_hub_texts", fail)
    loaded = load_texts(["diverse"])
    assert list(loaded.documents) == list(load_texts(["embedded"]).documents)
    assert [n.split(" ")[0] for n in loaded.notes] == [*(s.name for s in diverse_specs()), "none"]
    assert [s.name for s in loaded.sources] == ["embedded"]


def test_a_data_set_that_breaks_off_is_left_out_whole(monkeypatch):
    def rows(broken):
        for number in range(5):
            if broken and number == 3:
                raise SourceError("the connection broke")
            yield text_files.TextRow(number, f"{broken} {number}")

    monkeypatch.setattr(dataset, "hub_problem", lambda: None)
    monkeypatch.setattr(dataset, "open_hub_texts", lambda s: hub_texts.HubTexts("c0ffee", "mit", rows(s.category == "reviews")))
    loaded = load_texts(["diverse"], per_source=5)
    assert Counter(d.category for d in loaded.documents) == {"news": 5}  # the other two hold the same texts
    assert "stanfordnlp/imdb (reviews) is left out: the connection broke" in loaded.notes
    assert [s.name for s in loaded.sources] == ["fancyzhx/ag_news", "gfissore/arxiv-abstracts-2021", "wikimedia/wikipedia"]


def test_a_stream_of_unusable_rows_ends(monkeypatch):
    def rows():
        for number in range(100_000):
            assert number < 1000
            yield text_files.TextRow(number, None)

    monkeypatch.setattr(dataset, "open_hub_texts", lambda _: hub_texts.HubTexts("c0ffee", "mit", rows()))
    assert "100 empty, left out" in refusal("hf:user/set?n=10")


def make_hub(folder: Path) -> None:
    """Three of the four diverse data sets in the layouts of the real repositories, and some more."""

    def repository(name: str, readme: str, file: str, rows: dict, **metadata) -> None:
        path = folder / "datasets" / name / file
        path.parent.mkdir(parents=True)
        (folder / "datasets" / name / "README.md").write_text(f"---\n{readme}---\n# About\n")
        if file.endswith(".gz"):
            lines = [json.dumps(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True)]
            path.write_bytes(gzip.compress("\n".join(lines).encode()))
        else:
            pq.write_table(pa.table(rows).replace_schema_metadata(metadata or None), path, row_group_size=100, compression="none")

    labels = {"info": {"features": {"label": {"names": ["World", "Sports", "Business", "Sci/Tech"], "_type": "ClassLabel"}}}}
    features = "features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n      class_label:\n        names:\n"
    classes = "".join(f"          '{i}': {name}\n" for i, name in enumerate(labels["info"]["features"]["label"]["names"]))
    repository(
        "fancyzhx/ag_news",
        f"license:\n- unknown\ndataset_info:\n  {features}{classes}configs:\n- config_name: default\n  data_files:\n"
        "  - split: train\n    path: data/train-*\n",
        "data/train-00000-of-00001.parquet",
        {"text": [f"News {i}." for i in range(250)], "label": [i % 4 for i in range(250)]},
        huggingface=json.dumps(labels),
    )
    repository(
        "gfissore/arxiv-abstracts-2021",
        "license: cc0-1.0\n",
        "arxiv-abstracts.jsonl.gz",
        {"id": [f"0704.{i}" for i in range(220)], "abstract": [f"  We show {i}.\n" for i in range(220)], "versions": [["v1"]] * 220},
    )
    long = " ".join(["A sentence of an article."] * 200)
    configs = "".join(
        f"- config_name: 20231101.{c}\n  data_files:\n  - split: train\n    path: 20231101.{c}/train-*\n" for c in ("de", "en")
    )
    articles = {"id": [str(i) for i in range(210)], "title": ["T"] * 210, "text": [f"Article {i}. {long}" for i in range(210)]}
    licences = "license:\n- cc-by-sa-3.0\n- gfdl\n"
    repository("wikimedia/wikipedia", licences + "configs:\n" + configs, "20231101.en/train-00000-of-00041.parquet", articles)
    german = folder / "datasets/wikimedia/wikipedia/20231101.de"
    german.mkdir()
    pq.write_table(pa.table({"text": ["Ein Artikel."]}), german / "train-00000-of-00020.parquet")
    generator = random.Random(0)
    big = ["".join(generator.choices(string.ascii_letters, k=1000)) for _ in range(8000)]
    repository("user/big", "", "data/test.parquet", {"content": big, "label": [3] * 8000, "n": list(range(8000))})
    scripted = folder / "datasets/user/scripted"
    scripted.mkdir()
    (scripted / "scripted.py").write_text("raise SystemExit")
    archive = folder / "datasets/user/archive/data"
    archive.mkdir(parents=True)
    (archive / "train.arrow").write_bytes(b"ARROW1")


CLIENT = """
import json, sys
from dataclasses import asdict
from sae_explore.texts.dataset import load_texts
from sae_explore.errors import ExploreError

for line in sys.stdin:
    try:
        loaded = load_texts(**json.loads(line))
        answer = {"documents": [asdict(d) for d in loaded.documents], "notes": loaded.notes, "sources": [asdict(s) for s in loaded.sources]}
    except ExploreError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), flush=True)
"""


class Asked:
    """A process with its own environment that answers calls of `load_texts`."""

    def __init__(self, environment: dict[str, str]):
        command = [sys.executable, "-c", CLIENT]
        environment = environment | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()
        assert self.process.returncode == 0  # streams that were left early do not abort the interpreter

    def __call__(self, *specs: str, **options) -> dict:
        self.process.stdin.write(json.dumps({"specs": specs, **options}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    make_hub(folder)
    with HubServer(folder) as running:
        yield running


@pytest.fixture(scope="module")
def ask(server, tmp_path_factory):
    """`load_texts` in one process that takes the loopback server for the Hub."""
    with Asked(server.environment(tmp_path_factory.mktemp("home"))) as asked:
        yield asked


def test_the_diverse_preset_with_one_set_missing(ask):
    whole, small = ask("diverse"), ask("diverse", "embedded", per_source=3)
    assert Counter(d["category"] for d in whole["documents"]) == {"news": 200, "science": 200, "encyclopedia": 200}
    assert whole["notes"][0].startswith("stanfordnlp/imdb (reviews) is left out: the data set stanfordnlp/imdb is not on the Hub")
    assert whole["notes"][1:] == ["wikimedia/wikipedia: 200 shortened to 2,000 characters"]
    assert [(s["name"], s["texts"], s["licence"]) for s in whole["sources"]] == [
        ("fancyzhx/ag_news", 200, "unknown"),
        ("gfissore/arxiv-abstracts-2021", 200, "cc0-1.0"),
        ("wikimedia/wikipedia", 200, "cc-by-sa-3.0, gfdl"),
    ]
    assert all(re.fullmatch("[0-9a-f]{40}", s["revision"]) for s in whole["sources"])
    assert whole["documents"][7] == {"id": "fancyzhx/ag_news/7", "source": "fancyzhx/ag_news", "category": "news", "text": "News 7."}
    assert whole["documents"][207]["text"] == "  We show 7.\n"
    assert whole["documents"][-1]["text"].endswith("A sentence of an article.")
    assert Counter(d["id"].rpartition("/")[0] for d in small["documents"])["wikimedia/wikipedia"] == 3
    assert len(small["documents"]) == 12


def test_a_data_set_of_the_hub(ask):
    classes = ask("hf:fancyzhx/ag_news", max_texts=6)
    limited = ask("hf:fancyzhx/ag_news?n=5", per_source=2)
    again = ask("hf:fancyzhx/ag_news?n=2", "hf:fancyzhx/ag_news?n=2&chars=5")
    plain = ask("hf:fancyzhx/ag_news")
    assert [d["category"] for d in classes["documents"]] == ["World", "Sports", "Business", "Sci/Tech", "World", "Sports"]
    assert [d["text"] for d in limited["documents"]] == ["News 0.", "News 1."]
    assert [d["id"] for d in again["documents"]] == ["fancyzhx/ag_news/0", "fancyzhx/ag_news/1", "fancyzhx/ag_news~2/0"]
    assert again["notes"] == ["fancyzhx/ag_news: 1 shortened to 5 characters, 19 equal to an earlier text, left out"]
    assert len(plain["documents"]) == 250


def test_little_of_a_large_data_set_is_fetched(ask, server):
    """8 MB in 80 row groups: the end of the file and one group are enough."""
    before = server.sent
    answer = ask("hf:user/big?split=test&n=50")
    assert len(answer["documents"]) == 50
    assert {d["category"] for d in answer["documents"]} == {"user/big"}
    assert server.sent - before < 2_500_000
    answer = ask("hf:user/big?split=test")
    assert answer["notes"] == ["user/big: the first 1,000 texts; say n= for more"]


def test_failures_of_the_hub_are_one_sentence(ask):
    cases = {
        "hf:user/absent": ("SourceError", "the data set user/absent is not on the Hub, or it is private"),
        "hf:user/big": ("InputError", "data set user/big has no split 'train'; it has test"),
        "hf:user/big?split=test&column=body": ("InputError", "no column 'body'; it has 'content', 'label', 'n'"),
        "hf:user/big?split=test&column=n": ("InputError", "column 'n' of test.parquet holds int64, not text"),
        "hf:fancyzhx/ag_news?config=other": ("SourceError", "cannot be read from the Hub: BuilderConfig 'other' not found"),
        "hf:wikimedia/wikipedia": ("SourceError", "20231101.de"),
        "hf:fancyzhx/ag_news?revision=v7": (
            "SourceError",
            "data set fancyzhx/ag_news cannot be read from the Hub: it has no such revision",
        ),
        "hf:user/scripted": ("SourceError", "try revision=refs/convert/parquet"),
        "hf:user/archive": ("SourceError", "'train.arrow' is of no type that is read here"),
    }
    for spec, (kind, expected) in cases.items():
        answer = ask(spec)
        assert answer.get("error") == kind, (spec, answer)
        assert expected in answer["message"], spec
        assert "\n" not in answer["message"]


@pytest.mark.network
def test_the_real_data_sets_of_the_diverse_preset():
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    with Asked(environment) as asked:
        answer = asked("diverse", per_source=20)
    assert Counter(d["category"] for d in answer["documents"]) == dict.fromkeys(("news", "reviews", "science", "encyclopedia"), 20)
