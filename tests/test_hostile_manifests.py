"""Names and sizes in manifests from elsewhere, and downloads that end too early: nothing of them is believed."""

import contextlib
import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_explore.bundles import bundle_repo, pull
from sae_explore.errors import InputError, SourceError
from sae_explore.files.bundle_files import alone, complete_manifest

ENTRY = {"size": 3, "sha256": "0" * 64}
BAD_NAMES = ["", ".json", "../a.json", "/a.json", "a//b.json", "a/../b.json", "./a.json", "a\\..\\b.json", "C:a.json", "a b.json", "a\n.json", "-a.json",
             "a.json\n", "é.json", "a/.b.json", "a.py", "a.json/b", "a.pt", "~/a.json", f"{'a' * 101}.json", "a/b/c/d/e.json", "a.json\0"]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_a_bundles_file_cannot_have(name):
    with pytest.raises(ValueError, match="is no name of a bundle's file"):
        pull._check_files({"a.json": ENTRY, name: ENTRY})


@given(st.text(max_size=12))
def test_what_is_let_through_stays_in_its_folder(name):
    with contextlib.suppress(ValueError):
        pull._check_files({f"{name}.json": ENTRY})
        assert all(part.strip("._- ") and part.isascii() and part.isprintable() for part in f"{name}.json".split("/"))
        assert not set(name) & set("\\:~ ")


@pytest.mark.parametrize(
    "entry",
    [{}, {"size": 3}, {"sha256": "0" * 64}, ENTRY | {"size": -1}, ENTRY | {"size": 3.0}, ENTRY | {"size": True}, ENTRY | {"size": "3"},
     ENTRY | {"sha256": "0" * 63}, ENTRY | {"sha256": "G" * 64}, ENTRY | {"sha256": "0" * 64 + "\n"}, ENTRY | {"sha256": None}],
)  # fmt: skip
def test_sizes_and_hashes_that_are_none(entry):
    with pytest.raises(ValueError, match=r"no size and sha256 of a\.json"):
        pull._check_files({"a.json": entry})


@pytest.mark.parametrize(
    "names", [["a.json", "A.json"], ["sae/a.json", "SAE/A.json"], ["a.json", "a.json/b.json"], ["A.json/b.json", "a.json"]]
)
def test_files_that_would_be_one(names):
    with pytest.raises(ValueError, match="would be one"):
        pull._check_files(dict.fromkeys(names, ENTRY))


def test_too_many_files_or_none():
    pull._check_files({f"{i}.json": ENTRY for i in range(500)})
    for n in (0, 501):
        with pytest.raises(ValueError, match=f"it names {n} files"):
            pull._check_files({f"{i}.json": ENTRY for i in range(n)})


class Response:
    """An answer that ends without an error before its time, as where a server does not say how long it is."""

    def __init__(self, data: bytes, status_code: int = 206):
        self._data, self.status_code = data, status_code

    def iter_bytes(self, _size):
        yield self._data


@pytest.fixture
def answers(monkeypatch):
    """What each request is answered with, and the headers that it had."""
    import huggingface_hub.utils as hub

    found, asked = [], []

    class Session:
        @contextlib.contextmanager
        def stream(self, _method, _url, *, headers, **_options):
            asked.append((headers["Range"], headers["Accept-Encoding"]))
            answer = found.pop(0)
            yield answer if isinstance(answer, Response) else Response(answer)

    monkeypatch.setattr(hub, "get_session", Session)
    monkeypatch.setattr(hub, "hf_raise_for_status", lambda _response: None)
    return found, asked


LISTING = bundle_repo.Listing("me/bundles", "c" * 40, False, {"a.json": 6})


def test_a_small_file_that_ends_too_early_is_asked_for_again_and_then_refused(answers):
    found, _ = answers
    found += [b"abc", b"abcdef"]
    assert bundle_repo.read_small(LISTING, "a.json", limit=10) == b"abcdef"
    found += [b"abc", b"", b"abcde"]
    with pytest.raises(SourceError, match="arrives incomplete"):
        bundle_repo.read_small(LISTING, "a.json", limit=10)


def test_a_file_that_ends_too_early_goes_on_there_and_one_without_an_end_is_given_up(answers, tmp_path):
    found, asked = answers
    found += [b"abc", b"de", b"fxxxx"]  # more than it should have is cut off
    bundle_repo.fetch(LISTING, "a.json", tmp_path / "a", lambda _: None)
    assert (tmp_path / "a").read_bytes() == b"abcdef"
    assert asked == [(f"bytes={start}-", "identity") for start in (0, 3, 5)]  # bytes that were compressed could not be counted
    found += [b""] * 3
    with pytest.raises(SourceError, match="breaks off after 0 of 6 bytes"):
        bundle_repo.fetch(LISTING, "a.json", tmp_path / "b", lambda _: None)


def test_a_server_that_sends_everything_again_is_understood(answers, tmp_path):
    found, _ = answers
    found += [b"abc", Response(b"abcdef", 200)]
    bundle_repo.fetch(LISTING, "a.json", tmp_path / "a", lambda _: None)
    assert (tmp_path / "a").read_bytes() == b"abcdef"


def test_of_a_repository_without_end_some_is_looked_through(monkeypatch):
    class Client:
        model_info = staticmethod(lambda _repo, **_options: SimpleNamespace(sha="c" * 40, private=False))
        list_repo_tree = staticmethod(lambda _repo, **_options: (SimpleNamespace(path=f"{i}.json", size=1) for i in range(1_000)))

    monkeypatch.setattr(bundle_repo, "api", Client)
    monkeypatch.setattr(bundle_repo, "_MAX_ENTRIES", 7)
    assert len(bundle_repo.listing(bundle_repo.RepoSpec("me/bundles")).sizes) == 7


def test_a_bundle_that_is_being_fetched_is_not_fetched_again(tmp_path):
    with alone(tmp_path / ".pull-demo", "unused"), pytest.raises(InputError, match="'demo' is being fetched already"):
        pull.pull_bundle(LISTING, "demo", {"files": {}}, cache=tmp_path, report=lambda *_: None)


def test_what_is_no_bundles_name_is_no_bundle():
    paths = [
        "ok/manifest.json",
        "models/manifest.json",
        "con/manifest.json",
        ".x/manifest.json",
        "a b/manifest.json",
        "a/b/manifest.json",
        "manifest.json",
    ]
    assert bundle_repo.Listing("me/bundles", "c" * 40, False, dict.fromkeys(paths, 9)).bundles() == ["ok"]


def test_a_manifest_that_was_changed_is_refused_before_its_files_are_fetched(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a.json").write_text("{}")
    facts = {"model": "m", "hook": "h", "units": "u", "sae": {}, "corpus": {}, "context": 128, "lens": {}, "metrics": {}}
    manifest = complete_manifest(tmp_path / "work", facts)
    found = bundle_repo.Listing("me/bundles", "c" * 40, False, {f"demo/{manifest['folder']}/a.json": 2, "demo/manifest.json": 9})
    monkeypatch.setattr(pull, "read_small", lambda *_args, **_options: json.dumps(manifest).encode())
    assert pull.remote_manifest(found, "demo") == manifest
    manifest = manifest | {"units": "metres"}
    with pytest.raises(SourceError, match=r"contents of its manifest\.json have changed"):
        pull.remote_manifest(found, "demo")
