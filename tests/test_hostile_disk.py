"""A full disk and a read-only one: a message, and what was there before is whole, in building, labelling, exporting, pulling and uploading."""

import contextlib
import errno
import hashlib
import io
import os
import shutil
from pathlib import Path

import pytest
from app_driver import open_page, run, unescaped

from sae_explore.building.build import build
from sae_explore.building.build_request import BuildRequest
from sae_explore.building.build_work import work_folder
from sae_explore.bundles import bundle as bundle_module
from sae_explore.bundles.bundle import Bundle
from sae_explore.bundles.pull import pull
from sae_explore.bundles.push import push
from sae_explore.errors import ExploreError
from sae_explore.export import write_features
from sae_explore.files.bundle_files import MANIFEST, bundle_names, publish, write_json
from sae_explore.notebook import notes
from sae_explore.notebook.notes import sae_of
from sae_explore.notebook.notes_store import FileStore
from sae_explore.texts.uploads import check_upload

resource = pytest.importorskip("resource", reason="Windows has no limit of a file's size")
pytest_plugins = ["bundle_fixtures", "cli_fixtures", "hub_fixtures"]


@contextlib.contextmanager
def no_file_over(size: int):
    """No file of this process can grow beyond so many bytes, as on a disk that is full by then (errno EFBIG in place of ENOSPC)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def refusing(code: int, folder: Path):
    """Whatever would change something below a folder fails. (Tests may run as root, whom permissions do not stop.)"""
    inside = str(folder.resolve())

    def refuse_if(path: object) -> None:
        if isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(inside):
            raise OSError(code, os.strerror(code), str(path))

    def guarded(real, paths: int = 1):
        def call(*args, **options):
            for path in args[:paths]:
                refuse_if(path)
            return real(*args, **options)

        return call

    def opened(real):
        def call(file, mode="r", *args, **options):
            if set(mode) & set("wax+"):
                refuse_if(file)
            return real(file, mode, *args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", opened(io.open))
        patch.setattr("builtins.open", opened(open))
        for name, paths in (("mkdir", 1), ("unlink", 1), ("remove", 1), ("rmdir", 1), ("replace", 2), ("rename", 2)):
            patch.setattr(os, name, guarded(getattr(os, name), paths))
        yield


def hashes(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def cache(tiny_cache, tmp_path, monkeypatch) -> Path:
    """A cache folder of one's own with the bundle `tiny`."""
    shutil.copytree(tiny_cache / "tiny", tmp_path / "cache" / "tiny")
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def labelled(cache: Path) -> FileStore:
    bundle = Bundle(cache / "tiny")
    store = FileStore(cache, "tiny", sae=sae_of(bundle.manifest), d_sae=bundle.d_sae)
    store.change(lambda now: notes.with_label(now, 3, "days of the week", ""))
    return store


# ---- building ----------------------------------------------------------------------------------------------------------


def test_a_build_that_meets_a_full_disk_leaves_the_bundle_and_goes_on_later(cache, gpt2_folder):
    before = hashes(cache / "tiny")
    request = BuildRequest("tiny", str(gpt2_folder), "blocks.1.hook_resid_post", texts=("embedded",), max_texts=12, latents=32, k=4, epochs=1,
                           max_tokens=1_500, context=64)  # fmt: skip
    for size in (0, 400, 6_000, 30_000):
        with no_file_over(size), pytest.raises((ExploreError, OSError)) as caught:
            build(request, cache=cache)
        assert "\n" not in str(caught.value)
        assert hashes(cache / "tiny") == before
        assert Bundle(cache / "tiny").d_sae == 64
    build(request, cache=cache)
    assert Bundle(cache / "tiny").d_sae == 32
    assert not work_folder(cache, "tiny").exists()


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_commands_on_a_folder_that_cannot_be_written(cache, refused, cli, gpt2_folder, code, monkeypatch):
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(cache))
    before = hashes(cache)
    with refusing(code, cache):
        error = refused("build", "other", "--model", gpt2_folder, "--texts", "embedded", "--max-texts", 3)
        assert os.strerror(code) in error
        assert cli("feature", "tiny", 3)[0] == cli("bundles")[0] == 0  # reading needs no writing
    assert hashes(cache) == before
    assert bundle_names(cache) == ["tiny"]


def test_a_switch_on_a_full_disk_keeps_the_old_generation(cache, tmp_path):
    """Whatever step fails: the manifest names files that are whole."""
    old = Bundle(cache / "tiny")
    for step in ("fsync", "replace"):
        work = tmp_path / f"work-{step}"
        shutil.copytree(old.files, work)
        (work / "sae" / "note.json").write_text(step)

        def full(*_args, **_options):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, step, full)
            with pytest.raises(OSError, match="No space"):
                publish(work, cache / "tiny", old.manifest)
        again = Bundle(cache / "tiny")
        again.verify()
        assert again.manifest == old.manifest
        assert not list(cache.rglob("*.partial"))


