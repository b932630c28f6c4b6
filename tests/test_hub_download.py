"""Downloads of models from a Hub on the loopback interface, with the real client in this process: broken off, slow, damaged, gone."""

import hashlib
import logging
import shutil

import pytest
from hub_server import HubServer

from sae_explore.errors import SourceError
from sae_explore.files import hub as hub_module
from sae_explore.files import hub_download
from sae_explore.models.model_facts import facts_of
from sae_explore.models.model_sources import is_local, resolve_model

pytest_plugins = ["hub_fixtures"]
MODEL, WEIGHTS = "someone/tiny", "model.safetensors"


@pytest.fixture
def offered(served, gpt2_folder, no_file_is_small):
    """The loopback Hub with a small GPT-2; `sent` and `log` count from here."""
    shutil.copytree(gpt2_folder, served.folder / "models" / MODEL)
    return served


@pytest.fixture
def fetch(tmp_path):
    """A function that gets the model; what it reports goes to `said`, as (text, share)."""

    def get(said: list | None = None, **options):
        return resolve_model(MODEL, models=tmp_path / "models", report=lambda *told: said is not None and said.append(told), **options)

    return get


def size_of(hub) -> int:
    return (hub.folder / "models" / MODEL / WEIGHTS).stat().st_size


def half_of(hub) -> int:
    """How much is kept of the weights when half of them has come: whole pieces."""
    return size_of(hub) // 2 // 500 * 500


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def downloads(hub) -> set[str]:
    return {path.rpartition("/")[2] for verb, path in hub.log if verb == "GET" and "/resolve/" in path}


def test_a_cold_cache_is_filled_with_progress_and_a_warm_one_asks_nothing(offered, fetch, tmp_path):
    said = []
    found = fetch(said)
    for name in (WEIGHTS, "config.json", "tokenizer.json"):
        assert sha256(found.folder / name) == sha256(offered.folder / "models" / MODEL / name)
    assert found.folder.is_relative_to(tmp_path / "cache")
    shares = [share for _, share in said if share is not None]
    assert shares == sorted(shares)  # nothing counts back, over all files
    assert len(set(shares)) > 20
    assert shares[-1] == 1
    assert {text for text, _ in said if "tiny" in text} == {text for text, _ in said}
    offered.log.clear()
    assert fetch() == found
    assert is_local(MODEL, models=tmp_path)
    assert offered.log == []


def test_a_download_that_breaks_off_goes_on_where_it_was(offered, fetch, monkeypatch):
    monkeypatch.setattr(hub_download, "_ATTEMPTS", 1)  # as when the machine is switched off then
    offered.truncate.add(WEIGHTS)
    with pytest.raises(SourceError, match=f"^the model {MODEL} cannot be read from the Hub: ") as caught:
        fetch()
    assert "\n" not in str(caught.value)
    offered.truncate.clear()
    offered.ranges.clear()
    said = []
    found = fetch(said)
    (begun,) = [part for name, part in offered.ranges if name == WEIGHTS]
    assert begun == f"bytes={half_of(offered)}-"
    assert sha256(found.folder / WEIGHTS) == sha256(offered.folder / "models" / MODEL / WEIGHTS)
    assert min(share for _, share in said if share is not None) > 0
    assert not list(found.folder.parents[1].rglob("*.sae-explore"))


def test_a_process_that_is_killed_leaves_what_had_come(offered, fetch):
    """Whatever ends a download, from the outside or by the report, it is gone on with in a new process: nothing is kept in this one."""

    def end(_text, share):
        if share and share > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve_model(MODEL, models=offered.folder, report=end)
    offered.ranges.clear()
    before = offered.sent
    found = fetch()
    assert sha256(found.folder / WEIGHTS) == sha256(offered.folder / "models" / MODEL / WEIGHTS)
    parts = {name: int(part.removeprefix("bytes=").rstrip("-")) for name, part in offered.ranges}
    assert sum(parts.values()) > size_of(offered) // 4
    assert offered.sent - before < size_of(offered)


