"""The pages Browse, Lens and About, compared with brute force on the bundle."""

import json
import math
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from app_driver import figure, numbers, open_page, run, select_row, texts_of, unescaped, values_of
from streamlit.testing.v1 import AppTest

from sae_explore.bundles.bundle import Bundle, open_bundle
from sae_explore.drawing import spans
from sae_explore.explore import about, browse
from sae_explore.features import lens
from sae_explore.features.diverse import clarity
from sae_explore.features.scores import SCORES, score_lines
from sae_explore.files.bundle_files import _checksum, sha256_of
from sae_explore.views.lens_page import parse_numbers
from sae_explore.wording import KIND_WORDS, sentence

pytest_plugins = ["bundle_fixtures"]
HOSTILE = "<script>x</script> **b** [l](javascript:1) :smile: $x$ `c` <b>"


@pytest.fixture
def old_scores(app_cache) -> Bundle:
    """A bundle as it was built before two of the scores existed."""
    folder = shutil.copytree(app_cache / "tiny", app_cache / "old")
    manifest = json.loads((folder / "manifest.json").read_text())
    path = folder / manifest["folder"] / "features.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["score_meaning", "score_topic", "meaning_words", "topic_words"]), path)
    manifest["files"]["features.parquet"] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "checksum": _checksum(manifest)}))
    yield open_bundle("old")
    shutil.rmtree(folder)


# ---- Browse ------------------------------------------------------------------------------------------------------------


def shown_features(at: AppTest) -> list[int]:
    return at.dataframe[0].value["feature"].tolist() if at.dataframe else []


def test_browse_lists_live_features_that_are_not_dense(planted):
    count, density = planted.features["count"].to_numpy(), planted.features["density"].to_numpy()
    at = open_page("browse", "planted")
    assert sorted(shown_features(at)) == np.flatnonzero((count > 0) & (density <= 0.1)).tolist()
    assert f"**{len(shown_features(at))} of 64 features**" in at.markdown[0].value
    frame = at.dataframe[0].value
    for row in frame.itertuples():
        kept = planted.row(row.feature)
        assert (row.label, row.max, row.confidence) == (kept["label"], kept["max"], kept["confidence"])
        assert row.density == pytest.approx(100 * kept["density"])
        assert row.kind == KIND_WORDS[kept["label_kind"]]
    score = clarity(planted.features, 0.1)[frame["feature"].to_numpy()]
    assert (np.diff(np.nan_to_num(score, nan=-1)) <= 0).all()
    (dense,) = at.toggle
    dense.set_value(True)
    at = run(at.button_group(key="browse_show").set_value("all"))
    assert sorted(shown_features(at)) == list(range(64))
    at = run(at.button_group(key="browse_show").set_value("dead"))
    assert sorted(shown_features(at)) == np.flatnonzero(count == 0).tolist()


@pytest.mark.parametrize("query", ["(", ".*", "[", "\\", "a|b", "+", "THE", " t", "7", "no such label", HOSTILE])
def test_search_is_a_plain_piece_of_text(tiny, query):
    def matches(row: dict) -> bool:
        words = (row["label"], row["peak_token"], row["lens_tokens"])
        return query == str(row["feature"]) or any(query.casefold() in text.casefold() for text in words)

    wanted = [row["feature"] for row in map(tiny.row, range(tiny.d_sae)) if row["density"] <= 0.1 and matches(row)]
    at = open_page("browse")
    at = run(at.text_input[0].set_value(query))
    assert sorted(shown_features(at)) == wanted
    assert bool(at.info) == (not wanted)
    assert "<script>" not in texts_of(at).replace(spans.md(HOSTILE), "")


def test_a_number_finds_its_feature_first(tiny):
    asked = next(f for f in range(10, 64) if tiny.row(f)["density"] <= 0.1)
    at = run(open_page("browse").text_input[0].set_value(f" {asked} "))
    assert shown_features(at)[0] == asked


def test_filters_by_brute_force(planted):
    frame = browse.feature_frame(planted)
    assert frame["feature"].tolist() == list(range(64))
    rows = [planted.row(f) for f in range(64)]
    cases = [
        (browse.Filter(hide_dead=False, dense_above=None), lambda r: True),
        (
            browse.Filter(kinds=frozenset({"mixed", "token"})),
            lambda r: r["label_kind"] in ("mixed", "token") and r["count"] and r["density"] <= 0.1,
        ),
        (
            browse.Filter(ranges=(("confidence", 0.3, 0.9),), dense_above=None),
            lambda r: 0.3 <= np.float32(r["confidence"]) <= np.float32(0.9) and r["count"],
        ),
        (browse.Filter(ranges=(("max", 2.0, 20.0),), dense_above=None), lambda r: 2 <= r["max"] <= 20 and r["count"]),
        (browse.Filter(hide_dead=False, hide_live=True), lambda r: not r["count"]),
        (browse.Filter(density=(0.01, 0.05)), lambda r: 0.01 <= r["density"] <= 0.05 and r["count"]),
        (browse.Filter(density=(0.01, 0.05), hide_dead=False), lambda r: 0.01 <= r["density"] <= 0.05 or not r["count"]),
        (browse.Filter(query="MIXED"), lambda r: "mixed" in r["label"] and r["count"] and r["density"] <= 0.1),
    ]
    for wanted, holds in cases:
        mask = browse.kept(frame, wanted)
        assert np.flatnonzero(mask).tolist() == [r["feature"] for r in rows if holds(r)], wanted
        assert sorted(browse.ordered(frame, mask)) == np.flatnonzero(mask).tolist()
    order = browse.ordered(frame, np.ones(64, bool))
    assert order[0] == browse.start_feature(frame) == np.nanargmax(clarity(planted.features, 0.1))
    assert not np.isfinite(clarity(planted.features, 0.1)[order[-sum(r["count"] == 0 for r in rows) :]]).any()
    assert browse.ordered(frame, np.ones(64, bool), query="9")[0] == 9


