"""Publishing, reading and checking a bundle's files."""

import hashlib
import json
import os

import pytest

from sae_explore.errors import BundleError, InputError
from sae_explore.files.bundle_files import (
    MANIFEST,
    SCHEMA,
    _checksum,
    bundle_names,
    check_name,
    complete_manifest,
    default_cache,
    publish,
    read_manifest,
    sha256_of,
    switch,
    verify_hashes,
    write_json,
)

FACTS = {"model": "m", "hook": "h", "units": "u", "sae": {"d_sae": 4}, "corpus": {}, "context": 128, "lens": {}, "metrics": {}}


@pytest.fixture
def work(tmp_path):
    """A function that makes a finished working folder with these contents."""

    def make(text: str = "one", name: str = "work"):
        folder = tmp_path / name
        (folder / "sae").mkdir(parents=True)
        (folder / "a.bin").write_bytes(text.encode() * 100)
        (folder / "sae" / "b.json").write_text(text)
        return folder

    return make


@pytest.fixture
def bundle(tmp_path, work):
    folder = tmp_path / "cache" / "demo"
    publish(work(), folder, FACTS)
    return folder


def change(folder, edit, *, right: bool = False) -> None:
    """Edit the manifest; with a checksum that is `right`, as one that somebody else wrote."""
    manifest = json.loads((folder / MANIFEST).read_text())
    edit(manifest)
    if right:
        manifest["checksum"] = _checksum(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def one_sentence(error) -> bool:
    return "\n" not in str(error.value) and "Traceback" not in str(error.value)


def test_what_is_published_is_read(bundle):
    manifest = read_manifest(bundle)
    assert {key: manifest[key] for key in FACTS} == FACTS
    assert manifest["schema"] == SCHEMA
    files = bundle / manifest["folder"]
    assert (files / "a.bin").read_bytes() == b"one" * 100
    assert manifest["files"] == {
        "a.bin": {"sha256": hashlib.sha256(b"one" * 100).hexdigest(), "size": 300},
        "sae/b.json": {"sha256": hashlib.sha256(b"one").hexdigest(), "size": 3},
    }
    verify_hashes(bundle, manifest)
    assert sha256_of(files / "a.bin") == manifest["files"]["a.bin"]["sha256"]


def test_equal_builds_are_equal(bundle, work, tmp_path):
    again = publish(work(name="again"), bundle, FACTS)
    other = publish(work(name="other"), tmp_path / "elsewhere", FACTS)
    assert again == other == read_manifest(bundle)
    assert not (tmp_path / "again").exists()


def test_a_reader_of_the_old_generation_still_finds_its_files(bundle, work):
    """One build may come and go under an open bundle; the next but one takes the files away, which is said in a sentence."""
    old = read_manifest(bundle)
    mapped = (bundle / old["folder"] / "a.bin").open("rb")
    publish(work("two", "second"), bundle, FACTS)
    assert read_manifest(bundle)["folder"] != old["folder"]
    verify_hashes(bundle, old)
    publish(work("three", "third"), bundle, FACTS)
    assert mapped.read() == b"one" * 100
    mapped.close()
    with pytest.raises(BundleError, match="open the bundle again") as caught:
        verify_hashes(bundle, old)
    assert one_sentence(caught)
    assert len([p for p in bundle.iterdir() if p.is_dir()]) == 2


def test_going_back_to_an_earlier_build(bundle, work):
    first = read_manifest(bundle)
    publish(work("two", "second"), bundle, FACTS)
    publish(work("one", "third"), bundle, FACTS)
    assert read_manifest(bundle) == first
    verify_hashes(bundle, first)


def test_a_damaged_generation_is_replaced_by_an_equal_build(bundle, work):
    manifest = read_manifest(bundle)
    (bundle / manifest["folder"] / "a.bin").write_bytes(b"x" * 300)
    publish(work(name="again"), bundle, FACTS)
    verify_hashes(bundle, read_manifest(bundle))


def test_facts_taken_from_an_older_manifest_do_not_name_its_files(bundle, work):
    old = read_manifest(bundle)
    new = publish(work("two", "second"), bundle, old)
    assert new["folder"] != old["folder"]
    assert read_manifest(bundle) == new
    verify_hashes(bundle, new)


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", ["os.replace", "sae_explore.files.bundle_files.write_json", "shutil.rmtree"])
def test_a_switch_killed_at_any_point_is_done_again(bundle, work, monkeypatch, step):
    """Before the files are moved, before the manifest names them, before the old ones are cleared away: readers always see a bundle."""
    publish(work("two", "second"), bundle, FACTS)  # so that there is something to clear away
    finished = work("three", "third")
    manifest = complete_manifest(finished, FACTS)

    def die(path, *_arguments, **_options):
        if path.exists():
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(step, die)
        with pytest.raises(Killed):
            switch(finished, bundle, manifest)
    verify_hashes(bundle, read_manifest(bundle))
    switch(finished, bundle, manifest)
    assert read_manifest(bundle) == manifest
    verify_hashes(bundle, manifest)
    assert not finished.exists()


def test_files_changed_before_the_switch_are_refused(bundle, work):
    finished, before = work("two", "second"), read_manifest(bundle)
    manifest = complete_manifest(finished, FACTS)
    (finished / "a.bin").write_bytes(b"other")
    with pytest.raises(BundleError, match="changed before they could be published"):
        switch(finished, bundle, manifest)
    assert read_manifest(bundle) == before


def test_the_command_that_builds_an_older_bundle_again_has_its_options(bundle):
    request = {
        "model": "me/model",
        "hook": "blocks.3.hook_resid_post",
        "texts": ["embedded", "my texts.csv"],
        "latents": 512,
        "sae": None,
        "k": "a\nb",
    }
    change(bundle, lambda m: m.update(schema=0, request=request))
    with pytest.raises(BundleError) as caught:
        read_manifest(bundle)
    command = "build demo --force --model me/model --hook blocks.3.hook_resid_post --texts embedded 'my texts.csv' --latents 512"
    assert str(caught.value).endswith(command)


def test_publishing_over_an_unreadable_manifest(bundle, work):
    for i, text in enumerate(("{", "[1]", "{}")):
        (bundle / MANIFEST).write_text(text)
        publish(work(f"new{i}", f"work{i}"), bundle, FACTS)
        verify_hashes(bundle, read_manifest(bundle))


def test_a_flipped_bit_is_found(bundle):
    manifest = read_manifest(bundle)
    path = bundle / manifest["folder"] / "a.bin"
    data = bytearray(path.read_bytes())
    data[150] ^= 1
    path.write_bytes(data)
    read_manifest(bundle)  # the size still fits
    verify_hashes(bundle, manifest, below=300)  # large files are left for later
    with pytest.raises(BundleError, match=r"'demo' is damaged: the contents of a\.bin have changed") as caught:
        verify_hashes(bundle, manifest)
    assert one_sentence(caught)


def test_each_file_is_hashed_once(bundle, monkeypatch):
    manifest = read_manifest(bundle)
    verify_hashes(bundle, manifest)
    monkeypatch.setattr("sae_explore.files.bundle_files.sha256_of", lambda _path: pytest.fail("hashed again"))
    verify_hashes(bundle, manifest)


@pytest.mark.parametrize("what", ["time", "size"])
def test_a_file_that_has_changed_since_is_hashed_again(bundle, what):
    manifest = read_manifest(bundle)
    verify_hashes(bundle, manifest)
    path = bundle / manifest["folder"] / "a.bin"
    data, at = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(data[::-1] if what == "time" else data + b"x")
    os.utime(path, ns=(at, at + (10**9 if what == "time" else 0)))
    with pytest.raises(BundleError, match=r"the contents of a\.bin have changed"):
        verify_hashes(bundle, manifest)


def cut(folder):
    path = folder / read_manifest(folder)["folder"] / "a.bin"
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {
    "a file cut short": (cut, "a.bin has 299 bytes instead of 300"),
    "a file missing": (lambda f: (f / read_manifest(f)["folder"] / "sae" / "b.json").unlink(), "sae/b.json is missing"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "no bundle 'demo': manifest.json is missing; its other files are there: build it"),
    "manifest no JSON": (lambda f: (f / MANIFEST).write_text("{nope"), "cannot be read"),
    "manifest no text": (lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "manifest a list": (lambda f: (f / MANIFEST).write_text("[1]"), "names no schema version"),
    "manifest without end": (lambda f: (f / MANIFEST).write_text("[" * 100_000), "cannot be read"),
    "a newer schema": (
        lambda f: change(f, lambda m: m.update(schema=99)),
        "version 99, this program reads version 1: .* update the program",
    ),
    "an older schema": (
        lambda f: change(f, lambda m: m.update(schema=0)),
        "version 0, this program reads version 1; build it again: python -m",
    ),
    "a manifest too large": (lambda f: (f / MANIFEST).write_bytes(b" " * (1 << 24) + b"{}"), "is larger than 16,777,216 bytes"),
    "a manifest that is a folder": (
        lambda f: ((f / MANIFEST).unlink(), (f / MANIFEST).mkdir()),
        "manifest.json .* cannot be read .Is a dir",
    ),
    "no checksum": (lambda f: change(f, lambda m: m.pop("checksum")), "contents of its manifest.json have changed"),
    "a key missing": (lambda f: change(f, lambda m: m.pop("hook")), "lacks hook"),
    "a file outside": (lambda f: change(f, lambda m: m["files"].update({"../../x": {"size": 1}})), "outside the bundle"),
    "an absolute file": (lambda f: change(f, lambda m: m["files"].update({"/etc/hostname": {"size": 1}})), "outside the bundle"),
    "a generation outside": (lambda f: change(f, lambda m: m.update(folder="../other")), "no valid generation"),
    "a generation that is a number": (lambda f: change(f, lambda m: m.update(folder=3)), "no valid generation"),
    "files in a list": (lambda f: change(f, lambda m: m.update(files=["a.bin"])), "no valid generation"),
    "a file without facts": (lambda f: change(f, lambda m: m["files"].update({"a.bin": "sha"})), "no size and sha256 of a.bin"),
    "a figure changed": (lambda f: change(f, lambda m: m.update(context=64)), "contents of its manifest.json have changed"),
    "a name with a NUL": (lambda f: change(f, lambda m: m["files"].update({"a\0b": {"size": 1}}), right=True), "missing"),
    "a name that no file can have": (lambda f: change(f, lambda m: m["files"].update({"x" * 300: {"size": 1}}), right=True), "missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_in_one_sentence(bundle, damage):
    spoil, message = DAMAGE[damage]
    spoil(bundle)
    with pytest.raises(BundleError, match=message) as caught:
        read_manifest(bundle)
    assert one_sentence(caught)


@pytest.mark.parametrize("name", ["gpt2", "my.bundle-2_x", "A" * 64, "7"])
def test_good_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/etc",
        ".hidden",
        "-x",
        "a b",
        "a\n",
        "é",
        "A" * 65,
        "models",
        "labels",
        "Models",
        "x.",
        "CON",
        "nul.1",
        "lpt9",
    ],
)
def test_bad_names_are_refused(name):
    with pytest.raises(InputError, match="is no bundle name; use letters") as caught:
        check_name(name)
    assert one_sentence(caught)


def test_names_of_bundles(bundle, tmp_path):
    cache = tmp_path / "cache"
    publish(tmp_path / "cache" / "demo" / read_manifest(bundle)["folder"] / "sae", cache / "Other", FACTS)
    (cache / "empty").mkdir()
    (cache / "file").write_text("x")
    write_json(cache / ".hidden" / MANIFEST, {})
    assert bundle_names(cache) == ["Other", "demo"]
    assert bundle_names(tmp_path / "nowhere") == []


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("SAE_EXPLORE_CACHE", raising=False)
    assert default_cache().name == "cache"
    assert (default_cache().parent / "sae_explore").is_dir()
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path))
    assert default_cache() == tmp_path


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"é": [1, 2.5, None]})
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1, 2.5, None]}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]
