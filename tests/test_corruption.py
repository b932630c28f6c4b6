"""A flipped bit, a cut or another file in place of any file of a bundle: one sentence that names it, on the command line and on a page, and the
other bundles of the cache go on as before.

When damage is found: small files are hashed by each process that opens the bundle, files of 32 MB and more when their path, size or
modification time is new, and all of them by `push` and `Bundle.verify`. What is not hashed at an opening is still checked in its bounds.
"""

import copy
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from app_driver import open_page, run, texts_of, unescaped

from sae_explore.bundles import curated
from sae_explore.bundles.bundle import Bundle
from sae_explore.bundles.bundle_checks import FACTS, check_facts
from sae_explore.errors import BundleError, InputError
from sae_explore.explore import about
from sae_explore.features import quality
from sae_explore.files.bundle_files import MANIFEST, _checksum, publish, read_manifest
from sae_explore.files.tensor_file import read_tensors, write_tensors
from sae_explore.json_output import feature_json
from sae_explore.notebook.notes import Notes, OwnLabel, sae_of
from sae_explore.notebook.notes_store import FileStore

pytest_plugins = ["bundle_fixtures", "cli_fixtures"]
FILES = ("documents.parquet", "features.parquet", "tokens.safetensors", "vocabulary.safetensors", "features.safetensors", "lens.safetensors",
         "examples.safetensors", "activations.safetensors", "sae/cfg.json", "sae/sae_weights.safetensors")  # fmt: skip


def flipped(data: bytes, low: float, high: float, seed: int) -> bytes:
    """One bit changed somewhere in this part of the file."""
    rng = random.Random(seed)
    at = min(int(rng.uniform(low, high) * len(data)), len(data) - 1)
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


DAMAGE = {
    "a bit of the header": lambda d, _: flipped(d, 0, 0.02, 1),
    "a bit in the middle": lambda d, _: flipped(d, 0.4, 0.6, 2),
    "a bit of the end": lambda d, _: flipped(d, 0.98, 1, 3),
    "the last bit": lambda d, _: d[:-1] + bytes([d[-1] ^ 1]),
    "empty": lambda _d, _: b"",
    "half of it": lambda d, _: d[: len(d) // 2],
    "one byte less": lambda d, _: d.rstrip(b"\n")[:-1],  # a line's end is no loss
    "one byte more": lambda d, _: d + b"\0",
    "another file": lambda _d, other: other,
    "gone": None,
    "a folder": None,
}


def spoil(path: Path, damage: str, other: Path) -> None:
    """Damage a file that is a hard link to the right one."""
    data = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes(DAMAGE[damage](data, other.read_bytes()))


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target, copy_function=os.link))


def path_of(bundle: Path, file: str) -> Path:
    return bundle / MANIFEST if file == MANIFEST else bundle / read_manifest(bundle)["folder"] / file


@pytest.fixture
def cache(tiny_cache, tmp_path, monkeypatch, app_cache) -> Path:
    """A cache folder with a copy of the sound bundle `planted`."""
    copied(tiny_cache / "planted", tmp_path / "planted")
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path))
    return tmp_path


def test_the_files_are_all_of_a_bundles(tiny_cache):
    """Files that bundles get later (and must be damaged here) are added to the list above."""
    assert set(FILES) <= set(read_manifest(tiny_cache / "tiny")["files"])


@pytest.fixture
def files(tiny_cache) -> list[str]:
    return [MANIFEST, *read_manifest(tiny_cache / "tiny")["files"]]


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damaged_file_is_named_and_the_other_bundle_goes_on(cache, tiny_cache, cli, refused, files, damage, monkeypatch):
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(cache))
    sound = cli("feature", "planted", 12, "--json")
    assert sound[0] == 0
    for i, file in enumerate(files):
        bundle = copied(tiny_cache / "tiny", cache / f"d{i}")
        spoil(path_of(bundle, file), damage, path_of(tiny_cache / "planted", files[i - 1]))
        for command in (("feature", bundle.name, 3), ("text", bundle.name, "hello"))[: 1 + i % 2]:
            error = refused(*command)
            assert file in error, error
            assert bundle.name in error
            assert str(cache) not in error
            if not (file == MANIFEST and damage == "gone"):
                assert "build it again with --force, or fetch it again" in error
    code, out, err = cli("bundles", "--json")
    rows = {row["bundle"]: row for row in json.loads(out)}
    assert (code, err) == (0, "")
    assert set(rows) == {"planted", *(f"d{i}" for i in range(len(files)) if not (i == 0 and damage == "gone"))}
    assert "error" not in rows["planted"]
    assert cli("feature", "planted", 12, "--json") == sound