def test_hashes_that_cannot_be_remembered_are_no_trouble(cache, monkeypatch):
    monkeypatch.setattr(bundle_module, "_LARGE", 1_000)
    with refusing(errno.EROFS, cache):
        assert Bundle(cache / "tiny").card(3)
    assert not (cache / ".hashed.json").exists()


# ---- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["a file's size", "fsync", "replace", "open"])
def test_labels_survive_a_full_disk(cache, step):
    store = labelled(cache)
    before = store.path.read_bytes()
    edit = lambda now: notes.with_label(now, 5, "another", "x" * 300)  # noqa: E731
    with contextlib.ExitStack() as stack:
        if step == "a file's size":
            stack.enter_context(no_file_over(100))
        elif step == "open":
            stack.enter_context(refusing(errno.EROFS, cache))
        else:
            patch = stack.enter_context(pytest.MonkeyPatch.context())

            def full(*_args, **_options):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setattr(os, step, full)
        stack.enter_context(pytest.raises(OSError, match=r"No space|too large|Read-only"))
        store.change(edit)
    assert store.path.read_bytes() == before
    assert not list(store.path.parent.glob("*.partial"))
    assert set(store.read().labels) == {3}
    store.change(edit)
    assert set(store.read().labels) == {3, 5}


def test_a_page_says_that_labels_cannot_be_kept(cache, app_cache, monkeypatch):
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(cache))
    store = labelled(cache)
    before = store.path.read_bytes()
    at = open_page("feature", feature="5")
    at.text_input(key="_own_label-tiny-5").set_value("another")
    with refusing(errno.ENOSPC, cache):
        at = run(next(b for b in at.button if b.label == "Save").click())
    assert [unescaped(e.value) for e in at.error] == ["Your notes cannot be kept: No space left on device."]
    assert store.path.read_bytes() == before


# ---- exports, uploads, pulls -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.html", "x.csv", "x.jsonl", "x.parquet"])
def test_an_export_that_does_not_fit_leaves_the_older_file(cache, tmp_path, name):
    bundle, path = Bundle(cache / "tiny"), tmp_path / name
    path.write_text("before")
    with no_file_over(500), pytest.raises(OSError, match="too large"):
        write_features(path, bundle, range(20), path.suffix[1:])
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir() if "x." in p.name] == [name]


def test_an_export_to_a_read_only_folder_is_one_line(cache, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(cache))
    (tmp_path / "there").mkdir()
    with refusing(errno.EROFS, tmp_path / "there"):
        assert "Read-only file system" in refused("export", "tiny", "--features", 3, "--out", tmp_path / "there" / "x.html")
    assert not list((tmp_path / "there").iterdir())


def test_half_an_upload_is_never_read(cache):
    upload = check_upload("a.txt", io.BytesIO(b"some text\n" * 1_000))
    with no_file_over(500), pytest.raises(OSError, match="too large"):
        upload.save(cache, "b")
    assert not [p for p in (cache / "uploads").rglob("*") if p.is_file()]
    upload.save(cache, "b")
    assert (cache / upload.spec("b")).stat().st_size == 10_000


def test_a_pull_that_does_not_fit_leaves_what_was_there_and_goes_on_later(hub, cache, tmp_path):
    push("tiny", "hf:me/bundles", cache=cache)
    yours = tmp_path / "yours"
    shutil.copytree(cache / "tiny", yours / "tiny")
    work = tmp_path / "older"
    shutil.copytree(cache / "tiny" / Bundle(cache / "tiny").manifest["folder"], work)
    (work / "sae" / "note.json").write_text("another")
    publish(work, yours / "tiny", Bundle(cache / "tiny").manifest)
    before = hashes(yours / "tiny")
    for size in (300, 5_000):
        with no_file_over(size), pytest.raises((ExploreError, OSError)) as caught:
            pull("hf:me/bundles", cache=yours, force=True)
        assert "\n" not in str(caught.value)
        assert hashes(yours / "tiny") == before
    (done,) = pull("hf:me/bundles", cache=yours, force=True)
    assert done.state in ("replaced", "new")
    assert Bundle(yours / "tiny").manifest == Bundle(cache / "tiny").manifest
    Bundle(yours / "tiny").verify()


def test_json_that_does_not_fit_leaves_the_older_file(tmp_path):
    write_json(tmp_path / MANIFEST, {"a": 1})
    before = (tmp_path / MANIFEST).read_bytes()
    with no_file_over(50), pytest.raises(OSError, match="too large"):
        write_json(tmp_path / MANIFEST, {"a": "x" * 100})
    assert (tmp_path / MANIFEST).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [MANIFEST]
