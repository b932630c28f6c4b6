"""Who is at home and who is a visitor, what visitors may do and read, and how much they may ask for."""

import threading
import tomllib
from pathlib import Path

import pytest

from sae_explore import public_mode
from sae_explore.errors import BundleError, InputError, SourceError
from sae_explore.explore.text_view import MAX_TEXT_CHARS, check_own_text
from sae_explore.public_mode import HIDDEN, Bucket, Visitor, allows, at_home, is_public, shown, shown_name, spend

LOCAL = {"host": "localhost:8501", "origin": "http://localhost:8501", "user-agent": "a browser"}


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """Buckets run by it."""
    found = Clock()
    monkeypatch.setattr(public_mode, "session_bucket", lambda: Bucket(2, 5.0, found))
    monkeypatch.setattr(public_mode, "_everybody", Bucket(3, 1.0, found))
    return found


@pytest.fixture
def serve(monkeypatch):
    """A function: from now on this visitor is served."""
    monkeypatch.delenv(public_mode.VARIABLE, raising=False)

    def visit(address: str | None = "203.0.113.7", headers: dict | None = None) -> Visitor:
        visitor = Visitor(address, LOCAL if headers is None else headers, {})
        monkeypatch.setattr(public_mode, "_visitor", lambda: visitor)
        return visitor

    return visit


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.1.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("name", ["localhost:8501", "127.0.0.1:8501", "[::1]:8501", "localhost"])
def test_one_is_at_home_on_the_machine_itself(address, name):
    assert at_home(address, {"host": name, "origin": f"http://{name}"})
    assert at_home(address, {"host": name})


@pytest.mark.parametrize(
    "address", ["203.0.113.7", "192.168.1.20", "172.17.0.1", "::ffff:10.0.0.1", "fe80::1%eth0", "0.0.0.0", "", "localhost", None]
)
def test_whoever_comes_over_a_network_is_not_at_home_whatever_the_headers_say(address):
    assert not at_home(address, LOCAL)


@pytest.mark.parametrize(
    "changed",
    [
        {"host": "my-app.streamlit.app"},
        {"host": "192.168.1.20:8501"},
        {"host": "localhost.example.org"},
        {"host": ""},
        {"origin": "https://example.org"},
        {"origin": "null"},
        {"x-forwarded-for": "127.0.0.1"},
        {"x-forwarded-proto": "https"},
        {"forwarded": "for=127.0.0.1"},
        {"via": "1.1 proxy"},
        {"x-real-ip": "127.0.0.1"},
        {"x-forwarded-host": "localhost:8501"},
        {"cf-connecting-ip": "127.0.0.1"},
        {"x-envoy-external-address": "127.0.0.1"},
        {"fly-client-ip": "127.0.0.1"},
        {"x-original-host": "localhost"},
        {"host": "localhost:8501@example.org"},
        {"host": "example.org:8501#localhost"},
        {"host": "127.0.0.1.example.org"},
        {"origin": "http://localhost.example.org"},
        {"origin": "http://example.org/localhost"},
        {"origin": ""},
    ],
)
def test_a_proxy_or_another_name_makes_a_visitor(changed):
    """Streamlit Cloud and other hosts stand before the app with a proxy, which may well be on the same machine."""
    assert not at_home("127.0.0.1", LOCAL | changed)
    assert not at_home("127.0.0.1", {})


def test_the_variable_decides_before_anything_else(serve, monkeypatch):
    serve("203.0.113.7")
    assert is_public()
    monkeypatch.setenv(public_mode.VARIABLE, "0")
    assert not is_public()
    serve("127.0.0.1")
    assert not is_public()
    for word in ("1", "yes", "TRUE", "perhaps", " 1 ", "00", "-1", "nope", "0x0", "Falsch"):
        monkeypatch.setenv(public_mode.VARIABLE, word)
        assert is_public(), word
    for word in ("0", "no", " Off ", "FALSE"):
        monkeypatch.setenv(public_mode.VARIABLE, word)
        assert not is_public(), word
    serve("203.0.113.7")
    for word in ("", "  "):  # set to nothing: as if it were not set
        monkeypatch.setenv(public_mode.VARIABLE, word)
        assert is_public()


def test_outside_of_pages_there_is_no_visitor(monkeypatch):
    monkeypatch.delenv(public_mode.VARIABLE, raising=False)
    monkeypatch.setattr(public_mode, "_visitor", lambda: None)
    assert not is_public()
    assert shown(SourceError("/srv/app failed")) == "/srv/app failed"
    for _ in range(100):
        spend()
    monkeypatch.setenv(public_mode.VARIABLE, "1")
    assert is_public()
    assert check_own_text("a" * MAX_TEXT_CHARS)  # the command line's own


def test_visitors_may_do_none_of_it(serve):
    serve()
    assert [allows(action) for action in public_mode.ACTIONS] == [False] * len(public_mode.ACTIONS)
    serve("127.0.0.1")
    assert all(allows(action) for action in public_mode.ACTIONS)
    with pytest.raises(ValueError, match=r"'fly' is none of build"):
        allows("fly")


