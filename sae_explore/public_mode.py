"""Who may do what in the app: on one's own machine everything, for visitors from elsewhere it is read-only.

`SAE_EXPLORE_PUBLIC=1` makes the app public for everybody, `0` for nobody. Where it is not set, each visitor is judged by the connection,
because Streamlit listens on all of a machine's addresses unless told otherwise. A visitor is at home if

- the other end of the connection is this machine itself (a loopback address, which no one elsewhere can have),
- the browser asked for a loopback name such as `localhost`, and the page came from one (another name that leads here is someone else's),
- and no proxy has left a mark on the request: what stands behind one, as on Streamlit Cloud, is a public server.

Everybody else is public. So an app bound to loopback is one's own, one on all addresses is one's own at `http://localhost:8501` and
read-only for the network. A proxy on this machine that leaves no mark cannot be told from its owner: set the variable there.

No Streamlit here: `resources` says who the visitor is (`watch`), and outside of a page there is none.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from sae_explore.errors import InputError
from sae_explore.wording import count_of

log = logging.getLogger(__name__)

VARIABLE = "SAE_EXPLORE_PUBLIC"
ACTIONS = ("build", "upload", "model", "pull", "keep")  # start a build, keep a file, choose a model or path, fetch bundles, save notes here
PUBLIC_TEXT_TOKENS, PUBLIC_TEXT_CHARS = 512, 4_096  # of a visitor's text
HIDDEN = "this does not work just now; whoever runs this app finds the reason in its log"

_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_MARKS = ("forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip")  # left by proxies and tunnels, as are
_MARKS_BEGIN = ("x-forwarded", "x-original", "x-envoy-", "x-amz", "x-azure-", "x-cloud-", "cf-", "fly-")  # headers that begin so
_PATH = re.compile(r"(?<![\w:/.])(?:~|[A-Za-z]:)?[/\\][\w.@~-]+[/\\]|https?://|file://")  # of a file system, or an address
_SESSION_KEY = "_allowance"


@dataclass(frozen=True)
class Visitor:
    """The one whose page is being drawn."""

    address: str | None  # the other end of the connection; None where it is not known
    headers: Mapping[str, str]  # of the request that opened it, names in lower case
    session: MutableMapping  # what lasts as long as the visit


_visitor: Callable[[], Visitor | None] = lambda: None  # noqa: E731


def watch(visitor: Callable[[], Visitor | None]) -> None:
    """Let `visitor()` say from now on who is being served; None outside of a page."""
    global _visitor
    _visitor = visitor


def is_public() -> bool:
    """Whether the app is read-only for the visitor of now."""
    told = os.environ.get(VARIABLE, "").strip().lower()
    if told:
        return told not in _NO  # a word that is not understood is on the safe side
    visitor = _visitor()
    return visitor is not None and not at_home(visitor.address, visitor.headers)


def allows(action: str) -> bool:
    """Whether the visitor of now may do one of ACTIONS."""
    if action not in ACTIONS:
        raise ValueError(f"{action!r} is none of {', '.join(ACTIONS)}")
    return not is_public()


def at_home(address: str | None, headers: Mapping[str, str]) -> bool:
    """Whether a connection comes from the machine itself, by the rule at the top."""
    if address is None or not _is_loopback(address):
        return False
    if any(name in _MARKS or name.startswith(_MARKS_BEGIN) for name in headers):
        return False
    asked = [urlsplit(f"//{headers['host']}").hostname] if "host" in headers else [None]
    if "origin" in headers:
        asked.append(urlsplit(headers["origin"]).hostname)
    return all(name is not None and (name == "localhost" or name.endswith(".localhost") or _is_loopback(name)) for name in asked)


def _is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


# ---- limits ------------------------------------------------------------------------------------------------------------


class Bucket:
    """A token bucket: `burst` at once, then one every `seconds`."""

    def __init__(self, burst: float, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._burst, self._seconds, self._clock = burst, seconds, clock
        self._level, self._at = float(burst), clock()

    def wait(self, cost: float = 1.0) -> float:
        """Seconds until `cost` can be taken; 0 if it can be now."""
        now = self._clock()
        self._level, self._at = min(self._burst, self._level + (now - self._at) / self._seconds), now
        missing = min(cost, self._burst) - self._level
        return missing * self._seconds if missing > 1e-9 else 0.0

    def take(self, cost: float = 1.0) -> None:
        self._level -= min(cost, self._burst)


def session_bucket() -> Bucket:
    """What one visitor has the model read: 8 texts at once, then one every 5 seconds."""
    return Bucket(8, 5.0)


_everybody = Bucket(24, 1.0)  # all visitors together: a small machine reads about two texts a second
_lock = threading.Lock()


def spend(cost: float = 1.0) -> None:
    """Count a run of the model for the visitor of now; InputError with the seconds to wait where there were too many.

    A text costs 1. Free at home and outside of pages.
    """
    visitor = _visitor()
    if visitor is None or not is_public():
        return
    with _lock:
        if _SESSION_KEY not in visitor.session:
            visitor.session[_SESSION_KEY] = session_bucket()
        own = visitor.session[_SESSION_KEY]
        for bucket, why in ((own, "that was a lot in a short time"), (_everybody, "many people use this app just now")):
            if seconds := bucket.wait(cost):
                raise InputError(f"{why}; please wait {count_of(math.ceil(seconds), 'second')} and try again")
        own.take(cost)
        _everybody.take(cost)


def max_text_tokens(usual: int) -> int:
    """How many tokens the text of the visitor of now may have, where `usual` are allowed at home."""
    return min(usual, PUBLIC_TEXT_TOKENS) if _limited() else usual


def max_text_chars(usual: int) -> int:
    """The same in characters, to be checked before anything reads the text."""
    return min(usual, PUBLIC_TEXT_CHARS) if _limited() else usual


def _limited() -> bool:
    return _visitor() is not None and is_public()


# ---- what visitors read ------------------------------------------------------------------------------------------------


def shown(problem: BaseException | str) -> str:
    """A problem in the words that the visitor of now may read: the whole message at home.

    In public, what a visitor did wrong is said as it is; all else, and whatever names a path or an address, goes to the log alone.
    """
    text = str(problem)
    if not is_public() or (isinstance(problem, InputError) and not _PATH.search(text)):
        return text
    log.warning("not shown to a visitor: %s", text)
    return HIDDEN


def shown_name(name: str) -> str:
    """The name of a model or of texts: in public a path's last part only."""
    return (
        re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_public() and (name.startswith(("/", "~", "\\", ".")) or name[1:2] == ":") else name
    )
