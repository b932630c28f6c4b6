"""What is taken along: tables equal to the bundle in every format, HTML that holds no element but ours, files that appear whole."""

import copy
import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from sae_explore import export
from sae_explore.bundles.bundle import Bundle, open_bundle
from sae_explore.drawing import standalone_html
from sae_explore.drawing.standalone_html import MAX_FEATURES
from sae_explore.errors import InputError
from sae_explore.explore.text_view import ranked_csv
from sae_explore.notebook import notes
from sae_explore.notebook.notes import Notes
from sae_explore.notebook.notes_store import FileStore
from sae_explore.types import LensToken

pytest_plugins = ["bundle_fixtures", "cli_fixtures"]
HOSTILE = "</style></title><script>alert(1)</script><img src=x onerror='alert(2)'>\"&lt;b&gt;"
VOID = {"meta", "br", "rect"}
ALLOWED = {
    "html": {"lang"}, "head": set(), "title": set(), "style": set(), "body": set(), "meta": {"charset", "http-equiv", "content", "name"},
    "h1": set(), "h2": set(), "h3": set(), "p": {"class"}, "br": set(), "dl": set(), "dt": set(), "dd": set(), "ul": {"class"}, "li": set(),
    "a": {"href"}, "article": {"id"}, "div": {"class", "style"}, "span": {"class", "title"}, "details": set(), "summary": set(), "table": set(),
    "tr": set(), "td": {"class"}, "i": {"class", "style"}, "b": {"style"},
    "svg": {"viewbox", "preserveaspectratio", "role", "aria-label"}, "rect": {"x", "y", "width", "height", "fill-opacity"},
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tiny_cache) -> Bundle:
    return open_bundle("tiny", cache=tiny_cache)


@pytest.fixture(scope="module")
def planted(tiny_cache) -> Bundle:
    return open_bundle("planted", cache=tiny_cache)


