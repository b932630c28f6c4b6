"""Push and pull with the Hub's real client and the loopback Hub: equal hashes both ways, and nothing half-written whatever goes wrong."""

import hashlib
import json
import shutil
import threading
from pathlib import Path

import pytest
from hub_server import HubServer

from sae_explore.bundles import pull as pull_module
from sae_explore.bundles.bundle import open_bundle
from sae_explore.bundles.bundle_repo import read_spec
from sae_explore.bundles.pull import came_from, pull
from sae_explore.bundles.push import push
from sae_explore.errors import BundleError, InputError, SourceError
from sae_explore.files.bundle_files import _checksum

pytest_plugins = ["bundle_fixtures", "cli_fixtures", "hub_fixtures"]
REPO = "me/bundles"


@pytest.fixture
def mine(tiny_cache, tmp_path) -> Path:
    """A cache folder with a copy of the bundle `tiny`."""
    shutil.copytree(tiny_cache / "tiny", tmp_path / "mine/tiny")
    return tmp_path / "mine"


@pytest.fixture
def pushed(hub, mine) -> Path:
    """The bundle `tiny` in the repository; its folder there."""
    push("tiny", f"hf:{REPO}", cache=mine)
    hub.log.clear()
    return hub.folder / "models" / REPO / "tiny"


@pytest.fixture
def yours(tmp_path) -> Path:
    """A cache folder to pull into."""
    return tmp_path / "yours"


