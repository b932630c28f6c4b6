"""The app for visitors from elsewhere, and bundles that it fetches by itself, driven by AppTest."""

import logging
import shutil
from pathlib import Path

import pytest
import streamlit as st
from app_driver import open_page, run, texts_of, unescaped
from streamlit.testing.v1 import AppTest

from sae_explore import public_mode, resources
from sae_explore.bundles import shared_bundles
from sae_explore.bundles.pull import pull
from sae_explore.bundles.push import push
from sae_explore.bundles.shared_bundles import SharedBundles
from sae_explore.errors import BundleError
from sae_explore.public_mode import HIDDEN, Bucket, Visitor
from sae_explore.views import shell

pytest_plugins = ["bundle_fixtures", "hub_fixtures"]
REPO = "me/bundles"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Nothing cached, and nothing in the environment."""
    for name in (public_mode.VARIABLE, shared_bundles.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    st.cache_data.clear()
    st.cache_resource.clear()


@pytest.fixture
def public(app_cache, monkeypatch) -> Path:
    """The app is public; its cache folder."""
    monkeypatch.setenv(public_mode.VARIABLE, "1")
    monkeypatch.setattr(public_mode, "_everybody", Bucket(24, 1.0))
    return app_cache


class Reader:
    """Stands for the loaded model."""

    def __init__(self, bundle):
        self._trace, self.limits = bundle.document_trace(0), []

    def trace(self, text: str, *, max_tokens: int):
        self.limits.append(max_tokens)
        return self._trace


@pytest.fixture
def reader(app_cache, monkeypatch) -> Reader:
    found = Reader(resources.get_bundle("tiny"))
    monkeypatch.setattr(resources.TracerJob, "_run", lambda self: setattr(self, "tracer", found))
    return found


def said(at) -> str:
    return unescaped(texts_of(at))


def read(at, text: str):
    at.session_state["text"], at.session_state["document"] = text, None
    return run(at)


# ---- public mode -------------------------------------------------------------------------------------------------------


PAGES = sorted({p.stem.removesuffix("_page") for p in Path(shell.__file__).parent.glob("*_page.py")} - {"build"})


@pytest.mark.parametrize("page", PAGES)
def test_every_page_says_that_it_is_public(public, page):
    assert "Public, read-only" in texts_of(open_page("" if page == "text" else page).sidebar)


def everything(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("page", PAGES)
def test_no_page_writes_anything_or_takes_a_model_a_path_or_an_address(public, page):
    """Whatever an address asks for: bundles and texts are those that are here, and what is not is no error with internals."""
    before = everything(public)
    at = open_page(
        "" if page == "text" else page, bundle="../tiny", bundle2="/etc", document="../../etc/passwd", feature="1e9", search="/etc"
    )
    assert at.session_state["bundle"] in ("tiny", "planted")
    shown = said(at)
    assert [word for word in ("Traceback", str(public), ".py") if word in shown] == []
    keys = [widget.key for kind in ("text_input", "text_area", "file_uploader", "button", "segmented_control") for widget in at.get(kind)]
    assert [key for key in keys if key and key.startswith(("build_", "setup_"))] == []
    assert all("Hub" not in (field.label or "") and "older" not in (field.label or "") for field in at.text_input)
    assert everything(public) == before


def test_what_starts_a_build_asks_by_itself_whether_it_may(public, monkeypatch):
    """Also where a page should ever draw the button for a visitor."""

    def page():
        from sae_explore.building.presets import request_for
        from sae_explore.views.build_form import begin

        begin(request_for("gpt2"))

    monkeypatch.setattr("sae_explore.building.build_jobs.start", lambda *_, **__: pytest.fail("a build was started"))
    at = AppTest.from_function(page, default_timeout=20).run()
    assert [error.value for error in at.error] == ["Nothing can be built here."]
    assert not at.exception


def test_at_home_no_page_says_so(app_cache):
    at = open_page("about")
    assert "Public, read-only" not in texts_of(at.sidebar)
    assert not [info for info in at.info if "nothing that you do is kept" in info.value]


def test_about_tells_what_it_means_and_names_no_path(public, gpt2_folder):
    at = open_page("about")
    assert any("nothing that you do is kept here" in info.value for info in at.info)
    whole = "".join(str(t.value) for t in at.table)
    assert "gpt2" in whole
    assert str(gpt2_folder.parent) not in whole


def test_nothing_can_be_built(public):
    at = open_page("build")
    assert "Build" not in [title.value for title in at.title]
    assert not [button for button in at.button if "Build" in button.label or "GPT-2" in button.label]


def test_a_long_text_is_refused_before_the_model_is_needed(public):
    assert "the limit here is 4,096" in said(read(open_page(""), "word " * 1_000))


def test_texts_are_limited_and_counted(public, reader, monkeypatch):
    monkeypatch.setattr(public_mode, "session_bucket", lambda: Bucket(1, 3_600.0))
    at = read(open_page(""), "one text")
    assert reader.limits == [512]
    run(at)  # what was read is kept: looking at it again costs nothing
    assert reader.limits == [512]
    assert "please wait" in texts_of(read(at, "another text")).lower()
    assert reader.limits == [512]
    assert not at.exception


def test_at_home_texts_are_as_long_and_many_as_ever(app_cache, reader, monkeypatch):
    monkeypatch.setattr(public_mode, "session_bucket", lambda: Bucket(1, 3_600.0))
    at = read(open_page(""), "one text")
    read(at, "another text")
    assert reader.limits == [4_096, 4_096]


def test_errors_keep_their_internals_for_the_log(public, monkeypatch, caplog):
    def damaged(_name):
        raise BundleError("tensors of /srv/app/cache/tiny cannot be read")

    monkeypatch.setattr(resources, "get_bundle", damaged)
    with caplog.at_level(logging.WARNING):
        shown = said(open_page("browse"))
    assert HIDDEN[1:] in shown
    assert "/srv" not in shown
    assert "/srv/app/cache/tiny" in caplog.text
    monkeypatch.setenv(public_mode.VARIABLE, "0")
    assert "cannot be read" in texts_of(open_page("browse"))


def test_outside_of_a_page_nobody_is_served():
    assert resources._visitor() is None


class Context:
    """What `st.context` says of a connection."""

    def __init__(self, address, headers):
        self.ip_address, self.headers = address, self
        self._headers = headers

    def to_dict(self) -> dict:
        return self._headers


@pytest.mark.parametrize(
    ("address", "headers", "server", "public"),
    [
        (None, {"Host": "localhost:8501", "Origin": "http://localhost:8501"}, None, False),
        (None, {"Host": "localhost:8501"}, "unix:///run/app.sock", True),
        (None, {"Host": "my.streamlit.app", "X-Forwarded-For": "203.0.113.7"}, None, True),
        (None, {}, None, True),  # the browser has gone
        ("203.0.113.7", {"Host": "localhost:8501"}, None, True),
        ("::ffff:127.0.0.1", {"Host": "localhost:8501"}, None, False),
    ],
)
def test_the_connection_decides(monkeypatch, address, headers, server, public):
    monkeypatch.setattr(resources, "get_script_run_ctx", lambda **_: object())
    monkeypatch.setattr(st, "context", Context(address, headers))
    monkeypatch.setattr(st, "get_option", {"server.address": server}.get)
    assert isinstance(resources._visitor(), Visitor)
    assert public_mode.is_public() == public


# ---- bundles that the app fetches by itself ----------------------------------------------------------------------------


@pytest.fixture
def offered(hub, tiny_cache, monkeypatch, tmp_path) -> Path:
    """`tiny` and `planted` in a repository that the app is to fetch; its cache folder, which is empty."""
    for name in ("tiny", "planted"):
        push(name, f"hf:{REPO}", cache=tiny_cache)
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(shared_bundles.VARIABLE, f"hf:{REPO}")
    hub.log.clear()
    return tmp_path / "cache"


def ended(job: SharedBundles) -> SharedBundles:
    job.start()
    assert job.wait(60)
    return job


def test_a_first_visit_fetches_them_and_then_opens_one(offered, hub):
    at = open_page("browse", bundle="tiny")
    assert [box.value for box in at.sidebar.selectbox if box.label == "Bundle"] == ["tiny"]
    assert resources.bundle_names() == ["planted", "tiny"]
    asked = len(hub.log)
    run(at)
    open_page("about", bundle="planted")
    assert len(hub.log) == asked  # once for all


def test_a_link_to_one_of_them_waits_for_it(offered, tiny_cache):
    shutil.copytree(tiny_cache / "planted", offered / "planted")
    at = open_page("browse", bundle="tiny")
    assert at.session_state["bundle"] == "tiny"
    assert not [w for w in at.warning if "not here" in w.value]


def test_without_the_hub_those_that_are_here_go_on_and_a_note_says_so(offered, hub, tiny_cache, monkeypatch):
    shutil.copytree(tiny_cache / "planted", offered / "planted")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    ended(resources.shared_bundles_job())
    at = open_page("browse", bundle="planted")
    (note,) = [c for c in at.sidebar.caption if "could not be fetched" in c.value]
    assert "hf:me/bundles would come from the Hugging Face Hub" in unescaped(note.help)
    assert at.dataframe
    monkeypatch.setenv(public_mode.VARIABLE, "1")
    (note,) = [c for c in open_page("browse", bundle="planted").sidebar.caption if "could not be fetched" in c.value]
    assert not note.help
    assert "me/bundles" not in note.value


def test_nothing_is_looked_for_where_nothing_is_asked_for(app_cache, hub):
    open_page("browse")
    assert hub.log == []
    assert resources.shared_bundles_job() is None


def test_a_bundle_of_ones_own_stays(offered, hub, tiny_cache):
    shutil.copytree(tiny_cache / "planted", offered / "tiny")
    own = (offered / "tiny/manifest.json").read_bytes()
    job = ended(SharedBundles(f"hf:{REPO}", offered))
    assert job.problems == (f"hf:{REPO} holds another bundle 'tiny' than the one that is here, which stays",)
    assert (offered / "tiny/manifest.json").read_bytes() == own
    assert (offered / "planted/manifest.json").is_file()


def test_one_that_was_fetched_before_is_brought_up_to_date(offered, hub, tiny_cache, tmp_path):
    pull(f"hf:{REPO}:tiny", cache=offered)
    shutil.copytree(tiny_cache / "planted", tmp_path / "newer/tiny")
    push("tiny", f"hf:{REPO}", cache=tmp_path / "newer")
    job = ended(SharedBundles(f"hf:{REPO}:tiny", offered))
    assert job.problems == ()
    assert (offered / "tiny/manifest.json").read_bytes() == (tmp_path / "newer/tiny/manifest.json").read_bytes()


def test_what_is_wrong_with_one_repository_does_not_stop_the_others(offered, hub):
    job = ended(SharedBundles(f"bundles, hf:me/absent,, hf:{REPO}:tiny", offered))
    assert [p.split(";")[0] for p in job.problems] == [
        "'bundles' is no repository with bundles",
        "hf:me/absent is not on the Hub, or it is private",
    ]
    assert (offered / "tiny/manifest.json").is_file()


def test_a_failure_is_tried_again_after_a_while(offered, hub):
    now = [0.0]
    job = SharedBundles(f"hf:{REPO}:tiny", offered, clock=lambda: now[0])
    hub.status = 503
    assert ended(job).problems
    hub.status = 0
    assert ended(job).problems  # not at once
    now[0] = shared_bundles.RETRY_SECONDS + 1
    assert ended(job).problems == ()
    asked = len(hub.log)
    now[0] *= 2
    assert ended(job).problems == ()
    assert len(hub.log) == asked