class Parsed(HTMLParser):
    """Elements with their attributes, well nested, and the text."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.elements, self.stack, self.text = [], [], ""
        self.feed(source)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] != "style":
            self.text += data


def hostile_of(bundle: Bundle) -> Bundle:
    """The bundle with every string from outside replaced by markup."""
    found = copy.copy(bundle)
    found.manifest = json.loads(json.dumps(bundle.manifest))
    for part, key in (("model", "display"), ("model", "licence"), ("sae", "source"), ("metrics", "evaluated_on")):
        found.manifest[part][key] = HOSTILE
    found.manifest["units"] = HOSTILE
    categories = [f"{HOSTILE}{i}" for i in range(len(bundle.categories))]
    found.manifest["corpus"]["categories"] = categories
    found.manifest["corpus"]["category_share"] = dict.fromkeys(categories, 0.1)
    found.own_labels = {f: f"{f}{HOSTILE}" for f in range(bundle.d_sae)}
    found.token_texts = lambda document, start, stop: (HOSTILE,) * (stop - start)
    found.lens_tokens = lambda feature, convention=None: ((LensToken(1, HOSTILE, 1.0),) * 15, (LensToken(1, HOSTILE, -1.0),) * 15)
    example, outside = found.example, {"category": HOSTILE, "document_id": HOSTILE, "source": HOSTILE}
    found.example = lambda *args, **kwargs: replace(example(*args, **kwargs), **outside)
    return found


# ---- HTML --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hostile", [False, True])
def test_html_holds_no_element_but_ours_and_asks_for_nothing(tiny, hostile):
    bundle = hostile_of(tiny) if hostile else tiny
    words = HOSTILE if hostile else "harmless"
    found = Parsed(export.feature_html(bundle, [5, 7, 5], title=words, note=f"{words}\n{words}", notes={5: words}))
    for tag, attributes in found.elements:
        assert tag in ALLOWED, tag
        assert set(attributes) <= ALLOWED[tag], (tag, attributes)
        assert re.fullmatch(r"#f\d+|", attributes.get("href", ""))
        assert re.fullmatch(r"(width|left):[\d.]+%|", attributes.get("style", ""))
    counted = {tag: sum(t == tag for t, _ in found.elements) for tag in ("article", "h2", "svg", "title", "style", "li")}
    assert counted == {"article": 2, "h2": 2, "svg": 2, "title": 1, "style": 1, "li": 2}
    policy = next(a["content"] for t, a in found.elements if t == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert (HOSTILE in found.text) == hostile


def test_html_shows_the_feature(tiny):
    feature = 5
    found = Parsed(export.feature_html(tiny, [feature]))
    row, (edges, counts) = tiny.row(feature), tiny.histogram(feature)
    bars = [a for t, a in found.elements if t == "rect"]
    assert [float(bar["height"]) for bar in bars] == pytest.approx([100 * c / counts.max() for c in counts if c], abs=0.01)
    assert [float(bar["x"]) for bar in bars] == [i + 0.06 for i in np.flatnonzero(counts)]
    for shown in (f"Feature {feature}: ", f"maximum {row['max']:.2f}", f"{row['count']:,} in all", f"{edges[-1]:.2f}"):
        assert shown in found.text
    peaks = [float(v) for v in re.findall(r'<div class="v">([\d.]+)</div>', export.feature_html(tiny, [feature]))]
    top = [round(e.max, 2) for e in tiny.top_examples(feature, 20)]
    assert peaks[: len(top)] == pytest.approx(top, abs=0.006)
    assert all(a >= b for a, b in pairwise(peaks[: len(top)]))


def test_html_of_a_dead_feature_says_so(planted):
    found = Parsed(export.feature_html(planted, [0]))
    assert "fires on none of the" in found.text
    assert not [t for t, _ in found.elements if t == "svg"]


@pytest.mark.parametrize("features", [[], range(MAX_FEATURES + 1), [64], [-1]])
def test_html_of_none_too_many_or_unknown_features_is_refused(tiny, features):
    with pytest.raises(InputError):
        export.feature_html(tiny, features if len(features) < 2 else [f % 64 for f in features] + [64])


def test_html_of_more_features_than_one_file_holds_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(standalone_html, "MAX_FEATURES", 3)
    assert export.feature_html(tiny, [5, 6, 7, 5]).count("<article") == 3
    with pytest.raises(InputError, match="one HTML file holds 1 to 3 features, not 4"):
        export.feature_html(tiny, [5, 6, 7, 8])


# ---- tables ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tiny, tmp_path):
    """A function: all features with some notes in one format, read back."""
    own = notes.with_label(notes.with_label(Notes(), 3, "=HYPERLINK(1)", "l1\nl2"), 4, "", "only a note")

    def read(form: str):
        path = tmp_path / f"features.{form}"
        assert export.write_features(path, tiny, range(tiny.d_sae), form, notes=own) == path.stat().st_size
        if form == "parquet":
            return pq.read_table(path).to_pylist()
        if form == "jsonl":
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    return read


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_tables_hold_the_bundle(tiny, written, form, monkeypatch):
    monkeypatch.setattr(export, "_BATCH", 10)
    rows = written(form)
    assert [row["feature"] for row in rows] == list(range(tiny.d_sae))
    for feature, row in enumerate(rows):
        expected = tiny.row(feature)
        for name in ("count", "density", "max", "mean", "confidence", "label_kind", "peak_token", "decoder_norm", "automatic_label"):
            assert (
                row[name] == pytest.approx(expected[name], nan_ok=True)
                if isinstance(expected[name], float)
                else row[name] == expected[name]
            )
        positive, negative = tiny.lens_tokens(feature)
        assert row["positive_tokens"] == [t.token for t in positive[:10]]
        assert row["negative_logits"] == pytest.approx([t.logit for t in negative[:10]], abs=1e-6)
        assert row["neighbours"] == [f for f, _ in tiny.neighbours(feature)]
        assert row["neighbour_cosines"] == pytest.approx([c for _, c in tiny.neighbours(feature)])
        assert row["histogram"] == tiny.histogram(feature)[1].tolist()
        assert {c: row[f"firings: {c}"] for c in tiny.categories} == tiny.category_counts(feature)
    assert (rows[3]["label"], rows[3]["own_label"], rows[3]["note"]) == ("=HYPERLINK(1)", "=HYPERLINK(1)", "l1\nl2")
    assert (rows[4]["label"], rows[4]["own_label"], rows[4]["note"]) == (tiny.label(4), None, "only a note")
    assert (rows[5]["own_label"], rows[5]["note"], rows[5]["human_label"]) == (None, None, None)


def test_csv_holds_the_same_and_runs_no_formula(written):
    table, exact = written("csv"), written("parquet")
    for row, other in zip(table, exact, strict=True):
        assert set(row) == set(other)
        for name, value in other.items():
            if isinstance(value, list):
                assert json.loads(row[name]) == value
            elif isinstance(value, float):
                assert float(row[name]) == pytest.approx(value, nan_ok=True)
            else:
                assert row[name] in (str(value), f"'{value}", "" if value is None else None)
    assert table[3]["label"] == "'=HYPERLINK(1)"
    assert not [cell for row in table for cell in row.values() if re.match(r"[=+@\t\r].", cell)]
    assert [export.csv_cell(v) for v in ("-1+2", "-", "+", " =x", 3, None)] == ["'-1+2", "-", "+", " =x", 3, None]


def test_a_file_appears_whole_or_not_at_all(tiny, tmp_path, monkeypatch):
    path = tmp_path / "features.jsonl"
    path.write_text("before")
    monkeypatch.setattr(export, "_BATCH", 10)
    table = export.features_table

    def failing(bundle, features, **options):
        if 30 in features:
            raise OSError(28, "No space left on device")
        return table(bundle, features, **options)

    monkeypatch.setattr(export, "features_table", failing)
    with pytest.raises(OSError, match="No space"):
        export.write_features(path, tiny, range(64), "jsonl")
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["features.jsonl"]


# ---- command line ------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_cache(tiny_cache, tmp_path, monkeypatch, cli):
    """Commands run on a cache of their own, with a list."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tiny").symlink_to(tiny_cache / "tiny", target_is_directory=True)
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path / "cache"))
    bundle = open_bundle("tiny")
    store = FileStore(tmp_path / "cache", "tiny", sae=notes.sae_of(bundle.manifest), d_sae=64)
    store.change(lambda now: notes.with_list(now, "Good ones", note="of the list", entries=[notes.Entry(9, "of nine"), notes.Entry(2)]))
    store.change(lambda now: notes.with_label(now, 9, "my label", "my note"))
    return tmp_path


