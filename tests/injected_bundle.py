"""A bundle by somebody who means harm: a tiny one that is sound in every number, and in which every text is one of `injections`.

Each string is a whole token, a document's category, id and source, an entry of the vocabulary and a feature's automatic label; they stand in the
manifest, in what was checked by hand, and in the visitor's own labels and lists too.
"""

import json
from itertools import cycle, islice
from pathlib import Path
from shutil import copytree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from injections import INJECTIONS, LONG, groups, short

from sae_explore.bundles.bundle import DOCUMENTS_FILE, FEATURES_FILE, LENS_FILE, TOKENS_FILE, VOCABULARY_FILE, open_bundle
from sae_explore.files.bundle_files import MAP_FILE, publish
from sae_explore.files.tensor_file import read_tensors, write_tensors
from sae_explore.notebook import notes
from sae_explore.notebook.notes_store import FileStore

STRINGS = (*INJECTIONS, *LONG)
N = len(STRINGS)
GROUPED = groups(700)  # labels of the first features: all strings in few labels
CURATED = len(GROUPED) + 40  # the first feature with a label given by hand
OWN = CURATED + 40  # ... and with a label of the visitor's own
LIST = "<b>inj</b> ![](//injected.invalid) $inj$ `inj` :skull:"


def taken(n: int, strings=STRINGS, *, start: int = 0) -> list[str]:
    """`n` strings, over and over."""
    return list(islice(cycle(strings), start, start + n))


def injected(cache: Path, source: str, name: str) -> None:
    """Write bundle `name` from the sound bundle `source` of this cache."""
    bundle = open_bundle(source, cache=cache)
    work = cache / f".{name}"
    copytree(bundle.files, work)
    counts = np.diff(bundle.doc_offsets)
    texts, ends = [], []
    for row, n in enumerate(counts.tolist()):
        tokens = taken(n, INJECTIONS, start=7 * row)
        if row < len(LONG):
            tokens[n // 2] = LONG[row]
        texts.append("".join(tokens))
        ends.append(np.cumsum([len(token) for token in tokens]))
    documents = len(counts)
    ids = [f"{i} {string}"[:300] for i, string in enumerate(taken(documents))]
    categories = taken(documents)
    columns = {"id": ids, "source": taken(documents, start=1), "category": categories, "text": texts}
    pq.write_table(pa.table({key: pa.array(values, pa.string()) for key, values in columns.items()}), work / DOCUMENTS_FILE)
    _tensors(work / TOKENS_FILE, char_ends=np.concatenate(ends).astype(np.uint32))
    _vocabulary(work / VOCABULARY_FILE)
    _lens(work / LENS_FILE, len(bundle.vocabulary))
    _features(work / FEATURES_FILE)
    _tensors(work / "features.safetensors", categories=_spread(bundle, N))
    angle = np.arange(bundle.d_sae) * 2.4
    write_tensors(
        work / MAP_FILE,
        {"xy": (np.stack([np.cos(angle), np.sin(angle)], 1) * np.linspace(0.1, 1, bundle.d_sae)[:, None]).astype(np.float16)},
    )
    publish(work, cache / name, _manifest(bundle.manifest))
    _by_hand(cache / name, open_bundle(name, cache=cache).files.name, ids)
    _own(cache, name)


def _tensors(path: Path, **changed: np.ndarray) -> None:
    arrays = {key: np.array(array) for key, array in read_tensors(path).items()} | changed
    write_tensors(path, arrays)


def _spread(bundle, n: int) -> np.ndarray:
    """Firings by category: each feature fires most in other ones, so that charts which show the first dozen come to show all."""
    at = (np.arange(n)[None] - 11 * np.arange(bundle.d_sae)[:, None]) % n
    return np.maximum(1, 40 - at).astype(np.uint32)


def _vocabulary(path: Path) -> None:
    special = np.array(read_tensors(path)["special"])
    pieces = [string.encode() for string in taken(len(special), INJECTIONS)]
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.uint32)
    _tensors(path, blob=np.frombuffer(b"".join(pieces), np.uint8), offsets=offsets)


def _lens(path: Path, vocabulary: int) -> None:
    """The lists go through the vocabulary, feature by feature."""
    found = {}
    for name, ids in read_tensors(path).items():
        if name.endswith("_ids"):
            found[name] = (np.arange(ids.size).reshape(ids.shape) % vocabulary).astype(ids.dtype)
    _tensors(path, **found)


def _features(path: Path) -> None:
    table = pq.read_table(path)
    n = table.num_rows
    labels = [*GROUPED, LONG[0], LONG[3], *taken(n, INJECTIONS)][:n]
    words = {"label": labels, "peak_token": taken(n), "lens_tokens": [" · ".join(taken(5, INJECTIONS, start=i)) for i in range(n)],
             "meaning_words": taken(n, start=3), "topic_words": taken(n, start=5)}  # fmt: skip
    for name, values in words.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
    pq.write_table(table, path)


def _manifest(manifest: dict) -> dict:
    """Every fact that is a text, as one or another of the strings."""
    manifest = json.loads(json.dumps(manifest))
    said = groups(400)
    source = [{"spec": s, "name": s, "texts": 3, "licence": t, "revision": u, "sha256": u}
              for s, t, u in zip(taken(N), taken(N, start=1), taken(N, start=2), strict=True)]  # fmt: skip
    manifest["units"] = said[0]
    manifest["model"] |= {"display": said[1], "licence": said[2], "revision": said[3]}
    manifest["sae"] |= {"source": said[4], "notes": said, "architecture": f"topk {said[5]}"}
    manifest["corpus"] |= {"texts": said, "categories": list(STRINGS), "category_share": dict.fromkeys(STRINGS, 1 / N), "sources": source,
                           "train_sources": source[::-1], "notes": said}  # fmt: skip
    figures = next(iter(manifest["metrics"]["by_category"].values()))
    manifest["metrics"] |= {"evaluated_on": said[6], "evaluated_set": said[7], "by_category": dict.fromkeys(STRINGS, figures)}
    manifest["warnings"] = list(STRINGS)
    return manifest


def _by_hand(folder: Path, generation: str, ids: list[str]) -> None:
    labels, themes, titles, said = (cycle(short(most, printable=True)) for most in (60, 24, 40, 200))
    features = [{"feature": CURATED + i, "label": next(labels), "theme": next(themes), "note": next(said)} for i in range(40)]
    listed = [id for id in ids if id.isprintable()][:24]
    texts = [{"document": id, "title": next(titles), "note": next(said), "features": [CURATED + i, i]} for i, id in enumerate(listed)]
    (folder / "showcase.json").write_text(json.dumps({"checked_for": generation, "features": features, "texts": texts}))


def _own(cache: Path, name: str) -> None:
    bundle = open_bundle(name, cache=cache)
    store = FileStore(cache, name, notes.sae_of(bundle.manifest), bundle.d_sae)
    said, names = groups(900, between="\n"), cycle(short(60))
    labels = short(120)[: bundle.d_sae - OWN]

    def edit(found: notes.Notes) -> notes.Notes:
        for i, label in enumerate(labels):
            found = notes.with_label(found, OWN + i, label, said[i % len(said)])
        for i in range(12):
            found = notes.with_list(found, f"{i} {next(names)}"[:60], note=said[i % len(said)])
        entries = [notes.Entry(f, said[f % len(said)]) for f in range(0, bundle.d_sae, 2)]
        return notes.with_list(found, LIST, note=said[0], entries=entries)

    store.change(edit)
