"""The map of the dictionary: near in 2-D what is alike by cosine, added to a bundle without disturbing its readers, and drawn safely."""

import json
import shutil
import sys

import numpy as np
import pytest

from sae_explore import __main__, command_line
from sae_explore.bundles.bundle import open_bundle
from sae_explore.drawing import map_colours
from sae_explore.drawing.figures_map import dictionary_map, picked_features, points_of, renamed
from sae_explore.errors import BundleError, InputError
from sae_explore.explore.browse import feature_frame
from sae_explore.features import feature_map
from sae_explore.files.bundle_files import MAP_FILE, complete_manifest, publish, sha256_of
from sae_explore.files.tensor_file import write_tensors

pytest_plugins = ["bundle_fixtures"]


@pytest.fixture
def cache(tiny_cache, tmp_path, monkeypatch):
    """A cache folder with the bundle `planted`, without a map."""
    shutil.copytree(tiny_cache / "planted", tmp_path / "planted")
    remove_map(tmp_path / "planted")
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path))
    return tmp_path


def remove_map(folder):
    """As a build without the library leaves it."""
    files = folder / json.loads((folder / "manifest.json").read_text())["folder"]
    (files / MAP_FILE).unlink(missing_ok=True)
    known = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(complete_manifest(files, known)))


@pytest.fixture
def no_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    monkeypatch.setattr(feature_map, "find_spec", lambda _name: None)


