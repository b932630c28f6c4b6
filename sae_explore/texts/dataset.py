"""The texts of a corpus: data sets of the Hub, own files, or the embedded corpus, cleaned and sampled in one pass.

Texts stay exactly as their source has them, with four exceptions, each counted in the notes: empty ones, exact copies of an
earlier one, and ones with a NUL or half a surrogate pair are left out; too long ones are shortened.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path

from sae_explore.errors import InputError, SourceError
from sae_explore.files.bundle_files import sha256_of
from sae_explore.files.hub import hub_problem
from sae_explore.texts.embedded import LICENCE, embedded_rows, embedded_sha256
from sae_explore.texts.hub_texts import open_hub_texts
from sae_explore.texts.text_files import MAX_TEXT, TextRow, read_rows
from sae_explore.texts.text_sampling import USABLE, Sieve, sample
from sae_explore.texts.text_specs import EMBEDDED, FileSpec, HubSpec, diverse_specs, parse_spec, text_stem
from sae_explore.types import Document

log = logging.getLogger(__name__)

HELD_OUT_ONE_IN = 50
DEFAULT_HUB_TEXTS = 1000  # of a data set that could go on for hours
_HUB_ROWS_PER_TEXT = 10  # rows fetched at most per text wanted, should most of them be unusable
Report = Callable[[str], None]


@dataclass(frozen=True)
class SourceInfo:
    """A file, a data set or the embedded corpus, and what is known about it."""

    spec: str  # what names it for `load_texts`
    name: str
    texts: int = 0  # that it contributes
    revision: str = ""  # commit of a data set
    sha256: str = ""  # of a file
    licence: str = ""


@dataclass(frozen=True)
class LoadedTexts:
    """A corpus. `notes` are sentences for people: what was left out, shortened, skipped or replaced."""

    documents: tuple[Document, ...]
    notes: tuple[str, ...]
    sources: tuple[SourceInfo, ...]


def load_texts(
    specs: Sequence[str],
    *,
    per_source: int | None = None,
    max_texts: int | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> LoadedTexts:
    """Read the texts that `specs` names (see `text_specs` for what it may hold). `report` gets a line per source and note.

    Documents keep the order of `specs` and of their source. Where `per_source`, `n=` or `max_texts` leave some out, a file and
    the embedded corpus give a sample drawn with `seed`, a data set of the Hub its first texts (1,000 if nothing says how many);
    `max_texts` then samples over all. If none of `diverse` can be had, the embedded corpus takes its place and a note says so.

    ids are unique: `STEM/ROW` for files (`STEM/ID` with a column `id`), `USER/NAME/ROW` for data sets, `embedded/CATEGORY/NNN`.
    Rows count from 0; a further source of the same name is called `NAME~2`.

    Raises InputError for a wrong specification or file and for a corpus without texts, SourceError for what cannot be reached.
    """
    for name, value in (("per_source", per_source), ("max_texts", max_texts)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    if not specs:
        raise InputError("no texts are named; give embedded, diverse, hf:NAME or files")
    parsed = [parse_spec(spec) for spec in specs]
    loader = _Loader(per_source, max_texts, seed, report)
    kept = list(sample(loader.documents(parsed), max_texts, random.Random(seed)))
    if not kept:
        raise InputError(f"there is no usable text in {', '.join(specs)}" + "".join(f"; {note}" for note in loader.notes))
    counts = Counter(index for index, _ in kept)
    sources = tuple(replace(info, texts=counts[index]) for index, info in enumerate(loader.sources))
    return LoadedTexts(tuple(document for _, document in kept), tuple(loader.notes), sources)


def is_held_out(text: str) -> bool:
    """Whether a text is kept for evaluation and never trained on: its sha256 is a multiple of 50."""
    return int(hashlib.sha256(text.encode("utf-8")).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def split_held_out(documents: Iterable[Document]) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """(for training, held out), both in order."""
    train, held_out = [], []
    for document in documents:
        (held_out if is_held_out(document.text) else train).append(document)
    return tuple(train), tuple(held_out)


class _Loader:
    """One call of `load_texts`: what it has seen and noted so far."""

    def __init__(self, per_source: int | None, max_texts: int | None, seed: int, report: Report | None):
        self.per_source, self.max_texts, self.seed, self.report = per_source, max_texts, seed, report or log.info
        self.notes: list[str] = []
        self.sources: list[SourceInfo] = []
        self._sieve = Sieve()
        self._prefixes: set[str] = set()
        self._ids: set[str] = set()

    def documents(self, parsed: Sequence[str | HubSpec | FileSpec]) -> Iterator[tuple[int, Document]]:
        """(index of the source, document), read as it is asked for."""
        for spec in parsed:
            if isinstance(spec, FileSpec):
                for path in spec.paths:
                    yield from self._file(spec, path)
            elif isinstance(spec, HubSpec):
                yield from self._hub(spec)
            elif spec == EMBEDDED:
                yield from self._embedded()
            else:
                yield from self._diverse(instead=EMBEDDED not in parsed)

    def _file(self, spec: FileSpec, path: Path) -> Iterator[tuple[int, Document]]:
        self.report(f"reading {path.name}")
        try:
            info = SourceInfo(spec.spec, path.name, sha256=sha256_of(path))
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
        stem = text_stem(path.name)
        yield from self._take(info, stem, _file_rows(path, spec.column), source=path.name, category=stem, n=spec.n, chars=spec.chars)

    def _hub(self, spec: HubSpec) -> Iterator[tuple[int, Document]]:
        self.report(f"fetching {spec.name}")
        opened = open_hub_texts(spec)
        info = SourceInfo(spec.spec, spec.name, revision=opened.revision, licence=opened.licence)
        n = min((value for value in (spec.n, self.per_source) if value is not None), default=None)
        limit = n or self.max_texts or DEFAULT_HUB_TEXTS
        rows = islice(opened.rows, _HUB_ROWS_PER_TEXT * limit)
        if spec.category is not None:
            rows = (row._replace(category=spec.category) for row in rows)
        taken = 0
        for item in self._take(info, spec.name, rows, source=spec.name, category=spec.name, first=limit, chars=spec.chars):
            taken += 1
            yield item
        if taken == limit and n is None and self.max_texts is None:
            self._note(f"{spec.name}: the first {limit:,} texts; say n= for more")

    def _embedded(self) -> Iterator[tuple[int, Document]]:
        self.report("reading the embedded corpus")
        info = SourceInfo(EMBEDDED, EMBEDDED, sha256=embedded_sha256(), licence=LICENCE)
        yield from self._take(info, EMBEDDED, embedded_rows(), source=EMBEDDED, category=EMBEDDED)

    def _diverse(self, *, instead: bool) -> Iterator[tuple[int, Document]]:
        """The data sets that can be had; the embedded corpus, if wanted, where there are none."""
        reason, found = hub_problem(), False
        for spec in [] if reason else diverse_specs():
            sources = len(self.sources)
            try:
                items = list(self._hub(replace(spec, n=self.per_source or spec.n)))
            except (InputError, SourceError) as error:
                del self.sources[sources:]
                self._note(f"{spec.name} ({spec.category}) is left out: {error}")
                continue
            found = found or bool(items)
            yield from items
        if not found:
            self._note(f"none of the diverse data sets can be had ({reason or 'see above'}): the embedded corpus takes their place")
            if instead:
                yield from self._embedded()

    def _take(
        self,
        info: SourceInfo,
        name: str,
        rows: Iterable[TextRow],
        *,
        source: str,
        category: str,
        n: int | None = None,
        first: int | None = None,
        chars: int | None = None,
    ) -> Iterator[tuple[int, Document]]:
        """Documents of one source: cleaned, then the `first` of them or a sample of at most `n`."""
        prefix = next(p for p in chain([name], (f"{name}~{i}" for i in count(2))) if p not in self._prefixes)
        self._prefixes.add(prefix)
        index = len(self.sources)
        self.sources.append(info)
        counts: Counter[str] = Counter()
        usable = self._sieve.usable(rows, min(chars or MAX_TEXT, MAX_TEXT), counts)
        if first is None:
            limit = min((value for value in (n, self.per_source) if value is not None), default=None)
            taken = sample(usable, limit, random.Random(f"{self.seed}/{prefix}"))
        else:
            taken = islice(usable, first)
        for row in taken:
            yield index, Document(self._id(prefix, row), row.source or source, row.category or category, row.text)
        found = [f"{number:,} {what}" for what, number in counts.items() if what != USABLE]
        if found:
            self._note(f"{info.name}: {', '.join(found)}")
        if not counts[USABLE]:
            self._note(f"{info.name} has no usable text")

    def _id(self, prefix: str, row: TextRow) -> str:
        name = f"{prefix}/{row.id or row.number}"
        while name in self._ids:
            name += f"~{row.number}"
        self._ids.add(name)
        return name

    def _note(self, note: str) -> None:
        self.notes.append(note)
        self.report(note)


def _file_rows(path: Path, column: str | None) -> Iterator[TextRow]:
    try:
        with path.open("rb") as file:
            yield from read_rows(file, str(path), column=column)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