def test_export_of_a_list(cli, own_cache):
    out = own_cache / "list.html"
    code, said, _ = cli("export", "tiny", "--list", "Good ones", "--out", out, "--json")
    assert code == 0
    assert json.loads(said) == {"bundle": "tiny", "format": "html", "file": str(out), "bytes": out.stat().st_size, "features": 2}
    text = Parsed(out.read_text(encoding="utf-8")).text
    for shown in ("Good ones", "of the list", "Feature 9: my label", "my note", "of nine", "your own label; automatic: "):
        assert shown in text
    code, said, _ = cli("export", "tiny", "--list", "Good ones", "--out", own_cache / "list.csv")
    assert (code, said) == (0, f"{own_cache / 'list.csv'}: {(own_cache / 'list.csv').stat().st_size:,} bytes, 2 features\n")
    assert pd.read_csv(own_cache / "list.csv")["feature"].tolist() == [9, 2]


def test_export_of_all_features_and_of_chosen_ones(cli, own_cache):
    out = own_cache / "x"
    assert cli("export", "tiny", "--all", "--format", "parquet", "--out", out)[0] == 0
    assert pq.read_table(out)["feature"].to_pylist() == list(range(64))
    assert cli("export", "tiny", "--features", 7, 5, 7, "--format", "jsonl", "--out", out)[0] == 0
    assert [json.loads(line)["feature"] for line in out.read_text().splitlines()] == [7, 5]


def test_export_of_a_text(cli, own_cache):
    bundle, text = open_bundle("tiny"), "The parrot said: hello."
    assert cli("export", "tiny", "--text", text, "--out", own_cache / "t.json")[0] == 0
    assert json.loads((own_cache / "t.json").read_text()) == json.loads(cli("text", "tiny", text, "--json")[1])
    document = bundle.documents["id"][3].as_py()
    assert cli("export", "tiny", "--document", document, "--out", own_cache / "d.csv")[0] == 0
    assert (own_cache / "d.csv").read_bytes().decode() == ranked_csv(bundle.document_trace(3), bundle)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--all", "--out", "x.doc"], "--format doc is not one of html, parquet, csv, jsonl"),
        (["--all", "--out", "x"], "--format (none) is not one of"),
        (["--text", "hello", "--out", "x.html"], "is not one of json, csv, the formats of a text"),
        (["--out", "x.csv"], "one of the arguments --features --list --all --text --document is required"),
        (["--all", "--features", "1", "--out", "x.csv"], "not allowed with argument"),
        (["--all"], "the following arguments are required: --out"),
        (["--features", "64", "--out", "x.csv"], "there is no feature 64"),
        (["--list", "none", "--out", "x.csv"], "no list “none”; lists: “Good ones”"),
        (["--document", "none", "--out", "x.csv"], "has no text 'none'"),
        (["--text", "", "--out", "x.csv"], "text"),
        (["--all", "--format", "csv", "--out", "."], "is a folder; name a file"),
        (["--all", "--out", "nowhere/x.csv"], "No such file or directory"),
    ],
)
def test_what_cannot_be_exported_is_one_line(refused, own_cache, monkeypatch, arguments, message):
    monkeypatch.chdir(own_cache)
    assert message in refused("export", "tiny", *arguments)
    assert sorted(p.name for p in own_cache.iterdir()) == ["cache"]
