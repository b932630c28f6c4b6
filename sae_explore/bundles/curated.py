"""What a person has checked by hand in a bundle: `showcase.json` beside its manifest. Written by hand, and optional.

{"checked_for": "g-0123456789ab",    the generation folder that the manifest names: another SAE must not inherit these labels
 "features": [{"feature": 12, "label": "days of the week", "theme": "Time", "note": "what to look at"}],
 "texts": [{"document": "embedded/arts/003", "title": "Two meanings of bank", "note": "what it shows", "features": [12, 99]}]}

`note` may be left out everywhere, and so may `features` of a text. Themes and texts keep the order of the file. Nothing in the
file can break a page: an entry that is wrong is left out and the log says why; a file that is wrong counts as none.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

FILE = "showcase.json"
MAX_BYTES = 1 << 18
MAX_FEATURES, MAX_TEXTS, MAX_LOOK_AT = 400, 24, 4
_LENGTHS = {"label": 60, "theme": 24, "title": 40, "note": 200}  # characters


@dataclass(frozen=True)
class CuratedFeature:
    """A feature with the label that a person gave it after reading its examples."""

    feature: int
    label: str
    theme: str
    note: str = ""


@dataclass(frozen=True)
class CuratedText:
    """A stored text that shows something, and the features to look at, the first one first."""

    document: int  # row of the documents table
    id: str
    title: str
    note: str = ""
    features: tuple[int, ...] = ()


@dataclass(frozen=True)
class Curated:
    """All of it; empty where there is no file, or one that cannot be used, and `problem` says why in a sentence."""

    features: tuple[CuratedFeature, ...] = ()
    texts: tuple[CuratedText, ...] = ()
    problem: str = field(default="", compare=False)


class _Wrong(Exception):
    """Why an entry, or the whole file, is left out."""


def read_curated(folder: Path, *, generation: str, d_sae: int, find_document: Callable[[str], int | None]) -> Curated:
    """The checked entries of a bundle folder's showcase.json. Never raises: what cannot be used is left out with a logged warning."""
    path = folder / FILE
    if not path.exists():
        return Curated()
    try:
        found = _read(path, generation)
        features = _entries(found, "features", MAX_FEATURES, lambda entry: _feature(entry, d_sae), key=lambda f: f.feature)
        texts = _entries(found, "texts", MAX_TEXTS, lambda entry: _text(entry, d_sae, find_document), key=lambda t: t.document)
    except _Wrong as why:
        problem = f"the {FILE} of bundle {folder.name!r} is passed over: {why}; mend it, or move it away"
        log.warning("%s", problem)
        return Curated(problem=problem)
    return Curated(features, texts)


def _read(path: Path, generation: str) -> dict:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise _Wrong(f"it is larger than {MAX_BYTES:,} bytes")
        found = json.loads(data.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, a number of thousands of digits
        raise _Wrong(f"it cannot be read ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise _Wrong("it holds no JSON object")
    if found.get("checked_for") != generation:
        raise _Wrong(f"its labels were checked for {_shown(found.get('checked_for'))}, and the bundle now is {generation!r}")
    return found


def _entries(found: dict, name: str, most: int, parse, *, key) -> tuple:
    """The entries of a list that hold, each key once."""
    listed = found.get(name, [])
    if not isinstance(listed, list):
        raise _Wrong(f"its {name} are no list")
    kept = {}
    for number, entry in enumerate(listed):
        try:
            if not isinstance(entry, dict):
                raise _Wrong("it is no object")
            made = parse(entry)
            if key(made) in kept:
                raise _Wrong("it was there before")
            if len(kept) == most:
                raise _Wrong(f"there are {most} already")
            kept[key(made)] = made
        except _Wrong as why:
            log.warning("%s: entry %d of %s is left out: %s", FILE, number, name, why)
    return tuple(kept.values())


def _feature(entry: dict, d_sae: int) -> CuratedFeature:
    return CuratedFeature(
        _number(entry.get("feature"), d_sae), _string(entry, "label"), _string(entry, "theme"), _string(entry, "note", optional=True)
    )


def _text(entry: dict, d_sae: int, find_document: Callable[[str], int | None]) -> CuratedText:
    document_id = entry.get("document")
    row = find_document(document_id) if isinstance(document_id, str) else None
    if row is None:
        raise _Wrong(f"there is no document {_shown(document_id)}")
    listed = entry.get("features", [])
    if not isinstance(listed, list) or len(listed) > MAX_LOOK_AT:
        raise _Wrong(f"its features are no list of at most {MAX_LOOK_AT}")
    features = tuple(dict.fromkeys(_number(feature, d_sae) for feature in listed))
    return CuratedText(row, document_id, _string(entry, "title"), _string(entry, "note", optional=True), features)


def _number(value: object, d_sae: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < d_sae:
        raise _Wrong(f"{_shown(value)} is no feature from 0 to {d_sae - 1}")
    return value


def _string(entry: dict, name: str, *, optional: bool = False) -> str:
    """One line of characters that can be seen, of bounded length."""
    value = entry.get(name, "")
    if not isinstance(value, str) or not value.isprintable():
        raise _Wrong(f"its {name} is no line of text")
    value = " ".join(value.split())
    if len(value) > _LENGTHS[name] or not (value or optional):
        raise _Wrong(f"its {name} has {len(value)} characters, allowed are 1 to {_LENGTHS[name]}")
    return value


def _shown(value: object) -> str:
    """A wrong value for the log: short, and nothing that is nested."""
    return repr(value[:40]) if isinstance(value, str) else str(value)[:40] if isinstance(value, int | float) else type(value).__name__