def test_a_server_that_falls_silent_is_asked_again_and_then_named(offered, fetch, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr(hub_download, "_ATTEMPTS", 2)
    offered.stall.add(WEIGHTS)
    said = []
    with pytest.raises(
        SourceError, match=f"^the model {MODEL} cannot be read from the Hub: it stopped answering; try again, what has come is kept$"
    ):
        fetch(said)
    assert [part for name, part in offered.ranges if name == WEIGHTS] == ["bytes=0-", f"bytes={half_of(offered)}-"]
    assert 0 < max(share for _, share in said if share is not None) < 1
    offered.stall.clear()
    found = fetch()
    assert sha256(found.folder / WEIGHTS) == sha256(offered.folder / "models" / MODEL / WEIGHTS)


def test_a_hub_that_answers_nothing_any_more_is_a_sentence(offered, fetch, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    assert hub_module.hub_reachable()
    monkeypatch.setattr(hub_module, "PROBE_SECONDS", 0.2)
    offered.delay = 30
    with pytest.raises(SourceError, match=f"^the model {MODEL} would come from the Hugging Face Hub, but http.* check the connection"):
        fetch()


def test_a_slow_hub_is_waited_for(offered, fetch):
    offered.delay = 0.05
    said = []
    assert fetch(said).revision
    assert len({share for _, share in said}) > 20


def test_what_is_not_what_the_hub_named_is_thrown_away(offered, fetch, tmp_path):
    offered.alter.add(WEIGHTS)
    size = f"{size_of(offered):,}"
    with pytest.raises(
        SourceError, match=rf"what came for {WEIGHTS} is not the file that the Hub named \({size} of {size} bytes\); try again"
    ):
        fetch()
    assert not is_local(MODEL, models=tmp_path)
    offered.alter.clear()
    assert sha256(fetch().folder / WEIGHTS) == sha256(offered.folder / "models" / MODEL / WEIGHTS)


def test_without_the_hub_what_is_cached_goes_on_and_the_rest_is_a_sentence(offered, fetch, tmp_path, monkeypatch):
    found = fetch()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch() == found
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch() == found
    with pytest.raises(
        SourceError, match=r"^the model someone/other would come from the Hugging Face Hub, but HF_HUB_OFFLINE is set; unset it"
    ):
        resolve_model("someone/other", models=tmp_path)


def test_what_is_not_there_private_or_of_another_revision(offered, fetch, tmp_path, monkeypatch):
    with pytest.raises(SourceError, match=r"^the model u/absent is not on the Hub, or it is private; check its name, or set HF_TOKEN$"):
        resolve_model("u/absent", models=tmp_path)
    with pytest.raises(SourceError, match=f"^the model {MODEL} cannot be read from the Hub: it has no such revision"):
        fetch(revision="f" * 40)
    offered.private.add(MODEL)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SourceError, match=f"^the model {MODEL} cannot be read from the Hub: "):
        fetch()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SourceError, match=f"^the model {MODEL} is not on the Hub, or it is private"):
        fetch()
    monkeypatch.setenv("HF_TOKEN", offered.token)
    assert fetch().revision


@pytest.fixture
def storage(offered):
    """Another server, to which the Hub sends for large files."""
    with HubServer(offered.folder) as other:
        offered.storage = other
        yield other


def test_large_files_come_from_elsewhere_without_the_token(offered, storage, fetch, monkeypatch):
    offered.private.add(MODEL)
    monkeypatch.setattr(hub_download, "_ATTEMPTS", 1)
    storage.truncate.add(WEIGHTS)
    with pytest.raises(SourceError, match="cannot be read from the Hub"):
        fetch()
    storage.truncate.clear()
    found = fetch()
    weights = found.folder / WEIGHTS
    assert weights.resolve().name == sha256(weights) == sha256(offered.folder / "models" / MODEL / WEIGHTS)
    assert [part for name, part in storage.ranges if name == WEIGHTS] == ["bytes=0-", f"bytes={half_of(offered)}-"]
    assert [verb for verb, path in storage.log if path.endswith(WEIGHTS)] == ["GET", "GET"]  # and not once more by the client
    assert set(offered.shown) == {offered.token}
    assert storage.shown == []
    storage.alter.add(WEIGHTS)
    shutil.rmtree(found.folder.parents[1])
    with pytest.raises(SourceError, match="is not the file that the Hub named"):
        fetch()


def test_the_token_of_a_login_is_used_and_in_no_log(offered, fetch, monkeypatch, caplog):
    from huggingface_hub import constants

    kept = offered.folder.parent / "token"
    kept.write_text(offered.token)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(kept))
    offered.private.add(MODEL)
    with caplog.at_level(logging.DEBUG):
        assert fetch().revision
    assert offered.token not in caplog.text


def test_the_build_page_asks_for_a_configuration_alone(offered, tmp_path):
    facts = facts_of(MODEL, models=tmp_path, ask_hub=True)
    assert (facts.layers, facts.here) == (4, False)
    assert downloads(offered) == {"config.json"}
    assert not is_local(MODEL, models=tmp_path)