@pytest.mark.parametrize("damage", ["a bit in the middle", "half of it", "a folder"])
def test_a_page_names_the_file_and_the_other_bundle_opens_in_the_same_session(cache, tiny_cache, files, damage):
    for i, file in enumerate(files):
        bundle = copied(tiny_cache / "tiny", cache / f"d{i}")
        spoil(path_of(bundle, file), damage, path_of(tiny_cache / "planted", files[i - 1]))
    for i in range(list(DAMAGE).index(damage) % 3, len(files), 3):
        at = open_page("feature", f"d{i}", feature="3")
        assert len(at.error) == 1
        message = unescaped(at.error[0].value)
        assert files[i] in message
        assert "Build it again" in message or "build it again" in message
        at.query_params["bundle"] = "planted"
        at = run(at)
        assert not at.error
        assert at.title[0].value


def test_a_bundle_that_has_lost_its_manifest_says_that_the_rest_is_there(cache, refused, monkeypatch):
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(cache))
    (cache / "planted" / MANIFEST).unlink()
    assert "manifest.json is missing; its other files are there: build it again" in refused("feature", "planted", 1)


# ---- files beside a bundle ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["empty", "half of it", "one byte less", "another file", "a folder"])
def test_a_damaged_showcase_is_named_and_passed_over(cache, damage, caplog):
    bundle = cache / "planted"
    listed = {"checked_for": read_manifest(bundle)["folder"], "features": [{"feature": 20, "label": "mine", "theme": "t"}]}
    (bundle / curated.FILE).write_text(json.dumps(listed))
    assert Bundle(bundle).label(20) == "mine"
    spoil(bundle / curated.FILE, damage, path_of(bundle, "lens.safetensors"))
    found = Bundle(bundle)
    assert found.curated.features == ()
    assert found.curated.problem.startswith("the showcase.json of bundle 'planted' is passed over: ")
    assert [r.getMessage() for r in caplog.records if r.name == curated.__name__] == [found.curated.problem]
    at = open_page("feature", "planted", feature="20")
    assert not at.error
    assert [w for w in map(unescaped, (w.value for w in at.warning)) if "showcase" in w] == [f"T{found.curated.problem[1:]}."]


@pytest.mark.parametrize("damage", ["empty", "half of it", "another file", "a folder"])
def test_damaged_labels_are_named_kept_and_the_feature_is_still_shown(cache, damage, refused, monkeypatch):
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(cache))
    bundle = Bundle(cache / "planted")
    store = FileStore(cache, "planted", sae=sae_of(bundle.manifest), d_sae=bundle.d_sae)
    store.change(lambda _: Notes({20: OwnLabel("mine", "", "")}, ()))
    spoil(store.path, damage, path_of(cache / "planted", "lens.safetensors"))
    before = store.path.read_bytes() if store.path.is_file() else None
    with pytest.raises(InputError, match=r"labels/planted\.json"):
        store.read()
    with pytest.raises(InputError, match=r"labels/planted\.json"):
        store.change(lambda notes: notes)
    assert (store.path.read_bytes() if store.path.is_file() else None) == before
    assert "labels/planted.json" in refused("export", "planted", "--list", "x", "--out", cache / "x.html")
    at = open_page("feature", "planted", feature="20")
    assert len(at.error) <= 1
    assert "Top examples" in texts_of(at) or at.tabs or at.get("html")


# ---- a bundle that fits its hashes, and not itself ---------------------------------------------------------------------


def tensors(name: str, **changes):
    """Change arrays of a file: each by a function of the array, which may change it in place."""

    def edit(work: Path) -> None:
        found = {key: np.array(value) for key, value in read_tensors(work / name).items()}
        for key, change in changes.items():
            key = key.replace("__", ".")
            changed = change(found[key])
            found[key] = found[key] if changed is None else changed
        write_tensors(work / name, found)

    return edit


def put(at: int, value):
    def change(array: np.ndarray) -> None:
        array.reshape(-1)[at] = value

    return change


def column(name: str, key: str, values):
    def edit(work: Path) -> None:
        table = pq.read_table(work / name)
        pq.write_table(table.set_column(table.column_names.index(key), key, pa.array(values(table.column(key).to_pylist()))), work / name)

    return edit