def test_scores_are_columns_by_choice_and_filters(tiny):
    at = open_page("browse")
    assert not [c for c in at.dataframe[0].value if c.startswith("score_")]
    assert [s.key for s in at.slider] == [f"browse_{name}" for name in ("confidence", *(f"score_{s}" for s in SCORES))]
    at = run(at.button_group(key="browse_columns").set_value(["score_token", "lens"]))
    frame = at.dataframe[0].value
    for feature, value in zip(frame["feature"], frame["score_token"], strict=True):
        assert value == pytest.approx(tiny.row(feature)["score_token"])
    least = float(np.quantile(frame["score_token"], 0.7).round(1))
    at = run(at.slider(key="browse_score_token").set_value((least, 1.0)))
    scores = tiny.features["score_token"].to_numpy()
    shown = shown_features(at)
    assert 0 < len(shown) < len(frame)
    assert sorted(shown) == [f for f in sorted(frame["feature"]) if scores[f] >= np.float32(least)]
    assert f"same token from {least:g}" in texts_of(at)
    at = run(next(b for b in at.button if b.label == "Reset the filters").click())
    assert sorted(shown_features(at)) == sorted(frame["feature"])
    assert not [b for b in at.button if b.label == "Reset the filters"]


def test_every_score_filters_by_brute_force(planted):
    frame = browse.feature_frame(planted)
    for name in SCORES:
        values = planted.features[f"score_{name}"].to_numpy()
        least = float(np.sort(values)[len(values) // 2])
        ranges = ((f"score_{name}", least, 0.95), ("score_token", 0.1, math.inf))
        mask = browse.kept(frame, browse.Filter(hide_dead=False, dense_above=None, ranges=ranges))
        expected = (
            (values >= np.float32(least)) & (values <= np.float32(0.95)) & (planted.features["score_token"].to_numpy() >= np.float32(0.1))
        )
        assert mask.tolist() == expected.tolist()
        assert mask.any()


def test_a_bundle_without_a_score_opens_and_says_so(old_scores):
    at = run(open_page("browse", "old").button_group(key="browse_columns").set_value(["score_meaning", "score_token"]))
    frame = at.dataframe[0].value
    assert frame["score_meaning"].isna().all()
    assert frame["score_token"].notna().all()
    assert "Not in this bundle" in texts_of(at)
    assert [s.key for s in at.slider if s.key.startswith("browse_score")] == [
        f"browse_score_{name}" for name in SCORES if name not in ("meaning", "topic")
    ]
    assert all(line.value is None for line in score_lines(old_scores, 5) if line.name in ("meaning", "topic"))
    assert all(line.value is not None for line in score_lines(old_scores, 5) if line.name not in ("meaning", "topic"))
    shown = open_page("feature", "old", feature="5")
    assert "built before this score existed" in texts_of(shown)


def test_selecting_a_row_shows_its_feature(tiny):
    at = select_row(open_page("browse"), 1)
    feature = shown_features(at)[1]
    assert values_of(at)[0] == pytest.approx(float(tiny.maxima[feature]), abs=0.01)
    assert f"feature={feature}" in str([link.proto for link in at.get("page_link")])


def test_the_density_chart_counts_live_features_and_marks_the_range(planted):
    at = open_page("browse", "planted")
    drawn = figure(at, "Histogram")
    assert sum(numbers(drawn.data[0].y)) == (planted.features["count"].to_numpy() > 0).sum()
    at = run(at.select_slider(key="browse_density").set_value((1_000, 30)))
    box = next(s for s in figure(at, "Histogram").layout.shapes if s.type == "rect")
    assert box.x1 == pytest.approx(np.log10(1 / 30))
    density = planted.features["density"].to_numpy()
    assert sorted(shown_features(at)) == np.flatnonzero((density >= 1e-3) & (density <= 1 / 30)).tolist()


# ---- Lens --------------------------------------------------------------------------------------------------------------


def test_lens_begins_with_features_that_differ(tiny):
    at = open_page("lens")
    chosen, _ = parse_numbers(at.text_input[0].value, 64)
    assert len(chosen) == 4
    drawn = figure(at, "Decoder cosines")
    rows = np.asarray(tiny.W_dec, np.float64)[chosen]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.allclose(numbers(drawn.data[0].z), rows @ rows.T, atol=1e-4)
    assert np.abs(rows @ rows.T - np.eye(4)).max() < 0.7
    score = clarity(tiny.features, 0.1)
    assert chosen[0] == np.nanargmax(score)


def test_lens_of_chosen_features(tiny, gpt2_model):
    at = run(open_page("lens").text_input[0].set_value("3, 12;3 40"))
    assert at.text_input[0].value == "3, 12, 40"
    assert at.query_params["features"] in ("3,12,40", ["3,12,40"])
    matrix = lens.lens_matrix(gpt2_model.unembedding, "folded").numpy()
    strengths = numbers(figure(at, "Direction strength").data[0].x)
    assert strengths == pytest.approx([float((np.asarray(tiny.W_dec[f]) @ matrix).std()) for f in (3, 12, 40)], rel=1e-3)
    for feature in (3, 12, 40):
        expected = [t.logit for t in tiny.lens_tokens(feature)[0][:10]]
        assert numbers(figure(at, f"Feature {feature} promotes").data[0].x) == pytest.approx(expected)
    ends = {figure(at, f"Feature {f} promotes").layout.xaxis.range[1] for f in (3, 12, 40)}
    assert len(ends) == 1


def test_lens_link_reopens_the_view_and_names_what_is_not_there(tiny):
    at = open_page("lens", features="5,64,7,x")
    assert at.text_input[0].value == "5, 7"
    said = " ".join(w.value for w in at.warning)
    assert "no feature 64" in said
    assert "no feature number" in said


def test_lens_without_features_says_what_to_do(tiny):
    at = run(open_page("lens").text_input[0].set_value(""))
    assert "No feature is chosen" in at.info[0].value
    assert not at.get("plotly_chart")
    at = run({b.label: b for b in at.button}["Diverse features"].click())
    assert len(at.get("plotly_chart")) == 6


def test_numbers_of_features_in_a_text():
    assert parse_numbers("1, 2;3\n2", 64) == ([1, 2, 3], [])
    features, problems = parse_numbers(" ".join(map(str, range(12))), 64)
    assert features == list(range(8))
    assert len(problems) == 1
    assert parse_numbers("64 -1 1e3 ٣", 64)[0] == []
    assert len(parse_numbers("64 -1 1e3 ٣", 64)[1]) == 4


# ---- About -------------------------------------------------------------------------------------------------------------


def test_about_shows_the_figures_of_the_manifest(tiny):
    at = open_page("about")
    metrics = tiny.manifest["metrics"]
    said = texts_of(at)
    assert f"Explained variance **{metrics['explained_variance']:.3f}** on {metrics['tokens_eval']:,} tokens" in said
    assert f"**{metrics['ce_sae'] - metrics['ce_clean']:+.3f}** nats" in said
    assert "quality" in str([link.proto for link in at.get("page_link")])
    assert at.success
    l0 = len(tiny.store.token_features) / tiny.manifest["features"]["counted_tokens"]
    assert f"**{l0:.1f}** are active" in texts_of(at)


def test_about_repeats_what_the_build_noticed(planted):
    at = open_page("about", "planted")
    assert planted.manifest["warnings"]
    assert [unescaped(w.value) for w in at.warning] == [unescaped(sentence(w)) for w in planted.manifest["warnings"]]
    assert not at.success


def test_about_names_the_versions_of_model_and_sae(tiny):
    parts = {
        "model": {**tiny.manifest["model"], "revision": "a" * 40},
        "sae": {**tiny.manifest["sae"], "source": "u/sae:x", "revision": "b" * 40},
    }
    model, _, sae = about.origin_rows({**tiny.manifest, **parts})
    assert f", revision {'a' * 12}" in model[1]
    assert f"u/sae:x, revision {'b' * 12}" in sae[1]
    assert sae[2] == "as its source states"
    model, _, sae = about.origin_rows(tiny.manifest)  # a folder of this machine, and an SAE that was trained here
    assert f", revision {tiny.manifest['model']['revision'][:12]}" in model[1]
    assert "revision" not in sae[1]
    shown = [unescaped(str(value)) for table in open_page("about").table for value in table.value.to_numpy().ravel()]
    assert [row[1] for row in (model, sae) if row[1] not in shown] == []


def test_the_mixed_example_is_mixed_and_live(tiny):
    frame = browse.feature_frame(tiny)
    feature = about.mixed_feature(frame, 0.1)
    row = tiny.row(feature)
    assert row["label_kind"] == "mixed"
    assert row["density"] <= 0.1
    assert row["confidence"] == min(
        r["confidence"] for r in map(tiny.row, range(64)) if r["label_kind"] == "mixed" and r["density"] <= 0.1 and r["count"] >= 10
    )
    assert about.mixed_feature(frame[frame["kind"] != "mixed"], 0.1) is None
