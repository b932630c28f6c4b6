"""What was checked by hand: what is taken from showcase.json, what is left out, and that nothing in it can break a bundle."""

import csv
import io
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from sae_explore import wording
from sae_explore.bundles import curated
from sae_explore.bundles.bundle import Bundle
from sae_explore.bundles.curated import FILE, Curated, CuratedFeature, CuratedText
from sae_explore.explore import showcase, text_view
from sae_explore.explore.browse import Filter, feature_frame, kept
from sae_explore.json_output import feature_json, trace_json

pytest_plugins = ["bundle_fixtures"]


@pytest.fixture
def folder(tiny_cache, tmp_path):
    """A copy of a bundle."""
    return shutil.copytree(tiny_cache / "tiny", tmp_path / "tiny")


def generation(folder) -> str:
    return json.loads((folder / "manifest.json").read_text())["folder"]


def write(folder, *, checked_for: str | None = None, **lists) -> Bundle:
    (folder / FILE).write_text(json.dumps({"checked_for": checked_for or generation(folder), **lists}))
    return Bundle(folder)


def feature(number: object = 5, **other) -> dict:
    return {"feature": number, "label": "a label", "theme": "A theme", **other}


def test_without_the_file_nothing_is_checked(folder):
    bundle = Bundle(folder)
    assert bundle.curated == Curated()
    assert bundle.human_labels == {}
    assert bundle.label(5) == bundle.automatic_label(5) == bundle.features["label"][5].as_py()


def test_what_is_right_is_taken_in_the_order_of_the_file(folder):
    ids = Bundle(folder).documents["id"].to_pylist()
    texts = [
        {"document": ids[7], "title": "Seven", "note": "What it shows.", "features": [9, 5, 9]},
        {"document": ids[3], "title": "Three"},
    ]
    bundle = write(folder, features=[feature(9, label="  nine   things "), feature(5, note="Look here.", surplus=[1])], texts=texts)
    assert bundle.curated.features == (CuratedFeature(9, "nine things", "A theme"), CuratedFeature(5, "a label", "A theme", "Look here."))
    assert bundle.curated.texts == (CuratedText(7, ids[7], "Seven", "What it shows.", (9, 5)), CuratedText(3, ids[3], "Three"))


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (feature(64), "no feature from 0 to 63"),
        (feature(-1), "no feature"),
        (feature("5"), "no feature"),
        (feature(5.0), "no feature"),
        (feature(True), "no feature"),
        (feature(10**40), "no feature"),
        (feature([[[]]]), "list is no feature"),
        (feature(label=""), "has 0 characters"),
        (feature(label="x" * 61), "has 61 characters"),
        (feature(label=["x"]), "no line of text"),
        (feature(label="two\nlines"), "no line of text"),
        (feature(label="\u202eturned"), "no line of text"),
        (feature(label="half \ud800"), "no line of text"),
        (feature(theme=None), "no line of text"),
        (feature(note="y" * 201), "has 201 characters"),
        ("feature", "no object"),
        (None, "no object"),
    ],
)
def test_a_wrong_feature_is_left_out_and_the_log_says_why(folder, caplog, entry, why):
    bundle = write(folder, features=[entry, feature(6)])
    assert bundle.human_labels == {6: "a label"}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "entry 0 of features is left out" in record.message
    assert why in record.message


def test_a_wrong_text_is_left_out(folder, caplog):
    first = Bundle(folder).documents["id"][0].as_py()
    wrong = [
        {"document": "no/such", "title": "x"},
        {"document": 3, "title": "x"},
        {"document": first, "title": ""},
        {"document": first, "title": "x", "features": [99]},
        {"document": first, "title": "x", "features": [1, 2, 3, 4, 5]},
        {"document": first, "title": "x", "features": "12"},
    ]
    bundle = write(folder, texts=[*wrong, {"document": first, "title": "right"}, {"document": first, "title": "again"}])
    assert [t.title for t in bundle.curated.texts] == ["right"]
    assert len(caplog.records) == len(wrong) + 1
    assert "it was there before" in caplog.records[-1].message


def test_no_more_is_taken_than_fits(folder, monkeypatch):
    monkeypatch.setattr(curated, "MAX_FEATURES", 3)
    assert list(write(folder, features=[feature(n) for n in range(10)]).human_labels) == [0, 1, 2]


def test_labels_that_were_checked_for_another_sae_are_not_inherited(folder, caplog):
    assert write(folder, checked_for="g-000000000000", features=[feature()]).curated == Curated()
    assert "were checked for 'g-000000000000'" in caplog.text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"features": 3}',
        b"[" * 100_000,
        b'{"checked_for": {}}',
        b"1" * 5_000,
        b" " * (curated.MAX_BYTES + 1),
    ],
    ids=["empty", "cut", "no UTF-8", "list", "null", "unchecked", "deep", "wrong type", "long number", "large"],
)
def test_a_broken_file_counts_as_none(folder, caplog, data):
    (folder / FILE).write_bytes(data)
    assert Bundle(folder).curated == Curated()
    assert "showcase.json of bundle 'tiny' is passed over" in caplog.text