INCONSISTENT = {
    "a token beyond the vocabulary": (tensors("tokens.safetensors", ids=put(5, 600)), "tokens.safetensors .* ids"),
    "documents out of order": (tensors("tokens.safetensors", offsets=put(1, 10**6)), "do not fit together"),
    "ignored as numbers": (tensors("tokens.safetensors", ignored=lambda a: a.astype(np.int32)), "tokens.safetensors .* ignored"),
    "bytes beyond the blob": (tensors("vocabulary.safetensors", offsets=put(-1, 10**9)), "vocabulary.safetensors .* offsets"),
    "bytes out of order": (tensors("vocabulary.safetensors", offsets=put(3, 10**5)), "vocabulary.safetensors .* offsets"),
    "an example beyond the texts": (tensors("examples.safetensors", top=put(0, 10**8)), "examples.safetensors .* top"),
    "an interval beyond the texts": (tensors("examples.safetensors", interval=put(-1, 2**32 - 2)), "examples.safetensors .* interval"),
    "a flat table of examples": (tensors("examples.safetensors", random=lambda a: a[:, 0].copy()), "examples.safetensors .* random"),
    "a lens token beyond the vocabulary": (tensors("lens.safetensors", raw__negative_ids=put(7, 600)), "lens.safetensors .* raw.negative_ids"),
    "fewer logits than ids": (tensors("lens.safetensors", raw__positive=lambda a: a[:, 1:].copy()), "lens.safetensors .* raw.positive"),
    "a neighbour that is none": (tensors("features.safetensors", decoder_neighbours=put(2, 64)), "features.safetensors .* decoder_neighbours"),
    "a neighbour below zero": (tensors("features.safetensors", encoder_neighbours=put(2, -1)), "features.safetensors .* encoder_neighbours"),
    "a co-active feature that is none": (tensors("features.safetensors", coactive_feature=put(0, 99)), "features.safetensors .* coactive"),
    "a maximum that is no number": (tensors("features.safetensors", max=put(0, np.nan)), "features.safetensors .* maximum"),
    "a category too many": (tensors("features.safetensors", categories=lambda a: np.hstack([a, a])), "features.safetensors .* categories"),
    "a firing of no feature": (tensors("activations.safetensors", token_features=put(9, 64)), "activations.safetensors .* token_features"),
    "a firing elsewhere": (tensors("activations.safetensors", feature_entries=put(9, 10**9)), "activations.safetensors .* feature_entries"),
    "an infinite activation": (tensors("activations.safetensors", token_values=put(9, np.inf)), "activations.safetensors .* above 0"),
    "an activation that is no number": (tensors("activations.safetensors", token_values=put(9, np.nan)), "activations.safetensors .* above 0"),
    "an activation below zero": (tensors("activations.safetensors", token_values=put(9, -1)), "activations.safetensors .* above 0"),
    "tokens out of order": (tensors("activations.safetensors", token_offsets=put(4, -3)), "activations.safetensors: token_offsets"),
    "another decoder": (tensors("sae/sae_weights.safetensors", W_dec=lambda a: a[:, 1:].copy()), "sae/sae_weights.safetensors .* W_dec"),
    "a decoder row short": (tensors("sae/sae_weights.safetensors", W_dec=lambda a: a[1:].copy()), "sae/sae_weights.safetensors .* W_dec"),
    "a label that is missing": (column("features.parquet", "label", lambda v: [None, *v[1:]]), "features.parquet .* label"),
    "labels that are numbers": (column("features.parquet", "label", lambda v: list(range(len(v)))), "features.parquet .* label"),
    "densities that are words": (column("features.parquet", "density", lambda v: ["x"] * len(v)), "features.parquet .* density"),
    "a text that is missing": (column("documents.parquet", "text", lambda v: [*v[:-1], None]), "documents.parquet .* text"),
    "texts that are lists": (column("documents.parquet", "text", lambda v: [[t] for t in v]), "documents.parquet .* text"),
}  # fmt: skip


@pytest.mark.parametrize("what", INCONSISTENT)
def test_contents_that_do_not_fit_together_are_refused_when_the_bundle_is_opened(tiny_cache, tmp_path, what):
    """As of a bundle that somebody else wrote: every hash is right."""
    edit, message = INCONSISTENT[what]
    bundle = Bundle(tiny_cache / "tiny")
    shutil.copytree(bundle.files, tmp_path / "work")
    edit(tmp_path / "work")
    publish(tmp_path / "work", tmp_path / "cache" / "copy", bundle.manifest)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle(tmp_path / "cache" / "copy")
    assert "'copy'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("build it again with --force, or fetch it again where it came from")


