"""Texts of a data set on the Hugging Face Hub, read as they come: only the parts of its files that hold them are fetched.

`datasets` says which files make up a configuration and split; the files themselves are read here, row by row, because its
own streaming fetches 32 MB at a time and leaves threads behind that abort the interpreter when a stream is left early.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

from sae_explore.errors import InputError, SourceError
from sae_explore.files.hub import hub_access, one_line
from sae_explore.texts.text_files import TextRow, read_rows
from sae_explore.texts.text_specs import PARQUET, HubSpec, text_format

_BLOCK = 1 << 20  # bytes fetched ahead
_HF = "hf://"
_CONVERTED = "try revision=refs/convert/parquet, the Hub's own conversion"


@dataclass(frozen=True)
class HubTexts:
    """An opened data set; its rows are fetched while they are read."""

    revision: str  # the commit
    licence: str  # as its card says, "" if it does not
    rows: Iterator[TextRow]


def open_hub_texts(spec: HubSpec) -> HubTexts:
    """Find the commit and the files of a data set. Rows count through all files of the split; category is a class name or "".

    Raises SourceError if the Hub or the data set cannot be reached or read, InputError if the split or column is not there;
    reading the rows can raise the same.
    """
    what = f"the data set {spec.name}"
    with hub_access(what):
        from datasets import load_dataset_builder
        from huggingface_hub import HfApi

        info = HfApi().dataset_info(spec.name, revision=spec.revision, timeout=10)
        try:
            builder = load_dataset_builder(spec.name, spec.config, revision=info.sha)
        except RuntimeError as error:  # it needs a loading script
            raise SourceError(f"{what} is not read here: {one_line(error)}; {_CONVERTED}") from error
        splits = builder.config.data_files or {}
        if spec.split not in splits:
            raise InputError(f"{what} has no split {spec.split!r}; it has {', '.join(map(str, splits)) or 'none'}")
        paths = [str(path) for path in splits[spec.split]]
    for path in paths:
        _check_path(what, path)
    licence = (info.card_data or {}).get("license") or ""
    return HubTexts(info.sha, licence if isinstance(licence, str) else ", ".join(map(str, licence)), _rows(spec, what, paths))


def _check_path(what: str, path: str) -> None:
    try:
        text_format(path)
    except InputError as error:
        raise SourceError(f"{what}: {error}; {_CONVERTED}") from error
    if not path.startswith(_HF) or "::" in path:
        raise SourceError(f"{what} keeps its texts outside its repository, in {path[:100]}, which is not read here")


def _rows(spec: HubSpec, what: str, paths: list[str]) -> Iterator[TextRow]:
    with hub_access(what):
        from huggingface_hub import HfFileSystem

        files = HfFileSystem()
        number = 0
        for path in paths:
            with files.open(path, "rb", block_size=_BLOCK) as raw:
                file = raw if text_format(path) == PARQUET else io.BufferedReader(raw, _BLOCK)
                for row in read_rows(file, path.rpartition("/")[2], column=spec.column):
                    category = "" if row.category.lstrip("-").isdigit() else row.category  # a class without a name
                    yield TextRow(number, row.text, category=category)
                    number += 1
