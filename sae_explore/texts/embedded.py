"""The corpus that comes with the program: `corpus/CATEGORY.txt`, entries `=== register` followed by the text."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path

from sae_explore.texts.text_files import TextRow

CORPUS = Path(__file__).resolve().parent / "corpus"
LICENCE = "written for this project, under its licence"
_ENTRY = re.compile(r"^=== *(.+?) *$", re.MULTILINE)


@lru_cache(maxsize=1)
def embedded_rows() -> tuple[TextRow, ...]:
    """All embedded texts: id `CATEGORY/NNN` (from 000), source = register, category = name of the file."""
    rows: list[TextRow] = []
    for path in sorted(CORPUS.glob("*.txt")):
        _, *entries = _ENTRY.split(path.read_text(encoding="utf-8"))
        for number, (register, text) in enumerate(zip(entries[::2], entries[1::2], strict=True)):
            rows.append(TextRow(len(rows), text.strip("\n"), id=f"{path.stem}/{number:03d}", source=register, category=path.stem))
    return tuple(rows)


@lru_cache(maxsize=1)
def embedded_sha256() -> str:
    """Hash over the files of the corpus, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(CORPUS.glob("*.txt")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