@pytest.mark.parametrize("place", [("corpus", "category_share"), ("lens", "agreement"), ("lens", "random", "top_logit")])
def test_a_table_of_the_manifest_that_lacks_an_entry_is_refused(tiny_cache, tmp_path, place):
    """A page would ask for it."""
    bundle = copied(tiny_cache / "tiny", tmp_path / "copy")
    manifest = read_manifest(bundle)
    table = manifest
    for key in place:
        table = table[key]
    table.popitem()
    rewrite(bundle, manifest)
    with pytest.raises(BundleError, match="has no usable " + (r"corpus\.category_share" if place[0] == "corpus" else r"lens\.conventions")):
        Bundle(bundle)


@pytest.mark.parametrize("file", FILES[:1] + FILES[7:8] + FILES[9:])
def test_a_manifest_that_leaves_a_file_out_is_refused(tiny_cache, tmp_path, file):
    """Such a file would not be hashed."""
    bundle = copied(tiny_cache / "tiny", tmp_path / "copy")
    manifest = read_manifest(bundle)
    del manifest["files"][file]
    rewrite(bundle, manifest)
    with pytest.raises(BundleError, match=f"manifest.json of bundle 'copy' does not name {file}"):
        Bundle(bundle)


def rewrite(bundle: Path, manifest: dict) -> None:
    (bundle / MANIFEST).unlink()
    (bundle / MANIFEST).write_text(json.dumps({**manifest, "checksum": _checksum(manifest)}))


def places(facts: dict, above: tuple = ()):
    for key, inner in facts.items():
        yield (*above, key)
        if isinstance(inner, dict):
            yield from places(inner, (*above, key))


JUNK = (None, True, "x", -1, 1e400, float("nan"), 10**40, [], [1], [[]], {}, {"x": "y"}, "\ud800")


@pytest.mark.parametrize("bundle", ["tiny", "planted"])
def test_a_fact_of_another_kind_is_refused_or_harms_no_page(tiny_cache, bundle):
    opened = Bundle(tiny_cache / bundle)
    found, refused, wrong = quality.store_quality(opened), 0, []
    check_facts(opened.manifest, bundle)
    for place in places(FACTS):
        for junk in (*JUNK, KeyError):
            manifest = copy.deepcopy(opened.manifest)
            inner = manifest
            for key in place[:-1]:
                inner = inner[key]
            if inner is None:
                continue
            if junk is KeyError:
                del inner[place[-1]]
            else:
                inner[place[-1]] = junk
            try:
                check_facts(manifest, bundle)
            except BundleError as error:
                refused += 1
                named = str(error).partition(" has no usable ")[2].partition(";")[0]
                wrong += [] if named.startswith(place[0]) else [(place, junk, named)]
                continue
            for rows in (quality.variance_rows, quality.loss_rows, about.origin_rows, about.all_well):
                assert rows(manifest)
            assert quality.sparsity_rows(manifest, found)
            quality.category_rows(manifest["metrics"]["by_category"])
            about.source_rows(manifest["corpus"]["sources"])
    assert refused > 500
    assert not wrong


def test_a_fact_of_another_kind_is_one_line_of_the_commands(cache, cli, refused, monkeypatch):
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(cache))
    manifest = read_manifest(cache / "planted")
    rewrite(cache / "planted", {**manifest, "metrics": {**manifest["metrics"], "explained_variance": "0.8"}})
    assert "has no usable metrics.explained_variance; build it again" in refused("metrics", "planted")
    code, out, _ = cli("bundles")
    assert code == 0
    assert "has no usable metrics.explained_variance" in out


def test_answers_of_a_sound_bundle_are_the_same_after_all_checks(tiny_cache, tmp_path):
    """The checks change nothing, and a copy says what the original says."""
    original, again = Bundle(tiny_cache / "tiny"), Bundle(copied(tiny_cache / "tiny", tmp_path / "tiny"))
    for feature in (0, 7, 63):
        assert feature_json(original.card(feature)) == feature_json(again.card(feature))


# ---- schema versions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "advice"),
    [
        (0, "build it again: python -m sae_explore build planted --force --model"),
        (-1, "build it again"),
        (2, "update the program"),
        (10**50, "update the program"),
        (True, "names no schema"),
        ("1", "names no schema"),
    ],
)
def test_a_bundle_of_another_version_says_what_to_do(cache, cli, refused, schema, advice, monkeypatch):
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(cache))
    rewrite(cache / "planted", {**read_manifest(cache / "planted"), "schema": schema})
    assert advice in refused("feature", "planted", 1)
    code, out, _ = cli("bundles", "--json")
    assert code == 0
    assert advice in json.loads(out)[0]["error"]