def files_in(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder by its path."""
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def edit_manifest(folder: Path, change) -> None:
    """Change a manifest as someone would who can compute its checksum."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    manifest["checksum"] = _checksum(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def no_bundle(cache: Path) -> bool:
    return not [p for p in cache.rglob("manifest.json") if ".pull-" not in str(p)]


# ---- both ways ---------------------------------------------------------------------------------------------------------


def test_a_bundle_goes_there_and_back(hub, mine, yours):
    before = files_in(mine / "tiny")
    (mine / "tiny/README.md").write_text("# A bundle\n")
    (mine / "tiny/showcase.json").write_text("{}")
    for stray in ("secret.txt", ".origin.json", "g-old/x.json", f"{open_bundle('tiny', cache=mine).files.name}/notes.json"):
        (mine / "tiny" / stray).parent.mkdir(exist_ok=True)
        (mine / "tiny" / stray).write_text("not to be uploaded")
    there = push("tiny", f"hf:{REPO}", cache=mine)
    assert hub.commits == [(REPO, f"Bundle tiny ({open_bundle('tiny', cache=mine).files.name})")]
    assert (there.private, there.changed, there.files) == (True, True, len(before) + 2)
    assert hub.private == {REPO}
    remote = files_in(hub.folder / "models" / REPO / "tiny")
    extras = {"README.md", "showcase.json"}
    assert {k: v for k, v in remote.items() if k not in extras} == before
    assert remote.keys() - before.keys() == extras

    seen = []
    (back,) = pull(f"hf:{REPO}", cache=yours, report=lambda text, share: seen.append(share))
    assert (back.bundle, back.state, back.commit) == ("tiny", "new", there.commit)
    assert back.fetched == back.bytes > 0
    shares = [s for s in seen if s is not None]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    local = files_in(yours / "tiny")
    assert local.pop(".origin.json")
    assert local == remote
    assert [p.name for p in yours.iterdir()] == ["tiny"]
    assert came_from(yours, "tiny") == REPO
    open_bundle("tiny", cache=yours).verify()


def test_doing_it_twice_changes_and_fetches_nothing(hub, mine, pushed, yours):
    again = push("tiny", f"hf:{REPO}", cache=mine)
    assert not again.changed
    assert len(hub.commits) == 1
    pull(f"hf:{REPO}:tiny", cache=yours)
    before, sent = files_in(yours), hub.sent
    (back,) = pull(f"hf:{REPO}:tiny", cache=yours)
    assert (back.state, back.fetched) == ("unchanged", 0)
    assert files_in(yours) == before
    assert hub.sent - sent == (pushed / "manifest.json").stat().st_size


def test_a_newer_build_takes_the_place_of_an_older_one(hub, mine, pushed, yours, tiny_cache):
    pull(f"hf:{REPO}", cache=yours)
    old = open_bundle("tiny", cache=yours).files.name
    shutil.rmtree(mine / "tiny")
    shutil.copytree(tiny_cache / "planted", mine / "tiny")
    first = hub.commits[:]
    push("tiny", f"hf:{REPO}", cache=mine)
    assert len(hub.commits) == len(first) + 1
    assert files_in(pushed) == files_in(mine / "tiny")  # the older generation has gone
    hub.log.clear()
    with pytest.raises(InputError, match=r"there is another bundle 'tiny' already; --force replaces it"):
        pull(f"hf:{REPO}", cache=yours)
    assert open_bundle("tiny", cache=yours).files.name == old
    assert not [path for _, path in hub.log if "/g-" in path]
    (back,) = pull(f"hf:{REPO}", cache=yours, force=True)
    assert back.state == "replaced"
    found = open_bundle("tiny", cache=yours)
    assert found.manifest == open_bundle("tiny", cache=mine).manifest
    assert (found.folder / old).is_dir()  # for those who have it open


def test_an_older_commit_can_be_asked_for(hub, mine, pushed, yours):
    commit = push("tiny", f"hf:{REPO}", cache=mine).commit
    (back,) = pull(f"hf:{REPO}@{commit}", cache=yours)
    assert back.commit == commit
    with pytest.raises(InputError, match=r"the repository hf:me/bundles has no revision 'v9'"):
        pull(f"hf:{REPO}", cache=yours, revision="v9")


# ---- pushing is refused ------------------------------------------------------------------------------------------------


def test_a_damaged_bundle_is_not_pushed(hub, mine):
    weights = next((mine / "tiny").rglob("activations.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match=r"damaged: the contents of activations.safetensors have changed"):
        push("tiny", f"hf:{REPO}", cache=mine)
    assert hub.log == []


def test_a_link_beside_the_manifest_is_not_followed(hub, mine, tmp_path):
    (tmp_path / "private.md").write_text("secret")
    (mine / "tiny/README.md").symlink_to(tmp_path / "private.md")
    with pytest.raises(InputError, match=r"README.md of bundle 'tiny' is a link to another file"):
        push("tiny", f"hf:{REPO}", cache=mine)
    assert hub.log == []


def test_without_a_token_nothing_is_asked_for(hub, mine, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match=r"needs a token of the Hub with write access; set HF_TOKEN"):
        push("tiny", f"hf:{REPO}", cache=mine)
    assert {method for method, _ in hub.log} <= {"HEAD"}


def test_a_token_that_is_wrong_or_may_not_write_is_told_so(hub, mine, monkeypatch):
    hub.writable = False
    with pytest.raises(InputError, match=r"the token may not write to hf:me/bundles"):
        push("tiny", f"hf:{REPO}", cache=mine)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(InputError, match=r"the Hub does not accept the token"):
        push("tiny", f"hf:{REPO}", cache=mine)
    assert hub.commits == []


def test_only_those_who_say_so_publish(hub, mine):
    shown = push("tiny", f"hf:{REPO}", cache=mine, public=True)
    assert not shown.private
    assert hub.private == set()
    shutil.copytree(mine / "tiny", mine / "second")
    with pytest.raises(InputError, match=r"hf:me/bundles is a public repository; add --public"):
        push("second", f"hf:{REPO}", cache=mine)
    assert push("second", f"hf:{REPO}", cache=mine, public=True).changed
    assert pull_names(hub) == ["second", "tiny"]


def pull_names(hub: HubServer) -> list[str]:
    return sorted(p.parent.name for p in (hub.folder / "models" / REPO).glob("*/manifest.json"))


def test_paths_of_this_machine_are_pointed_out(hub, mine):
    notes = push("tiny", f"hf:{REPO}", cache=mine).notes  # the tiny model is a folder
    assert "its model is a folder of this machine" in notes[0]
    assert "names paths of this machine" in notes[1]


@pytest.mark.parametrize(
    "text", ["me/bundles", "hf:bundles", "hf:me/bundles/more", "hf:../x", "hf:me/b:../x", "hf:me/b:models", "", "hf:me/b:a:b"]
)
def test_what_names_no_repository_is_refused(text):
    with pytest.raises(InputError):
        read_spec(text)


def test_a_repository_is_read_from_its_name():
    assert read_spec("hf:me/b-1.x") == ("me/b-1.x", None, None)
    assert read_spec(" hf:me/b:gpt2@v1 ") == ("me/b", "gpt2", "v1")
    assert str(read_spec("hf:me/b:gpt2@v1")) == "hf:me/b:gpt2@v1"


# ---- pulling goes wrong ------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_named(hub, pushed, yours, monkeypatch):
    with pytest.raises(InputError, match=r"holds no bundle 'gpt2'; it holds tiny"):
        pull(f"hf:{REPO}:gpt2", cache=yours)
    with pytest.raises(SourceError, match=r"hf:me/absent is not on the Hub, or it is private; check its name, or set HF_TOKEN"):
        pull("hf:me/absent", cache=yours)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SourceError, match=r"hf:me/bundles is not on the Hub, or it is private"):
        pull(f"hf:{REPO}", cache=yours)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match=r"hf:me/bundles would come from the Hugging Face Hub, but HF_HUB_OFFLINE is set"):
        pull(f"hf:{REPO}", cache=yours)
    assert not yours.exists()


def test_a_missing_file_and_a_wrong_size_are_seen_before_anything_is_fetched(hub, pushed, yours):
    documents = next(pushed.rglob("documents.parquet"))
    data = documents.read_bytes()
    documents.write_bytes(data + b"x")
    with pytest.raises(SourceError, match=r"damaged: documents.parquet has [\d,]+ bytes instead of"):
        pull(f"hf:{REPO}", cache=yours)
    documents.unlink()
    with pytest.raises(SourceError, match=r"incomplete: documents.parquet is not in the repository"):
        pull(f"hf:{REPO}", cache=yours)
    assert not [path for _, path in hub.log if "resolve" in path and "/g-" in path]
    assert not yours.exists()


def test_wrong_contents_are_thrown_away_and_the_rest_is_kept(hub, pushed, yours):
    lens = next(pushed.rglob("lens.safetensors"))
    data = lens.read_bytes()
    lens.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(SourceError, match=r"lens.safetensors of hf:me/bundles is not what the manifest says \(sha256\)"):
        pull(f"hf:{REPO}", cache=yours)
    assert no_bundle(yours)
    assert not list(yours.rglob("lens*"))
    lens.write_bytes(data)
    (back,) = pull(f"hf:{REPO}", cache=yours)
    assert 0 < back.fetched < back.bytes
    assert open_bundle("tiny", cache=yours).manifest == json.loads((pushed / "manifest.json").read_text())


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub, pushed, yours):
    store = next(pushed.rglob("activations.safetensors"))
    hub.truncate.add(store.relative_to(pushed.parent).as_posix())
    with pytest.raises(SourceError, match=r"activations.safetensors of hf:me/bundles breaks off after [\d,]+ of [\d,]+ bytes"):
        pull(f"hf:{REPO}", cache=yours)
    assert no_bundle(yours)
    (partial,) = yours.rglob("activations.safetensors.partial")
    assert store.read_bytes().startswith(partial.read_bytes())
    left = store.stat().st_size - partial.stat().st_size
    hub.truncate.clear()
    sent = hub.sent
    pull(f"hf:{REPO}:tiny", cache=yours)
    others = sum(p.stat().st_size for p in pushed.rglob("*") if p.is_file() and p != store)
    assert hub.sent - sent <= left + others
    assert {k: v for k, v in files_in(yours / "tiny").items() if k != ".origin.json"} == files_in(pushed)


