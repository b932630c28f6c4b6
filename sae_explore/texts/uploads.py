"""Texts that a visitor uploads for a build: read through once, before anything is started, then kept in `cache/uploads/BUNDLE/HASH/FILE`.

The hash in the path makes a changed file another file: a build that goes on never mixes two of them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from sae_explore.errors import InputError
from sae_explore.files.bundle_files import check_name, is_device
from sae_explore.texts.text_files import Limits, read_rows
from sae_explore.texts.text_specs import text_format

UPLOADS = "uploads"  # folder of the cache
MAX_FILE_MB, MAX_ALL_MB = 50, 200
MAX_ROWS = 2_000_000  # lines or rows of a file: reading so many takes seconds
_MAX_UNPACKED = 1_000_000_000  # bytes
_MAX_CHARACTERS = 1_000_000_000  # of the texts of a file
_PIECE = 1 << 20


@dataclass(frozen=True)
class Upload:
    """A file that can be read as texts."""

    name: str  # safe as a file name
    file: BinaryIO
    size: int
    digest: str  # beginning of its sha256
    texts: int
    characters: int
    column: str | None = None

    def spec(self, bundle: str) -> str:
        """How a build asks for these texts, seen from the cache folder."""
        path = f"{UPLOADS}/{check_name(bundle)}/{self.digest}/{self.name}"
        return f"{path}?column={quote(self.column)}" if self.column else path

    def save(self, cache: Path, bundle: str) -> None:
        """Copy it to where `spec` says."""
        target = cache / UPLOADS / check_name(bundle) / self.digest / self.name
        target.parent.mkdir(parents=True, exist_ok=True)
        self.file.seek(0)
        partial = target.with_name(target.name + ".partial")
        try:
            with partial.open("wb") as out:
                shutil.copyfileobj(self.file, out, _PIECE)
            os.replace(partial, target)
        except OSError:  # a full disk: no half of a file under the name that a build reads
            partial.unlink(missing_ok=True)
            raise


def check_upload(name: str, file: BinaryIO, *, column: str | None = None) -> Upload:
    """Read a file through; InputError says what is wrong with it, naming it as the visitor does.

    `column` holds the texts of files that have columns; None finds it.
    """
    shown, size = "".join(c for c in Path(name).name if c.isprintable())[-80:] or "the file", _size(file)
    kind = text_format(shown)
    if size > MAX_FILE_MB << 20:
        raise InputError(f"{shown} has {size >> 20} MB, the limit of a file is {MAX_FILE_MB} MB; split it, or build in the terminal")
    column = column if kind != ".txt" else None
    file.seek(0)
    texts = characters = 0
    for row in read_rows(file, shown, column=column, limits=Limits(MAX_ROWS, _MAX_UNPACKED)):
        if row.text and row.text.strip():
            texts, characters = texts + 1, characters + len(row.text)
        if characters > _MAX_CHARACTERS:
            raise InputError(f"{shown} holds more than {_MAX_CHARACTERS:,} characters; split it, or build in the terminal")
    if not texts:
        raise InputError(f"{shown} holds no text")
    file.seek(0)
    return Upload(safe_name(shown), file, size, hashlib.file_digest(file, "sha256").hexdigest()[:12], texts, characters, column)


def check_total(uploads: list[Upload]) -> None:
    """InputError for more than may be uploaded at once."""
    total = sum(upload.size for upload in uploads)
    if total > MAX_ALL_MB << 20:
        raise InputError(f"the files have {total >> 20} MB together, the limit is {MAX_ALL_MB} MB; take fewer, or build in the terminal")


def safe_name(name: str) -> str:
    """A file's name in letters, digits, dots, dashes and underscores, its type kept."""
    ending = re.search(r"(\.\w{2,8}){1,2}$", name, re.ASCII)
    stem = re.sub(r"[^\w-]+", "_", name[: ending.start()] if ending else name, flags=re.ASCII).strip("_-")[:60]
    return ("texts" if not stem or is_device(stem) else stem) + (ending[0] if ending else "")


def _size(file: BinaryIO) -> int:
    return file.seek(0, 2)
