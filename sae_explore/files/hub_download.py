"""Files of the Hub, fetched so that a download which was broken off, or killed, goes on where it was.

The Hub's client starts from the beginning in a new process. Here a large file is fetched beside its place in the Hub's own cache
(`models--USER--NAME/blobs/ETAG`), checked, and renamed into it; the client then finds it there and only makes the link to it. Size and,
where the ETag is one, hash are compared, so nothing wrong is ever put there.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from sae_explore.errors import SourceError
from sae_explore.files.hub import byte_counter, hub_endpoint, is_timeout

_SMALL = 1 << 20  # bytes up to which a file is left to the client
_ATTEMPTS = 5  # of which each but the last may break off after some bytes, or time out
_PIECE = 1 << 18

Progress = Callable[[int, int], None]
"""(bytes so far, bytes in all), of all files together. Raising from it ends the download; what is there is kept."""


def list_files(repo: str, revision: str | None) -> list[str]:
    """The paths of a model repository's files. Inside `hub_access`, as all here: raises what the client raises."""
    from huggingface_hub import HfApi, constants

    info = HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)  # listing a tree would wait for ever
    return [file.rfilename for file in info.siblings or ()]


def fetch_files(repo: str, names: Sequence[str], *, revision: str | None, progress: Progress) -> Path:
    """Fetch these files of a model repository that are not in the Hub's cache yet; the folder in the cache that holds them all."""
    from huggingface_hub import snapshot_download

    counted = prefetch(repo, names, revision=revision, progress=progress)
    counter = byte_counter((lambda _done, _total: None) if counted else progress)  # small files after large ones would count back
    return Path(snapshot_download(repo, revision=revision, allow_patterns=[literally(name) for name in names], tqdm_class=counter))


def literally(name: str) -> str:
    """The pattern that matches this name alone."""
    return re.sub(r"([\[?*])", r"[\1]", name)


def prefetch(repo: str, names: Sequence[str], *, revision: str | None, progress: Progress) -> int:
    """Put the large ones of a model repository's files into the Hub's cache; how many bytes they have."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    blobs = Path(constants.HF_HUB_CACHE).expanduser() / f"models--{repo.replace('/', '--')}" / "blobs"
    found = [(name, get_hf_file_metadata(hf_hub_url(repo, name, revision=revision))) for name in names]
    large = [(name, m) for name, m in found if m.size and m.size > _SMALL and re.fullmatch(r"[\w.-]+", m.etag or "")]
    total, before = sum(m.size for _, m in large), 0
    for name, metadata in large:
        blobs.mkdir(parents=True, exist_ok=True)
        start = before
        _fetch(name, metadata.location, blobs / metadata.etag, metadata.size, lambda n, start=start: progress(start + n, total))
        before += metadata.size
    return total


def _fetch(name: str, url: str, target: Path, size: int, progress: Callable[[int], None]) -> None:
    if target.exists():
        return
    partial = target.with_name(target.name + ".sae-explore")
    with partial.open("ab+") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)  # another process may be fetching it
        if target.exists():
            partial.unlink(missing_ok=True)
            return
        if file.tell() > size:
            file.truncate(0)
        for attempt in range(_ATTEMPTS):
            had = file.seek(0, os.SEEK_END)
            try:
                _append(url, file, size, progress)
                break
            except OSError:
                raise
            except Exception as error:  # whatever HTTP library the client uses has its own
                if attempt == _ATTEMPTS - 1 or not (is_timeout(error) or file.seek(0, os.SEEK_END) > had):
                    raise
        _check(name, file, target.name, size)
        os.replace(partial, target)


def _append(url: str, file: BinaryIO, size: int, progress: Callable[[int], None]) -> None:
    """Fetch what is missing of a file and write it as it comes."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session

    have = file.seek(0, os.SEEK_END)
    progress(have)
    if have == size:
        return
    own = urlsplit(url).netloc == urlsplit(hub_endpoint()).netloc  # storage elsewhere has its right to the file in the address
    headers = {**(build_hf_headers() if own else {}), "Accept-Encoding": "identity", "Range": f"bytes={have}-"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT  # seconds without a byte; the client's session would wait for ever
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=timeout) as answer:
        answer.raise_for_status()
        if answer.status_code != 206 and have:  # it does not send parts
            file.truncate(0)
            have = 0
        for piece in answer.iter_bytes(_PIECE):
            file.write(piece)
            have += len(piece)
            progress(min(have, size))
    file.flush()


def _check(name: str, file: BinaryIO, etag: str, size: int) -> None:
    """SourceError, and nothing kept, for a file that is not what the Hub said it is."""
    has = file.seek(0, os.SEEK_END)
    digest = hashlib.sha256() if len(etag) == 64 else hashlib.sha1(f"blob {size}\0".encode()) if len(etag) == 40 else None
    file.seek(0)
    while digest and (piece := file.read(_PIECE)):
        digest.update(piece)
    if has != size or (digest and digest.hexdigest() != etag):
        file.truncate(0)
        raise SourceError(f"what came for {name} is not the file that the Hub named ({has:,} of {size:,} bytes); try again")