def test_a_part_of_something_else_is_not_gone_on_with(hub, pushed, yours):
    store = next(pushed.rglob("activations.safetensors"))
    partial = yours / ".pull-tiny/tiny" / store.parent.name / "activations.safetensors.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"\0" * 100)
    pull(f"hf:{REPO}", cache=yours)
    open_bundle("tiny", cache=yours).verify()


def test_a_hub_that_goes_away_leaves_what_is_needed_to_go_on(hub, pushed, yours, monkeypatch):
    gone = threading.Event()

    def leave(_text: str, share: float | None) -> None:
        if share and share > 0.3 and not gone.is_set():
            gone.set()
            hub.__exit__()

    with pytest.raises(SourceError, match=r"hf:me/bundles would come from the Hugging Face Hub, but http://127\S+ cannot be reached"):
        pull(f"hf:{REPO}", cache=yours, report=leave)
    assert no_bundle(yours)
    with HubServer(hub.folder) as back:
        monkeypatch.setenv("HF_ENDPOINT", back.url)
        (found,) = pull(f"hf:{REPO}", cache=yours)
    assert 0 < found.fetched < found.bytes
    open_bundle("tiny", cache=yours).verify()


HOSTILE = {
    "a file above": lambda m: m["files"].update({"../../evil.json": {"size": 1, "sha256": "0" * 64}}),
    "a file elsewhere": lambda m: m["files"].update({"/tmp/evil.json": {"size": 1, "sha256": "0" * 64}}),
    "a drive": lambda m: m["files"].update({"C:\\evil.json": {"size": 1, "sha256": "0" * 64}}),
    "a hidden file": lambda m: m["files"].update({".ssh/evil.json": {"size": 1, "sha256": "0" * 64}}),
    "code": lambda m: m["files"].update({"evil.py": {"size": 1, "sha256": "0" * 64}}),
    "a name of two": lambda m: m["files"].update({"LENS.safetensors": {"size": 1, "sha256": "0" * 64}}),
    "a file as folder": lambda m: m["files"].update({"lens.safetensors/x.json": {"size": 1, "sha256": "0" * 64}}),
    "a generation above": lambda m: m.update(folder="../../evil"),
    "a generation that is none": lambda m: m.update(folder=7),
    "no sizes": lambda m: m["files"]["lens.safetensors"].pop("size"),
    "a size below zero": lambda m: m["files"]["lens.safetensors"].update(size=-1),
    "a size that is none": lambda m: m["files"]["lens.safetensors"].update(size=True),
    "no hash": lambda m: m["files"]["lens.safetensors"].update(sha256="md5"),
    "no files": lambda m: m.update(files={}),
    "too many files": lambda m: m.update(files={f"{i}.json": {"size": 0, "sha256": "0" * 64} for i in range(501)}),
    "another schema": lambda m: m.update(schema=99),
    "nothing needed": lambda m: m.pop("lens"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_manifest_is_refused_before_anything_is_fetched(hub, pushed, yours, change, tmp_path):
    edit_manifest(pushed, change)
    before = files_in(tmp_path)
    with pytest.raises(SourceError, match=r"bundle 'tiny' of hf:me/bundles") as refused:
        pull(f"hf:{REPO}", cache=yours)
    assert "\n" not in str(refused.value)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("text", ["{", "[]", "7", '{"schema": 1}', "[" * 5_000], ids=["cut", "a list", "a number", "empty", "deep"])
def test_a_manifest_that_is_none_is_refused(hub, pushed, yours, text):
    (pushed / "manifest.json").write_text(text)
    with pytest.raises(SourceError, match=r"bundle 'tiny' of hf:me/bundles"):
        pull(f"hf:{REPO}", cache=yours)
    assert not yours.exists()


def test_a_manifest_too_large_to_be_one_is_not_read(hub, pushed, yours, monkeypatch):
    monkeypatch.setattr(pull_module, "MAX_MANIFEST", 10)
    with pytest.raises(SourceError, match=r"tiny/manifest.json of hf:me/bundles has [\d,]+ bytes, more than such a file can have"):
        pull(f"hf:{REPO}", cache=yours)


def test_a_bundle_that_cannot_be_opened_is_not_switched_in(hub, pushed, yours):
    edit_manifest(pushed, lambda m: m["sae"].update(d_sae=65))
    with pytest.raises(SourceError, match=r"bundle 'tiny' of hf:me/bundles cannot be opened"):
        pull(f"hf:{REPO}", cache=yours)
    assert no_bundle(yours)


def test_links_in_the_working_folder_are_not_written_through(hub, pushed, yours, tmp_path):
    generation = next(pushed.glob("g-*")).name
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "lens.safetensors").write_text("mine")
    (yours / ".pull-tiny/tiny").mkdir(parents=True)
    (yours / ".pull-tiny/tiny" / generation).symlink_to(outside)
    pull(f"hf:{REPO}", cache=yours)
    assert files_in(outside).keys() == {"lens.safetensors"}
    assert (outside / "lens.safetensors").read_text() == "mine"
    assert not (yours / "tiny" / generation).is_symlink()


def test_a_full_disk_is_seen_before_it_is_full(hub, pushed, yours, monkeypatch):
    usage = shutil.disk_usage(pushed)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(InputError, match=r"bundle 'tiny' needs \S+ MB more, and 1 MB are free .* set SAE_EXPLORE_CACHE"):
        pull(f"hf:{REPO}", cache=yours)
    assert no_bundle(yours)


# ---- commands ----------------------------------------------------------------------------------------------------------


def test_the_commands_speak_json(hub, cli, tmp_path, monkeypatch):
    code, out, err = cli("push", "tiny", f"hf:{REPO}", "--json")
    assert code == 0
    assert err.startswith("note: its model is a folder of this machine")
    sent = json.loads(out)
    assert (sent["bundle"], sent["repo"], sent["private"]) == ("tiny", REPO, True)
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path / "other"))
    code, out, _ = cli("pull", f"hf:{REPO}", "--json")
    assert code == 0
    assert [(b["bundle"], b["state"]) for b in json.loads(out)] == [("tiny", "new")]
    code, out, _ = cli("pull", f"hf:{REPO}:tiny")
    assert out.startswith("bundle tiny was here already: ")


def test_the_commands_say_in_a_line_what_is_wrong(hub, refused, monkeypatch):
    assert "is no repository with bundles" in refused("pull", "gpt2")
    assert "says more than a repository" in refused("push", "tiny", f"hf:{REPO}:tiny")
    assert "there is no bundle 'absent'" in refused("push", "absent", f"hf:{REPO}")
    assert "is not on the Hub" in refused("pull", "hf:me/absent", "--json")
    monkeypatch.delenv("HF_TOKEN")
    assert "HF_TOKEN" in refused("push", "tiny", f"hf:{REPO}")