@pytest.mark.parametrize("lists", [{"features": 3}, {"features": {}}, {"texts": "x"}, {"texts": None}])
def test_lists_that_are_none_count_as_no_file(folder, caplog, lists):
    assert write(folder, **{"features": [feature()], **lists}).curated == Curated()
    assert "are no list" in caplog.text


def test_a_folder_of_that_name_counts_as_none(folder):
    (folder / FILE).mkdir()
    assert Bundle(folder).curated == Curated()


def test_a_persons_label_goes_before_the_automatic_one_and_json_keeps_both(folder):
    plain = Bundle(folder)
    trace = plain.document_trace(0)
    busy = trace.hits()[0].feature
    bundle = write(folder, features=[feature(busy, label="mine")])
    automatic = plain.label(busy)
    assert (bundle.label(busy), bundle.automatic_label(busy)) == ("mine", automatic)
    row = bundle.row(busy)
    assert (row["label"], row["human_label"], row["automatic_label"]) == ("mine", "mine", automatic)
    assert text_view.labels_of(bundle, [busy]) == [f"mine {wording.CHECKED}"] == [wording.shown_label(row)]
    assert f"checked by hand; automatic: “{automatic}”" in wording.label_origin(row)
    assert wording.label_line(row) == f"mine (checked by hand; automatic: {automatic} (confidence {row['confidence']:.2f}))"

    for made in (feature_json(bundle.card(busy)), trace_json(trace, bundle)["top_features"][0]):
        assert (made["label"], made["human_label"]) == (automatic, "mine")
    assert "human_label" not in feature_json(plain.card(busy))
    assert "human_label" not in trace_json(trace, plain)["top_features"][0]
    rows = {int(r["feature"]): r for r in csv.DictReader(io.StringIO(text_view.ranked_csv(trace, bundle)))}
    assert (rows[busy]["label"], rows[busy]["human_label"]) == (automatic, "mine")
    assert {r["human_label"] for n, r in rows.items() if n != busy} == {""}


# ---- what the first page shows ----


def test_what_was_chosen_goes_before_what_the_program_chose(folder):
    plain = Bundle(folder)
    first, second = plain.documents["id"].to_pylist()[:2]
    texts = [{"document": second, "title": "B", "note": "Why.", "features": [4]}, {"document": first, "title": "A"}]
    bundle = write(folder, features=[feature(9), feature(4, theme="Other", note="See.")], texts=texts)
    assert showcase.openings(bundle) == (showcase.Pick(1, second, "B", "Why.", (4,)), showcase.Pick(0, first, "A"))
    assert showcase.starts(bundle) == (
        showcase.Start(9, "a label", "A theme", "", True),
        showcase.Start(4, "a label", "Other", "See.", True),
    )
    assert showcase.worth_of_features(bundle)[[9, 4]].min() > showcase.worth_of_features(plain).max()


def test_a_bundle_without_the_file_offers_its_clearest_features_by_kind(folder):
    bundle = Bundle(folder)
    assert showcase.openings(bundle) == showcase.pick_documents(bundle)
    found = showcase.starts(bundle, each=2)
    assert found
    kinds = bundle.features["label_kind"].to_pylist()
    by_theme: dict[str, list] = {}
    for start in found:
        assert start.label == bundle.label(start.feature)
        assert start.theme.casefold() == wording.KIND_WORDS[kinds[start.feature]]
        assert not start.checked
        assert bundle.row(start.feature)["count"]
        by_theme.setdefault(start.theme, []).append(start.label)
    assert not {"No clear pattern", "Never fires"} & set(by_theme)
    assert all(len(set(labels)) == len(labels) <= 2 for labels in by_theme.values())


def test_the_demos_list_fits_the_demo(caplog):
    """Every entry is taken, the list is long enough, and each text is lit strongly by the features that it is there for."""
    folder = Path(__file__).resolve().parents[1] / "cache" / "demo"
    demo, written = Bundle(folder), json.loads((folder / FILE).read_text(encoding="utf-8"))
    assert not caplog.records
    assert len(demo.curated.features) == len(written["features"]) >= 40
    assert len(demo.curated.texts) == len(written["texts"]) >= 6
    assert all(demo.row(f.feature)["count"] for f in demo.curated.features)
    for text in demo.curated.texts:
        trace = demo.document_trace(text.document)
        for number in text.features:
            assert trace.rows.column(number).max() >= 0.4 * demo.maxima[number], (text.title, number)


def test_browse_shows_and_finds_the_checked_label(folder, tiny_cache):
    shown = feature_frame(write(folder, features=[{"feature": 5, "label": "Rivers of Gold", "theme": "World"}]))
    plain = feature_frame(Bundle(tiny_cache / "tiny"))
    assert shown["label"].iat[5] == f"Rivers of Gold {wording.CHECKED}"
    assert shown["label"].drop(5).equals(plain["label"].drop(5))
    assert np.flatnonzero(kept(shown, Filter(query="rivers of gold", dense_above=None, hide_dead=False))).tolist() == [5]
