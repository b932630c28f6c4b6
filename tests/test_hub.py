"""The probe of the Hub, the sentences of its failures, and the loopback Hub with the real client library."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from hub_server import HubServer

from sae_explore.errors import InputError, SourceError
from sae_explore.files import hub
from sae_explore.files.hub import hub_access, hub_endpoint, hub_problem, hub_reachable, one_line, require_hub

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No memory of earlier probes, and none of the environment's own settings."""
    monkeypatch.setattr(hub, "_problems", {})
    for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server(tmp_path, monkeypatch):
    with HubServer(tmp_path / "hub") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture
def closed_port() -> str:
    """An address where nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def test_the_endpoint_comes_from_the_environment(monkeypatch):
    assert hub_endpoint() == "https://huggingface.co"
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.test/hub/")
    assert hub_endpoint() == "http://mirror.test/hub"
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert hub_endpoint() == "https://huggingface.co"


def test_many_threads_share_one_probe(server):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(hub_reachable())) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 12
    assert server.log == [("HEAD", "/")]
    require_hub("anything")


def test_an_answer_is_kept_until_refreshed(tmp_path, monkeypatch):
    with HubServer(tmp_path) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        assert hub_reachable()
    assert hub_reachable()
    assert not hub_reachable(refresh=True)
    assert not hub_reachable()


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_settings_ask_nobody(server, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not hub_reachable(refresh=True)
    assert server.log == []
    with pytest.raises(SourceError, match=rf"^the model gpt2 .*{name} is set; unset it, or name something local$"):
        require_hub("the model gpt2")
    monkeypatch.setenv(name, "0")
    assert hub_reachable()


def test_a_closed_port_is_named(closed_port, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", closed_port)
    assert not hub_reachable()
    with pytest.raises(SourceError, match=f"^the model gpt2 would come .* but {closed_port} cannot be reached .*; check the connection"):
        require_hub("the model gpt2")


def test_silence_ends_the_probe(server, monkeypatch):
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.2)
    server.delay = 60
    assert "0.2 seconds" in hub_problem() or "timed out" in hub_problem()


@pytest.mark.parametrize(("status", "reachable"), [(401, True), (404, True), (429, False), (502, False), (503, False)])
def test_only_answers_that_clients_retry_count_as_unreachable(server, status, reachable):
    server.status = status
    assert hub_reachable() == reachable
    if not reachable:
        assert f"answers with status {status}" in hub_problem()


@pytest.mark.parametrize("endpoint", ["hub", "file:///", "http://[bad", "http://127.0.0.1:notaport", "http://a b"])
def test_a_wrong_address_is_a_problem_not_an_exception(monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert not hub_reachable()
    assert endpoint.rstrip("/") in hub_problem()


def test_https_uses_certificates_and_fails_in_a_clause(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url.replace("http:", "https:"))
    assert "cannot be reached" in hub_problem()


def test_proxies_of_the_environment_are_used(server, closed_port, monkeypatch):
    monkeypatch.setenv("http_proxy", closed_port)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert not hub_reachable()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert hub_reachable(refresh=True)


def test_without_the_hub_nothing_is_called(closed_port, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", closed_port)
    called = []
    with pytest.raises(SourceError, match="cannot be reached"), hub_access("the model gpt2"):
        called.append(True)
    assert called == []


def test_failures_become_one_sentence(server):
    with pytest.raises(SourceError, match=r"^the SAE a/b cannot be read from the Hub: first second$"), hub_access("the SAE a/b"):
        raise OSError("first\n\n  second")
    with pytest.raises(InputError, match=r"^own words$"), hub_access("the SAE a/b"):
        raise InputError("own words")
    with pytest.raises(ZeroDivisionError), hub_access("the SAE a/b"):
        raise ZeroDivisionError


def test_a_hub_that_goes_away_is_not_asked_again(tmp_path, monkeypatch):
    def leave():
        with HubServer(tmp_path) as server:
            monkeypatch.setenv("HF_ENDPOINT", server.url)
            assert hub_reachable()
        with hub_access("the model gpt2"):
            raise ConnectionError("gone")

    with pytest.raises(SourceError, match=r"would come from the Hugging Face Hub, but .* cannot be reached"):
        leave()
    assert not hub_reachable()


def test_messages_are_cut_to_a_line():
    assert one_line(ValueError("a\n\nb")) == "a b"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line(ValueError("x" * 5000))) == 300


CLIENT = """
import json, sys
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download
from sae_explore.errors import SourceError
from sae_explore.files.hub import hub_access