def test_texts_of_visitors_are_shorter(serve):
    serve()
    assert public_mode.max_text_tokens(4_096) == 512
    assert public_mode.max_text_tokens(100) == 100
    with pytest.raises(InputError, match=r"has 4,097 characters, the limit here is 4,096"):
        check_own_text("a" * 4_097)
    serve("127.0.0.1")
    assert public_mode.max_text_tokens(4_096) == 4_096
    assert check_own_text("a" * 4_097)


def test_a_bucket_by_hand(clock):
    bucket = Bucket(2, 5.0, clock)
    assert bucket.wait() == 0
    bucket.take(2)
    assert bucket.wait() == 5.0
    assert bucket.wait(2) == 10.0
    clock.now += 4
    assert bucket.wait() == pytest.approx(1.0)
    clock.now += 1
    assert bucket.wait() == 0
    clock.now += 1_000
    assert bucket.wait(2) == 0
    assert bucket.wait(99) == 0  # never more than can be there


def test_a_visitor_waits_after_a_burst(serve, clock):
    serve()
    spend()
    spend()
    with pytest.raises(InputError, match=r"^that was a lot in a short time; please wait 5 seconds and try again$"):
        spend()
    clock.now += 2
    with pytest.raises(InputError, match=r"wait 3 seconds"):
        spend()
    clock.now += 3
    spend()


def test_all_visitors_together_wait_too(serve, clock):
    for _ in range(3):
        serve()
        spend()
    own = serve()
    with pytest.raises(InputError, match=r"^many people use this app just now; please wait 1 second and try again$"):
        spend()
    clock.now += 1
    spend()
    spend_left = own.session["_allowance"].wait()
    assert spend_left == 0  # what was refused cost the visitor nothing


def test_of_two_visitors_at_once_one_takes_what_is_left(serve, clock, monkeypatch):
    """The second one asks when the first has been told that it may, and has not taken it yet."""
    refused, seconds = [], []

    def second() -> None:
        try:
            spend()
        except InputError as error:
            refused.append(str(error))

    class Shared(Bucket):
        def wait(self, cost: float = 1.0) -> float:
            found = super().wait(cost)
            if not seconds:
                seconds.append(threading.Thread(target=second))
                seconds[0].start()
                seconds[0].join(0.3)  # it waits for the first one to have taken its share
            return found

    serve()
    monkeypatch.setattr(public_mode, "_everybody", Shared(1, 1.0, clock))
    spend()
    seconds[0].join(60)
    assert refused == ["many people use this app just now; please wait 1 second and try again"]


def test_at_home_nothing_is_counted(serve, clock):
    serve("127.0.0.1")
    for _ in range(100):
        spend()
    serve()
    spend()


def test_visitors_read_no_internals(serve, caplog):
    serve()
    assert shown(InputError("the text is empty; type something")) == "the text is empty; type something"
    hidden = [
        BundleError("bundle 'x' is damaged"),
        SourceError("hf:me/secret cannot be read"),
        InputError("there is no model folder '/home/me/gpt2'"),
        InputError("http://10.0.0.1:8080 cannot be reached"),
        InputError(r"C:\Users\me\x is missing"),
        RuntimeError("x"),
        "the model could not be loaded (KeyError)",
    ]
    for problem in hidden:
        caplog.clear()
        assert shown(problem) == HIDDEN
        assert str(problem) in caplog.text
    assert shown_name("/home/me/gpt2") == "gpt2"
    assert shown_name("~/texts/*.txt") == "*.txt"
    assert shown_name(r"C:\texts\a.txt") == "a.txt"
    assert [shown_name(n) for n in ("openai-community/gpt2", "pypi:a==1", "embedded")] == ["openai-community/gpt2", "pypi:a==1", "embedded"]
    serve("127.0.0.1")
    assert shown(hidden[0]) == "bundle 'x' is damaged"
    assert shown_name("/home/me/gpt2") == "/home/me/gpt2"


@pytest.mark.parametrize("text", ["either/or", "1/2 and 3/4", "a and/or b", "24/7/365"])
def test_a_stroke_is_no_path(serve, text):
    serve()
    assert shown(InputError(text)) == text


def test_the_settings_of_streamlit_leave_the_host_its_own():
    """Streamlit Cloud brings its own address, port and protection, and an error's details are for the log."""
    settings = tomllib.loads((Path(__file__).resolve().parents[1] / ".streamlit/config.toml").read_text(encoding="utf-8"))
    own = {"address", "port", "headless", "baseUrlPath", "enableCORS", "enableXsrfProtection", "sslCertFile", "trustedUserHeaders"}
    assert not own & settings["server"].keys()
    assert settings["browser"].keys() <= {"gatherUsageStats"}
    assert settings["client"]["showErrorDetails"] == "none"
