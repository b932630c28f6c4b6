"""What `--texts` accepts, read into plain dataclasses: no file is opened and no host is asked here.

embedded    the texts that come with the program
diverse     200 texts each of news, reviews, abstracts and an encyclopedia, from the Hub
hf:NAME     a data set of the Hub; options ?config=C&split=S&column=COL&n=N&chars=L&revision=R
PATH        a file or glob: .txt, .csv, .tsv, .jsonl, .json (each also .gz), .parquet; options ?column=COL&n=N&chars=L

`n` takes so many texts of a file or data set; `chars` shortens each text to so many characters.
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl

from sae_explore.errors import InputError

EMBEDDED = "embedded"
DIVERSE = "diverse"
# Sets that need no loading script. The labelled splits of imdb are sorted by label, its unlabelled one is mixed; articles of
# the encyclopedia are cut to about the length of the other texts, or they would be nine tenths of the corpus.
DIVERSE_SETS = {
    "news": "hf:fancyzhx/ag_news?column=text&n=200",
    "reviews": "hf:stanfordnlp/imdb?split=unsupervised&column=text&n=200",
    "science": "hf:gfissore/arxiv-abstracts-2021?column=abstract&n=200",
    "encyclopedia": "hf:wikimedia/wikipedia?config=20231101.en&column=text&n=200&chars=2000",
}
HUB_PREFIX = "hf:"
PARQUET = ".parquet"
_TEXT_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".json")
TYPES = ".txt, .csv, .tsv, .jsonl, .json with an object a line (also .gz) or .parquet"
_ALLOWED = f"embedded, diverse, hf:NAME, or a file or glob of {TYPES}"

_FILE_OPTIONS = ("column", "n", "chars")
_HUB_OPTIONS = ("config", "split", "column", "n", "chars", "revision")
_NUMBERS = ("n", "chars")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_OPTIONS_START = re.compile(r"\?(?=\w+=)")  # a glob may hold a question mark of its own


@dataclass(frozen=True)
class FileSpec:
    """Local files that one specification names, all read with the same options."""

    spec: str
    paths: tuple[Path, ...]
    column: str | None = None
    n: int | None = None  # at most so many texts of each file, a seeded sample
    chars: int | None = None  # each text shortened to at most so many characters


@dataclass(frozen=True)
class HubSpec:
    """A data set of the Hub."""

    spec: str
    name: str
    config: str | None = None
    split: str = "train"
    column: str | None = None
    n: int | None = None  # the first so many texts
    chars: int | None = None
    revision: str | None = None
    category: str | None = None  # for all texts; None takes it from the data


def parse_spec(spec: str) -> str | HubSpec | FileSpec:
    """EMBEDDED, DIVERSE, a data set, or files that exist; InputError says what is wrong with anything else."""
    spec = spec.strip()
    if not spec:
        raise InputError(f"a name of texts is empty; texts can be {_ALLOWED}")
    if spec in (EMBEDDED, DIVERSE):
        return spec
    return parse_hub_spec(spec) if spec.startswith(HUB_PREFIX) else parse_file_spec(spec)


def diverse_specs() -> list[HubSpec]:
    """The data sets of the preset `diverse`."""
    return [replace(parse_hub_spec(spec), category=category) for category, spec in DIVERSE_SETS.items()]


def parse_hub_spec(spec: str) -> HubSpec:
    """Read `hf:NAME?config=C&split=S&column=COL&n=N&chars=L&revision=R`; InputError names what is wrong."""
    name, _, query = spec.removeprefix(HUB_PREFIX).partition("?")
    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"{name!r} in {spec!r} is no name of a Hub data set; write hf:USER/NAME or hf:NAME")
    return HubSpec(spec=spec, name=name, **_options(spec, query, _HUB_OPTIONS))


def parse_file_spec(spec: str) -> FileSpec:
    """Find the files of a path or glob; InputError if there are none, or one is not of a known type."""
    pattern, options = spec, {}
    if not _exists(_expand(spec)) and (start := _OPTIONS_START.search(spec)):
        pattern, options = spec[: start.start()], _options(spec, spec[start.end() :], _FILE_OPTIONS)
    path = _expand(pattern)
    if _exists(path):
        paths = [path]
    elif any(mark in pattern for mark in "*?["):
        paths = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if not Path(p).is_dir()]
        if not paths:
            raise InputError(f"no file matches {pattern!r}")
    else:
        raise InputError(f"there is no file {pattern!r}; texts can be {_ALLOWED}")
    for found in paths:
        if found.is_dir():
            raise InputError(f"{pattern!r} is a directory; name its files, as in '{pattern.rstrip('/')}/*.txt'")
        if not found.is_file():
            raise InputError(f"{str(found)!r} is no regular file")
        text_format(found.name)
    return FileSpec(spec=spec, paths=tuple(paths), **options)


def text_format(name: str) -> str:
    """Type of a file by its name: .txt, .csv, .tsv, .jsonl (`.gz` set aside) or .parquet. InputError for any other."""
    suffix = Path(name.removesuffix(".gz")).suffix.lower()
    if suffix not in _TEXT_SUFFIXES and not (suffix == PARQUET and not name.endswith(".gz")):
        raise InputError(f"{Path(name).name!r} is of no type that is read here: {TYPES}")
    return ".jsonl" if suffix == ".json" else suffix


def text_stem(name: str) -> str:
    """Name of a file without folder and type."""
    return Path(Path(name).name.removesuffix(".gz")).stem


def _expand(name: str) -> Path:
    return Path(os.path.expanduser(name))  # the method of Path raises for an unknown user


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False


def _options(spec: str, query: str, allowed: tuple[str, ...]) -> dict[str, str | int]:
    options: dict[str, str | int] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in allowed:
            raise InputError(f"{key!r} in {spec!r} is not known; allowed are {', '.join(allowed)}")
        if key in options or not value:
            raise InputError(f"{key!r} in {spec!r} needs one value")
        options[key] = _positive(spec, key, value) if key in _NUMBERS else value
    return options


def _positive(spec: str, key: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 9 and int(value) > 0):
        raise InputError(f"{key}={value[:40]} in {spec!r} must be a whole number of at least 1")
    return int(value)