def failure(action):
    try:
        with hub_access("the model"):
            action()
    except SourceError as error:
        return [type(error.__cause__).__name__, str(error)]

api = HfApi()
info = api.model_info("user/model")
files = HfFileSystem()
result = {
    "sha": info.sha,
    "licence": info.card_data["license"],
    "files": api.list_repo_files("user/model"),
    "config": open(hf_hub_download("user/model", "config.json")).read(),
    "single": open(hf_hub_download("single", "config.json")).read(),
    "folder": [str(p) for p in __import__("pathlib").Path(snapshot_download("user/model", allow_patterns=["deep/*"])).rglob("*.bin")],
    "paths": [entry.path for entry in api.get_paths_info("user/model", ["config.json", "absent"])],
    "range": files.open("user/model/deep/weights.bin", block_size=16).read(10).hex(),
    "listing": sorted(files.find("user/model")),
    "no repository": failure(lambda: api.model_info("user/absent")),
    "no file": failure(lambda: hf_hub_download("user/model", "absent.json")),
    "no revision": failure(lambda: hf_hub_download("user/model", "config.json", revision="v9")),
    "exists": api.file_exists("user/model", "absent.json"),
}
print(json.dumps(result))
"""


def test_the_real_client_reads_from_the_loopback_hub(tmp_path):
    model = tmp_path / "hub/models/user/model"
    (model / "deep").mkdir(parents=True)
    (model / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (model / "config.json").write_text('{"a": 1}')
    weights = bytes(range(256)) * 40
    (model / "deep/weights.bin").write_bytes(weights)
    (tmp_path / "hub/models/single").mkdir()
    (tmp_path / "hub/models/single/config.json").write_text('{"b": 2}')
    with HubServer(tmp_path / "hub") as server:
        environment = server.environment(tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
        run = subprocess.run([sys.executable, "-c", CLIENT], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert len(result["sha"]) == 40
    assert result["licence"] == "mit"
    assert result["files"] == ["README.md", "config.json", "deep/weights.bin"]
    assert (result["config"], result["single"]) == ('{"a": 1}', '{"b": 2}')
    assert [Path(p).read_bytes() for p in result["folder"]] == [weights]
    assert result["sha"] in result["folder"][0]
    assert result["paths"] == ["config.json"]
    assert result["range"] == weights[:10].hex()
    assert result["listing"] == [f"user/model/{name}" for name in result["files"]]
    kind, message = result["no repository"]
    assert kind == "RepositoryNotFoundError"
    assert message == "the model is not on the Hub, or it is private; check its name, or set HF_TOKEN"
    assert result["no file"][0] == "RemoteEntryNotFoundError"
    assert "\n" not in result["no file"][1]
    assert result["no revision"][0] == "RevisionNotFoundError"
    assert result["exists"] is False


def _get(url: str, **headers: str):
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers))


def test_the_loopback_hub_serves_ranges_and_breaks_off(tmp_path):
    model = tmp_path / "models/user/model"
    model.mkdir(parents=True)
    (model / "weights.bin").write_bytes(b"0123456789")
    with HubServer(tmp_path) as server:
        url = f"{server.url}/user/model/resolve/main/weights.bin"
        for value, expected, content_range in (
            ("bytes=2-4", b"234", "bytes 2-4/10"),
            ("bytes=7-", b"789", "bytes 7-9/10"),
            ("bytes=-3", b"789", "bytes 7-9/10"),
            ("bytes=8-99", b"89", "bytes 8-9/10"),
        ):
            with _get(url, Range=value) as answer:
                assert (answer.status, answer.read(), answer.headers["Content-Range"]) == (206, expected, content_range)
        with pytest.raises(urllib.error.HTTPError) as refused:
            _get(url, Range="bytes=10-")
        refused.value.close()
        assert refused.value.code == 416
        with _get(url) as answer:
            whole = answer.read()
            etag = answer.headers["ETag"]
            before = answer.headers["X-Repo-Commit"]
        assert whole == b"0123456789"
        assert etag.strip('"') == hashlib.sha1(b"blob 10\x00" + whole).hexdigest()
        server.truncate.add("weights.bin")
        with _get(url) as answer, pytest.raises(http.client.IncompleteRead) as broken:
            answer.read()
        assert broken.value.partial == b"01234"
        (model / "more.txt").write_text("x")
        with _get(f"{server.url}/api/models/user/model") as answer:
            assert json.load(answer)["sha"] != before
