"""The writing half of the loopback Hub: making repositories, and commits of regular and of large (LFS) files, as the real client asks.

The real Hub decides by a repository's `.gitattributes` which files are large; here the ending decides. A large file is sent to an address
of its own first, then named by its sha256 in the commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

LARGE = (".safetensors", ".parquet")
_PREUPLOAD = re.compile(r"/api/models/([^/]+/[^/]+)/preupload/main")
_COMMIT = re.compile(r"/api/models/([^/]+/[^/]+)/commit/main")
_BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
_OBJECT = re.compile(r"/lfs/([0-9a-f]{64})(/verify)?")


class Refused(Exception):
    """An answer with an error: status, code, message."""


def answer(hub, method: str, path: str, body: bytes, *, may_write: bool, commit_of) -> dict | None:
    """What a writing request gets as JSON; None if this is none of them. `commit_of(folder)` is a repository's commit."""
    if path == "/api/repos/create":
        return _create(hub, json.loads(body), may_write)
    if match := _OBJECT.fullmatch(path):
        return _object(hub, match[1], body, verify=bool(match[2]))
    for pattern, act in ((_PREUPLOAD, _preupload), (_BATCH, _batch), (_COMMIT, _commit)):
        if method == "POST" and (match := pattern.fullmatch(path)):
            repo = unquote(match[1])
            folder = hub.folder / "models" / repo
            if not folder.is_dir():
                raise Refused(404, "RepoNotFound", "Repository not found")
            if not may_write:
                raise Refused(403, "", "you may not write here")
            return act(hub, repo, folder, body, commit_of)
    return None


def _create(hub, asked: dict, may_write: bool) -> dict:
    repo = f"{asked['organization']}/{asked['name']}"
    if not may_write:
        raise Refused(403, "", "you may not create this repository")
    folder = hub.folder / "models" / repo
    if folder.exists():
        raise Refused(409, "", "You already created this model repo")
    folder.mkdir(parents=True)
    (folder / ".gitattributes").write_text("".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LARGE))
    if asked.get("visibility") == "private":
        hub.private.add(repo)
    return {"url": f"{hub.url}/{repo}", "id": "0" * 24, "name": repo}


def _preupload(_hub, _repo: str, folder: Path, body: bytes, _commit_of) -> dict:
    found = []
    for file in json.loads(body)["files"]:
        large, there = file["path"].endswith(LARGE), folder / file["path"]
        oid = (hashlib.sha256(there.read_bytes()).hexdigest() if large else _blob(there.read_bytes())) if there.is_file() else None
        found.append({"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
    return {"files": found}


def _batch(hub, _repo: str, _folder: Path, body: bytes, _commit_of) -> dict:
    objects = []
    for wanted in json.loads(body)["objects"]:
        href = f"{hub.url}/lfs/{wanted['oid']}"
        there = _store(hub, wanted["oid"]).is_file()
        actions = {} if there else {"actions": {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}}
        objects.append({"oid": wanted["oid"], "size": wanted["size"], **actions})
    return {"transfer": "basic", "objects": objects}


def _object(hub, oid: str, body: bytes, *, verify: bool) -> dict:
    if verify:
        if _store(hub, oid).stat().st_size != json.loads(body)["size"]:
            raise Refused(400, "", "the size differs")
    elif hashlib.sha256(body).hexdigest() != oid:
        raise Refused(400, "", "the contents are not what was announced")
    else:
        _store(hub, oid).parent.mkdir(parents=True, exist_ok=True)
        _store(hub, oid).write_bytes(body)
    return {}


def _commit(hub, repo: str, folder: Path, body: bytes, commit_of) -> dict:
    lines = [json.loads(line) for line in body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    if header.get("parentCommit", commit_of(folder)) != commit_of(folder):
        raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
    for line in lines:
        value, target = line["value"], folder / line["value"].get("path", "")
        if line["key"] == "file":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(base64.b64decode(value["content"]))
        elif line["key"] == "lfsFile":
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_store(hub, value["oid"]), target)
        elif line["key"] == "deletedFile":
            target.unlink()
    hub.commits.append((repo, header["summary"]))
    commit = commit_of(folder)
    return {"commitUrl": f"{hub.url}/{repo}/commit/{commit}", "commitOid": commit, "pullRequestUrl": None}


def _store(hub, oid: str) -> Path:
    return hub.folder / ".lfs" / oid


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
