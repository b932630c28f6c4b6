"""One brief look at whether the Hugging Face Hub can be reached, so that nothing waits for its clients' retries.

Without the Hub, a call of `huggingface_hub` sleeps and retries for about 25 seconds. Everything here that uses it goes
through `hub_access`, which refuses at once after a failed probe and turns failures into one sentence.
"""

from __future__ import annotations

import http.client
import logging
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sae_explore.errors import ExploreError, SourceError

log = logging.getLogger(__name__)

DEFAULT_ENDPOINT = "https://huggingface.co"
PROBE_SECONDS = 2.0
_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_TRUE = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads them
_RETRIED_STATUS = (408, 429, 500, 502, 503, 504)  # answers on which huggingface_hub sleeps and retries

_lock = threading.Lock()
_problems: dict[str, str | None] = {}  # endpoint -> what is wrong with it, None if nothing


def hub_endpoint() -> str:
    """Address of the Hub: HF_ENDPOINT, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def hub_problem(*, refresh: bool = False) -> str | None:
    """Why the Hub cannot be used, as a clause of a sentence; None if it can.

    One probe of at most two seconds per endpoint and process, whichever thread comes first; `refresh` probes again.
    """
    for name in _OFFLINE_VARIABLES:
        if os.environ.get(name, "").upper() in _TRUE:
            return f"{name} is set"
    endpoint = hub_endpoint()
    with _lock:
        if refresh or endpoint not in _problems:
            _problems[endpoint] = _probe(endpoint)
            log.info("probed %s: %s", endpoint, _problems[endpoint] or "reachable")
        return _problems[endpoint]


def hub_reachable(*, refresh: bool = False) -> bool:
    """Whether the Hub answers and is not switched off by the environment. Never raises; see `hub_problem`."""
    return hub_problem(refresh=refresh) is None


def require_hub(what: str, *, writing: bool = False) -> None:
    """Raise SourceError, saying that `what` was wanted, if the Hub cannot be used."""
    if problem := hub_problem():
        raise SourceError(_refusal(what, problem, writing))


@contextmanager
def hub_access(what: str, *, writing: bool = False) -> Iterator[None]:
    """Calls of the Hub's client libraries go in here: refused at once without the Hub, SourceError in one sentence if they fail.

    A failure probes the Hub again, so that one which has gone away since is not asked a second time. `writing`: `what` is put there.
    """
    require_hub(what, writing=writing)
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except ExploreError:
        raise
    except GatedRepoError as error:
        raise SourceError(f"{what} is gated: accept its terms on {hub_endpoint()} and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise SourceError(f"{what} is not on the Hub, or it is private; check its name, or set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise SourceError(f"{what} cannot be read from the Hub: it has no such revision; check it, or leave it out") from error
    except (OSError, ValueError, RuntimeError, HTTPError, EntryNotFoundError) as error:
        if problem := hub_problem(refresh=True):
            raise SourceError(_refusal(what, problem, writing)) from error
        done = "written to" if writing else "read from"
        why = "it stopped answering; try again, what has come is kept" if is_timeout(error) else one_line(error)
        raise SourceError(f"{what} cannot be {done} the Hub: {why}") from error


def byte_counter(report: Callable[[int, int], None]) -> type:
    """A `tqdm_class` for the Hub's client: draws nothing, and reports (bytes so far, bytes in all) of a download, from its threads."""
    from tqdm import tqdm

    lock, most = threading.Lock(), [0, 0]

    class Counter(tqdm):
        def __init__(self, *args, **options):
            self._bytes = options.get("unit") == "B"  # others count files
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self._bytes and self.total:
                with lock:  # there is a bar for what arrives and one for what is written
                    most[:] = max(most, [int(self.n), int(self.total)])
                    report(min(most), most[1])

    return Counter


def is_timeout(error: BaseException) -> bool:
    """Whether a server was silent for too long. (The Hub's client has changed its HTTP library before; their names for it agree.)"""
    return isinstance(error, TimeoutError) or type(error).__name__ in ("ConnectTimeout", "ReadTimeout")


def one_line(error: BaseException) -> str:
    """The message of a foreign exception as one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"


def _refusal(what: str, problem: str, writing: bool) -> str:
    remedy = "unset it" if problem.endswith("is set") else "check the connection, HF_ENDPOINT and the proxy settings"
    if writing:
        return f"{what} would be written to the Hugging Face Hub, but {problem}; {remedy}"
    return f"{what} would come from the Hugging Face Hub, but {problem}; {remedy}, or name something local"


def _probe(endpoint: str) -> str | None:
    """Run the request in a thread, because looking up a name knows no timeout."""
    answer: list[str | None] = []
    thread = threading.Thread(target=lambda: answer.append(_request(endpoint)), daemon=True, name="hub-probe")
    thread.start()
    thread.join(PROBE_SECONDS)
    return answer[0] if answer else f"{endpoint} does not answer within {PROBE_SECONDS:g} seconds"


def _request(endpoint: str) -> str | None:
    if not endpoint.lower().startswith(("http://", "https://")):
        return f"{endpoint!r} is no web address"
    try:
        # a new opener, because the shared one keeps the proxies of its first call
        handlers = [urllib.request.HTTPSHandler(context=_certificates())] if endpoint.lower().startswith("https") else []
        request = urllib.request.Request(endpoint + "/", method="HEAD", headers={"User-Agent": "sae-explore"})
        with urllib.request.build_opener(*handlers).open(request, timeout=PROBE_SECONDS) as response:
            status = response.status
    except urllib.error.HTTPError as error:  # any answer but "later" comes from something that serves
        status = error.code
        error.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return f"{endpoint} cannot be reached ({str(reason) or type(reason).__name__})"
    return f"{endpoint} answers with status {status}" if status in _RETRIED_STATUS else None


def _certificates() -> ssl.SSLContext:
    """The system's certificates and, where installed, those of the Hub's client: some Pythons come without any."""
    context = ssl.create_default_context()
    try:
        import certifi
    except ImportError:
        return context
    context.load_verify_locations(certifi.where())
    return context