def clusters(groups: int = 12, each: int = 25, d: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Directions around planted ones, of lengths that say nothing; the group of each."""
    rng = np.random.default_rng(3)
    group = rng.permutation(np.repeat(np.arange(groups), each))
    rows = rng.normal(size=(groups, d))[group] + 0.6 * rng.normal(size=(groups * each, d))
    return (rows * rng.uniform(0.1, 10, size=(len(rows), 1))).astype(np.float32), group


def nearest(distances: np.ndarray, k: int) -> np.ndarray:
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1)[:, :k]


def test_like_directions_lie_near_each_other():
    W, group = clusters()
    reports = []
    xy = feature_map.directions_to_map(W, report=lambda text, share=None: reports.append(share))
    assert xy.shape == (300, 2)
    assert xy.dtype == np.float32
    assert np.abs(xy).max() == pytest.approx(1)
    near = nearest(np.linalg.norm(xy[:, None] - xy[None], axis=2), 10)
    assert (group[near] == group[:, None]).mean() > 0.9  # by chance 1 in 12
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    alike = nearest(1 - unit @ unit.T, 10)
    kept = np.mean([len(set(a) & set(b)) for a, b in zip(near.tolist(), alike.tolist(), strict=True)]) / 10
    assert kept > 0.3  # by chance 1 in 30
    assert reports == sorted(reports)
    assert reports[-1] == 1


def test_the_same_directions_give_the_same_map():
    W, _ = clusters(groups=4)
    first = feature_map.directions_to_map(W)
    np.testing.assert_array_equal(first, feature_map.directions_to_map(W))
    assert not np.array_equal(first, feature_map.directions_to_map(W[::-1].copy())[::-1])


@pytest.mark.parametrize(("n", "d"), [(1, 4), (2, 1), (3, 8), (11, 5), (12, 3), (40, 1)])
def test_few_directions_and_few_dimensions_have_a_map(n, d):
    xy = feature_map.directions_to_map(np.random.default_rng(0).normal(size=(n, d)))
    assert xy.shape == (n, 2)
    assert np.isfinite(xy).all()
    assert np.abs(xy).max() <= 1


def test_zero_and_equal_directions_have_places():
    W = np.zeros((30, 6), np.float32)
    W[10:] = 1
    assert np.isfinite(feature_map.directions_to_map(W)).all()


def test_the_command_adds_the_map_and_nothing_else(cache, capsys):
    before = {p: sha256_of(p) for p in (cache / "planted").rglob("*") if p.is_file()}
    old = open_bundle("planted")
    assert old.map_xy is None
    assert command_line.run(__main__.main, ["map", "planted", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    bundle = open_bundle("planted")
    bundle.verify()
    assert said == {"bundle": "planted", "features": 64, "bytes": (bundle.files / MAP_FILE).stat().st_size, "state": "new"}
    assert bundle.files == old.files
    assert {k: v for k, v in bundle.manifest.items() if k not in ("files", "checksum")} == {
        k: v for k, v in old.manifest.items() if k not in ("files", "checksum")
    }
    assert bundle.manifest == complete_manifest(bundle.files, old.manifest)  # as a build with the library would have written it
    np.testing.assert_array_equal(bundle.map_xy, feature_map.directions_to_map(bundle.W_dec).astype(np.float16))
    now = {p: sha256_of(p) for p in (cache / "planted").rglob("*") if p.is_file()}
    assert {p.name for p in now.keys() - before.keys()} == {MAP_FILE}
    assert {p.name for p in before if now[p] != before[p]} == {"manifest.json"}
    old.verify()  # a reader who came before

    assert command_line.run(__main__.main, ["map", "planted"]) == 0
    assert "has its map already" in capsys.readouterr().out
    assert {p: sha256_of(p) for p in (cache / "planted").rglob("*") if p.is_file()} == now


def test_without_the_library_the_command_says_what_to_install(cache, no_library, capsys):
    assert command_line.run(__main__.main, ["map", "planted"]) == 2
    assert "pip install openTSNE && python -m sae_explore map planted" in capsys.readouterr().err
    assert open_bundle("planted").map_xy is None


def test_a_bundle_is_built_the_same_with_the_library_and_without(tiny_cache, cache, no_library):
    """The generation keeps its name, so that what was checked by hand stays with it."""
    with_map, without = open_bundle("planted", cache=tiny_cache), open_bundle("planted")
    assert with_map.map_xy is not None
    assert with_map.files.name == without.files.name
    assert with_map.manifest["files"].keys() - without.manifest["files"].keys() == {MAP_FILE}


def test_a_build_without_the_library_leaves_the_map_out(cache, no_library):
    from sae_explore.building.build_stages import stage_map

    class Context:
        out, said = cache / "planted", []

        def report(self, stage, text, share=None):
            self.said.append((stage, text))

    assert stage_map(Context()) == {"drawn": False}
    assert Context.said == [("map", "left out: openTSNE is not installed")]


def test_a_bundle_that_is_replaced_meanwhile_gets_no_map(cache):
    bundle = open_bundle("planted")

    def replace(_text, _share=None):
        manifest = complete_manifest(bundle.files, {**bundle.manifest, "units": "others"})
        (bundle.folder / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(InputError, match="bundle 'planted' has been replaced meanwhile; give the command again"):
        feature_map.add_map(bundle, report=replace)
    assert open_bundle("planted").units == "others"
    assert open_bundle("planted").map_xy is None


def test_one_map_of_a_bundle_at_a_time(cache):
    bundle = open_bundle("planted")

    def again(_text, _share=None):
        with pytest.raises(InputError, match="is being drawn already"):
            feature_map.add_map(bundle)

    feature_map.add_map(bundle, report=again)


def test_building_again_with_the_library_adds_the_map_to_the_generation_that_is_there(cache, tmp_path):
    """Readers of that generation may have its files open."""
    bundle = open_bundle("planted")
    work = tmp_path / "work"
    shutil.copytree(bundle.files, work)
    feature_map.write_map(work)
    inode = (bundle.files / "lens.safetensors").stat().st_ino
    manifest = publish(work, bundle.folder, bundle.manifest)
    assert manifest["folder"] == bundle.files.name
    assert (bundle.files / "lens.safetensors").stat().st_ino == inode
    assert not work.exists()
    found = open_bundle("planted")
    found.verify()
    assert found.map_xy is not None


@pytest.mark.parametrize("xy", [np.zeros((64, 3), np.float16), np.full((64, 2), np.nan, np.float16), np.zeros((9, 2), np.float16)])
def test_a_map_that_cannot_be_is_refused(cache, xy):
    bundle = open_bundle("planted")
    write_tensors(bundle.files / MAP_FILE, {"xy": xy})
    (bundle.folder / "manifest.json").write_text(json.dumps(complete_manifest(bundle.files, bundle.manifest)))
    with pytest.raises(BundleError, match=r"map\.safetensors of bundle 'planted'"):
        open_bundle("planted")


# ---- the figure --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tiny_cache):
    return open_bundle("planted", cache=tiny_cache)


@pytest.fixture(scope="module")
def points(bundle):
    return points_of(np.asarray(bundle.map_xy), feature_frame(bundle)["label"].tolist(), bundle.features["density"].to_numpy())


def features_in(figure) -> list[int]:
    return sorted(int(f) for trace in figure.data if trace.customdata is not None for f in trace.customdata)


def test_each_feature_is_drawn_once_at_its_place_whatever_the_colour(bundle, points):
    frame = feature_frame(bundle)
    for choice in map_colours.choices(bundle):
        for meant in (None, np.arange(64) < 9):
            figure = dictionary_map(points, map_colours.colours_by(choice, bundle, frame), meant=meant)
            assert features_in(figure) == list(range(64)), choice
            for trace in figure.select_traces(lambda t: t.customdata is not None):
                np.testing.assert_allclose(np.stack([trace.x, trace.y], 1), points.xy[trace.customdata])


def test_dead_features_are_faint_and_colours_are_of_the_feature(bundle, points):
    frame = feature_frame(bundle)
    figure = dictionary_map(points, map_colours.colours_by("density", bundle, frame))
    dead, live = figure.data
    assert dead.customdata.tolist() == np.flatnonzero(frame["count"] == 0).tolist()
    assert dead.marker.opacity < live.marker.opacity
    np.testing.assert_allclose(10.0 ** np.asarray(live.marker.color), frame["density"].to_numpy()[live.customdata], rtol=1e-4)


def test_kinds_of_text_are_weighed_by_how_many_tokens_there_are_of_each(bundle, points):
    counts, share = np.asarray(bundle.arrays["categories"], float), bundle.category_share()
    colours = map_colours.colours_by("category", bundle, feature_frame(bundle))
    for f in range(64):
        rates = {name: n / share[name] for name, n in zip(bundle.categories, counts[f], strict=True) if n}
        if rates:
            assert rates[colours.names[colours.kinds[f]]] == pytest.approx(max(rates.values()))
        else:
            assert colours.kinds[f] == -1
    commonest = np.asarray(bundle.categories)[counts.argmax(axis=1)]
    assert any(colours.kinds[f] >= 0 and colours.names[colours.kinds[f]] != commonest[f] for f in range(64))


def test_more_kinds_than_colours_share_one():
    kinds = np.repeat(np.arange(20), np.arange(1, 21))
    colours = map_colours._of_kinds("t", kinds, [f"k{i}" for i in range(20)])
    assert colours.names == (*(f"k{i}" for i in range(9, 20)), map_colours.OTHERS)
    assert {colours.names[c] for c, k in zip(colours.kinds, kinds, strict=True) if k < 9} == {map_colours.OTHERS}
    assert {colours.names[c] for c, k in zip(colours.kinds, kinds, strict=True) if k == 15} == {"k15"}


def test_what_is_meant_stands_out_and_marks_let_the_pointer_through(bundle, points):
    meant = np.arange(64) % 8 == 5
    figure = dictionary_map(points, map_colours.colours_by("max", bundle, feature_frame(bundle)), meant=meant, on_text=[4, 6], chosen=7)
    clouds = [trace for trace in figure.data if trace.customdata is not None]
    assert {f for t in clouds if t.marker.opacity == 1 for f in t.customdata.tolist()} == set(np.flatnonzero(meant).tolist())
    marks = [trace for trace in figure.data if trace.customdata is None]
    assert {trace.hoverinfo for trace in marks} == {"skip"}
    np.testing.assert_allclose(marks[0].x, points.xy[[4, 6], 0])
    np.testing.assert_allclose(marks[-1].x, points.xy[[7], 0])


def test_hostile_labels_are_shown_as_they_are(bundle):
    hostile = '<a href="javascript:alert(1)">x</a> & <b>bold</b>'
    frame = feature_frame(bundle)
    colours = map_colours.Colours("<i>t</i>", kinds=np.zeros(64, int), names=("<img src=x>",))
    made = points_of(np.zeros((64, 2)), [hostile] * 64, frame["density"].to_numpy())
    by_number = map_colours.Colours("<i>t</i>", values=np.linspace(0, 1, 64))
    for found in (colours, by_number):
        drawn = str(dictionary_map(renamed(made, {8: hostile}), found).to_dict())  # to_json() would write < as a number
        assert "&lt;b&gt;" in drawn
        assert "<br>fires on" in drawn
        assert not any(bad in drawn for bad in ("<a", "<b>", "<i>", "<img"))


def test_only_features_of_this_dictionary_come_back_from_the_browser():
    sent = [{"customdata": c} for c in (5, 5, 63, 64, -1, "7", [8], None, True, 2.0)] + [{}, "x"]
    assert picked_features({"points": sent}, 64) == [5, 63]
    assert picked_features({}, 64) == []
    assert picked_features(None, 64) == []
