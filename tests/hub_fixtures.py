"""The loopback Hub for the real client in this process: `pytest_plugins = ["bundle_fixtures", "hub_fixtures"]` in a test module."""

import pytest
from hub_server import HubServer

from sae_explore.files import hub as hub_module
from sae_explore.files import hub_download


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running, empty Hub that this process takes for the real one, with a token that may write."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    monkeypatch.setattr(hub_module, "_problems", {})
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with HubServer(tmp_path / "hub") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", running.token)
        yield running
    close_session()


@pytest.fixture
def served(hub, tmp_path, monkeypatch):
    """The loopback Hub as the one that downloads come from; its cache is `tmp_path / "cache"`."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return hub


@pytest.fixture
def no_file_is_small(monkeypatch):
    """Also the files of tests are fetched as large ones are."""
    monkeypatch.setattr(hub_download, "_SMALL", 0)
    monkeypatch.setattr(hub_download, "_PIECE", 500)
