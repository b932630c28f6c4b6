"""A small Hugging Face Hub on the loopback interface, for tests with the real client libraries.

Serves `folder/models/[USER/]REPO/...` and `folder/datasets/[USER/]REPO/...` as public repositories with one commit, `main`.
Speaks what `huggingface_hub`, `transformers` and `datasets` ask for: repository info, trees, paths-info, and files with
HEAD, GET, ranges and ETags; new repositories and commits (`hub_uploads`); errors in the Hub's own form. The clients read
HF_ENDPOINT when they are imported, so tests start a new Python with `server.environment(home)`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import hub_uploads
import yaml

_DATE = "2024-01-01T00:00:00.000Z"
_API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+(?:/[^/]+)??)(?:/(?P<verb>revision|tree|paths-info)/(?P<rest>.+))?")
_FILE = re.compile(r"/(?P<kind>datasets/)?(?P<repo>[^/]+(?:/[^/]+)??)/resolve/(?P<rest>.+)")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_PIECE = 1 << 16


class HubServer:
    """Use as a context manager. Files may be added or changed while it runs.

    truncate: paths inside repositories whose contents break off half-way
    stall:    paths inside repositories of which nothing more comes after half, on an open connection
    alter:    paths inside repositories whose contents come with other bytes than announced
    delay:    seconds to wait before each answer
    status:   answer every request with this status, if not 0
    log:      (method, path with query) of every request
    ranges:   (path inside the repository, range) of every part of a file that was asked for
    sent:     bytes of files sent so far
    shown:    the tokens that came with requests
    storage:  another server of the same folder to which large files (`hub_uploads.LARGE`) are redirected, as the real Hub does
    token:    what a writer must show; readers need it for what is `private`
    writable: whether that token may write
    commits:  (repository, message) of every commit
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.truncate: set[str] = set()
        self.stall: set[str] = set()
        self.alter: set[str] = set()
        self.delay = 0.0
        self.status = 0
        self.sent = 0
        self.log: list[tuple[str, str]] = []
        self.ranges: list[tuple[str, str]] = []
        self.shown: list[str] = []
        self.storage: HubServer | None = None
        self.token, self.writable = "hf_of_the_tests", True
        self.private: set[str] = set()
        self.commits: list[tuple[str, str]] = []
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, home: Path) -> dict[str, str]:
        """Environment of a process that takes this server for the Hub and keeps its caches in `home`."""
        dropped = ("hf_", "huggingface_", "transformers_", "http_proxy", "https_proxy", "all_proxy")
        kept = {name: value for name, value in os.environ.items() if not name.lower().startswith(dropped)}
        return {**kept, "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}

    def hang(self) -> None:
        """Send nothing until the server closes, or until the test has seen enough."""
        self._closing.wait(20)

    def wait(self) -> bool:
        """Whether to answer at all."""
        self._closing.wait(self.delay)
        return not (self.delay == 0 and self._closing.is_set())

    def repository(self, kind: str, repo: str) -> Path | None:
        """Folder of a repository. A name without a user is one only if it holds files, else it is a user's folder."""
        folder = self.folder / kind / repo
        if not folder.is_dir():
            return None
        return folder if "/" in repo or any(p.is_file() for p in folder.iterdir()) else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no event."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Requests are kept in the server's log."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self._body())

    def do_PUT(self) -> None:
        self._answer(self._body())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _answer(self, body: bytes = b"") -> None:
        hub = self.server.hub
        hub.log.append((self.command, self.path))
        if not hub.wait():
            self.close_connection = True
            return
        address = urlsplit(self.path)
        shown = self.headers.get("Authorization", "").removeprefix("Bearer ")
        hub.shown += [shown] * bool(shown)
        if hub.status or ".." in Path(unquote(address.path)).parts:
            self._json({"error": "refused"}, hub.status or 400)
        elif shown and shown != hub.token:
            self._error(401, "", "Invalid credentials in Authorization header")
        elif not shown and any(f"/{repo}/" in f"{unquote(address.path)}/" for repo in hub.private):
            self._error(401, "RepoNotFound", "Repository not found")
        elif self._upload(address.path, body, may_write=hub.writable and shown == hub.token):
            pass
        elif match := _API.fullmatch(address.path):
            folder = hub.repository(match["kind"], unquote(match["repo"]))
            self._api(folder, match["kind"], unquote(match["repo"]), match["verb"], match["rest"] or "", parse_qs(address.query), body)
        elif match := _FILE.fullmatch(address.path):
            self._file(hub.repository("datasets" if match["kind"] else "models", unquote(match["repo"])), match["rest"])
        else:
            self._json({"endpoint": "hub"} if address.path == "/" else {"error": "Not Found"}, 200 if address.path == "/" else 404)

    def _upload(self, path: str, body: bytes, *, may_write: bool) -> bool:
        """Answer what writes; whether it did."""
        try:
            found = hub_uploads.answer(self.server.hub, self.command, path, body, may_write=may_write, commit_of=_commit)
        except hub_uploads.Refused as refusal:
            self._error(*refusal.args)
            return True
        if found is not None:
            self._json(found)
        return found is not None

    def _api(self, folder: Path | None, kind: str, repo: str, verb: str | None, rest: str, query: dict, body: bytes) -> None:
        if folder is None:
            return self._error(404, "RepoNotFound", "Repository not found")
        revision, _, path = rest.partition("/")
        if verb and not _is_revision(folder, unquote(revision)):
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {unquote(revision)}")
        if verb == "tree":
            root = folder / unquote(path)
            if not root.is_dir():
                return self._error(404, "EntryNotFound", "Entry not found")
            found = root.rglob("*") if query.get("recursive", [""])[0].lower() in ("true", "1") else root.iterdir()
            self._json([self._entry(folder, p) for p in sorted(found) if p.name != ".commit"])
        elif verb == "paths-info":
            is_json = "json" in self.headers.get("Content-Type", "")
            paths = json.loads(body)["paths"] if is_json else parse_qs(body.decode()).get("paths", [])
            self._json([self._entry(folder, folder / p) for p in paths if (folder / p).exists()])
        else:
            self._json(_info(folder, kind, repo) | {"private": repo in self.server.hub.private})
        return None

    def _file(self, folder: Path | None, rest: str) -> None:
        if folder is None:
            return self._error(404, "RepoNotFound", "Repository not found")
        revision, _, name = rest.partition("/")
        if not _is_revision(folder, unquote(revision)):
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {unquote(revision)}", commit=_commit(folder))
        path = folder / unquote(name)
        if not path.is_file():
            return self._error(404, "EntryNotFound", "Entry not found", commit=_commit(folder))
        size = path.stat().st_size
        if self.server.hub.storage and path.name.endswith(hub_uploads.LARGE):
            return self._redirect(path, size, _commit(folder))
        start, stop = self._range(size)
        partial = "Range" in self.headers
        if partial and start >= size:
            return self._error(416, "", "Range not satisfiable")
        self.send_response(206 if partial else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{_blob_id(path)}"')
        self.send_header("X-Repo-Commit", _commit(folder))
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        hub, name = self.server.hub, unquote(name)
        if partial:
            hub.ranges.append((name, self.headers["Range"]))
        half = name in hub.truncate | hub.stall
        self.close_connection = self.close_connection or half
        self._send(path, start, start + (stop - start) // 2 if half else stop, altered=name in hub.alter)
        if name in hub.stall:
            hub.hang()
        return None

    def _entry(self, folder: Path, path: Path) -> dict:
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0, "path": name}
        size = path.stat().st_size
        large = self.server.hub.storage and name.endswith(hub_uploads.LARGE)
        stored = {"lfs": {"oid": _sha256_of(path), "size": size, "pointerSize": 130}} if large else {}
        return {"type": "file", "oid": _blob_id(path), "size": size, "path": name, **stored}

    def _redirect(self, path: Path, size: int, commit: str) -> None:
        self.send_response(302)
        self.send_header("Location", self.server.hub.storage.url + self.path)
        self.send_header("X-Linked-Size", str(size))
        self.send_header("X-Linked-ETag", f'"{_sha256_of(path)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, path: Path, start: int, stop: int, *, altered: bool) -> None:
        with path.open("rb") as file:
            file.seek(start)
            while start < stop and (piece := file.read(min(_PIECE, stop - start))):
                self.wfile.write(bytes(len(piece)) if altered else piece)
                self.server.hub.sent += len(piece)
                start += len(piece)

    def _range(self, size: int) -> tuple[int, int]:
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        if match is None:
            return 0, size
        first, last = match.groups()
        if not first:
            return max(0, size - int(last)), size
        return int(first), min(size, int(last) + 1) if last else size

    def _error(self, status: int, code: str, message: str, *, commit: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        self._json({"error": message}, status, {name: value for name, value in headers.items() if value})

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".commit")


def _commit(folder: Path) -> str:
    """The hash in a file `.commit`, for repositories that stand for published ones, else one that changes with any file."""
    if (folder / ".commit").is_file():
        return (folder / ".commit").read_text().strip()
    names = "\n".join(f"{p.relative_to(folder).as_posix()} {_blob_id(p)}" for p in _files(folder))
    return hashlib.sha1(names.encode()).hexdigest()


def _is_revision(folder: Path, revision: str) -> bool:
    return revision in ("main", _commit(folder))


def _blob_id(path: Path) -> str:
    stat = path.stat()
    return _blob_id_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _blob_id_of(path: Path, size: int, mtime: int) -> str:
    """Git's object id of a file."""
    digest = hashlib.sha1(f"blob {size}\0".encode())
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _info(folder: Path, kind: str, repo: str) -> dict:
    card = _card(folder)
    info = {"_id": "0" * 24, "id": repo, "sha": _commit(folder), "lastModified": _DATE, "createdAt": _DATE}
    info |= {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [], "cardData": card}
    info["siblings"] = [{"rfilename": p.relative_to(folder).as_posix()} for p in _files(folder)]
    return info | ({"modelId": repo} if kind == "models" else {})


def _card(folder: Path) -> dict:
    """The YAML at the head of README.md."""
    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    match = re.match(r"---\n(.*?)\n---\n", readme.read_text(encoding="utf-8"), re.DOTALL)
    return yaml.safe_load(match[1]) if match else {}
