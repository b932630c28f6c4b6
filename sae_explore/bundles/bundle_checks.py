"""Whether a bundle's files mean what the program takes them to mean: each fact of the manifest of its kind, each index inside what it points into.

Hashes say that files are as they were written; these checks also hold for a bundle that somebody else wrote, or wrote wrongly. All of a
small file is looked at at each opening; the lists of a large one, which are as long as the corpus, once, when it is hashed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_explore.activations.feature_stats import NONE
from sae_explore.errors import BundleError, InputError
from sae_explore.files.bundle_files import AGAIN, MANIFEST
from sae_explore.files.tensor_file import release
from sae_explore.types import HookPoint

if TYPE_CHECKING:
    import pyarrow as pa

    from sae_explore.activations.activation_store import ActivationStore
    from sae_explore.models.tokens import Vocabulary

_MAX_SIDE = 1 << 24  # latents, dimensions, tokens of a window
_INFINITY = 0x7C00  # the bits of fp16's
_STEP = 1 << 20  # numbers looked at at once

# ---- the manifest ------------------------------------------------------------------------------------------------------

Kind = Callable[[object], bool] | Mapping[str, Any]
"""What a fact must be: a test, or an object with these facts and perhaps others."""


def _text(value: object) -> bool:
    return isinstance(value, str)


def _number(value: object) -> bool:
    """NaN counts: some figures are not defined for some texts."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _side(value: object) -> bool:
    return type(value) is int and 1 <= value <= _MAX_SIDE


def _positive(value: object) -> bool:
    return _number(value) and math.isfinite(value) and value > 0


def _hook(value: object) -> bool:
    try:
        return isinstance(value, str) and HookPoint.parse(value).name == value
    except InputError:
        return False


def _maybe(kind: Kind) -> Kind:
    return lambda value: value is None or _wrong(value, kind) is None


def _each(kind: Kind) -> Kind:
    return lambda value: isinstance(value, list) and all(_wrong(item, kind) is None for item in value)


def _table(kind: Kind) -> Kind:
    return lambda value: isinstance(value, dict) and all(_wrong(item, kind) is None for item in value.values())


_SOURCES = _each({"name": _text, "texts": _count, "licence": _maybe(_text), "revision": _maybe(_text), "sha256": _maybe(_text)})
_BY_CATEGORY = _table({"tokens": _count, "explained_variance": _number, "l0": _number})
CROSS_ENTROPIES = ("ce_clean", "ce_sae", "ce_zero", "ce_mean", "ce_recovered", "ce_recovered_mean", "ce_increase")
FACTS: Mapping[str, Kind] = {
    "hook": _hook,
    "units": _text,
    "context": _side,
    "bos": lambda value: isinstance(value, bool),
    "median_norm": _positive,
    "model": {"spec": _text, "display": _text, "revision": _text, "licence": _maybe(_text), "n_layers": _side},
    "sae": {"architecture": _text, "d_in": _side, "d_sae": _side, "k": _maybe(_side), "normalise": _text, "source": _text, "notes": _each(_text)},
    "train": _maybe({"tokens": _count, "tokens_evaluated": _count}),
    "corpus": {
        "texts": _each(_text),
        "documents": _count,
        "tokens": _count,
        "categories": _each(_text),
        "category_share": _table(_number),
        "sources": _SOURCES,
        "train_sources": _SOURCES,
        "notes": _each(_text),
    },
    "lens": {
        "default": _text,
        "conventions": _each(_text),
        "agreement": _table(_number),
        "random": {"directions": _count, "strength": _number, "top_logit": _table(_number)},
    },
    "features": {"dead": _count, "dense": _count, "dense_above": _positive, "counted_tokens": _count, "l0": _number, "kinds": _table(_count)},
    "metrics": {
        "tokens_train": _maybe(_count),
        "explained_variance_train": _maybe(_number),
        "latents": _side,
        "dead": _count,
        "held_out_of_training_sources": _maybe({"tokens": _count, "explained_variance": _number}),
        "evaluated_set": _text,
        "evaluated_on": _text,
        "tokens_eval": _count,
        "explained_variance": _number,
        "l0": _number,
        "tokens_ce": _count,
        **dict.fromkeys(CROSS_ENTROPIES, _number),
        "by_category": _BY_CATEGORY,
    },
    "warnings": _each(_text),
}  # fmt: skip


def check_facts(manifest: dict, name: str) -> None:
    """BundleError naming the first fact of a manifest that is missing, or of another kind than the pages need."""
    where = _wrong(manifest, FACTS)
    lens = manifest["lens"] if where is None else {}
    if where is None and not {"folded", lens["default"]} <= set(lens["conventions"]) <= set(lens["agreement"]) & set(
        lens["random"]["top_logit"]
    ):
        where = "lens.conventions"
    if where is None and not set(manifest["corpus"]["categories"]) <= set(manifest["corpus"]["category_share"]):
        where = "corpus.category_share"
    if where is not None:
        raise BundleError(f"the {MANIFEST} of bundle {name!r} has no usable {where}; {AGAIN}")


def _wrong(value: object, kind: Kind) -> str | None:
    """Where a value is not of its kind: a path of keys, "" for the value itself; None if it is."""
    if not isinstance(kind, Mapping):
        return None if kind(value) else ""
    if not isinstance(value, dict):
        return ""
    for key, inner in kind.items():
        if key not in value:
            return key
        if (found := _wrong(value[key], inner)) is not None:
            return f"{key}.{found}".rstrip(".")
    return None


# ---- tables and arrays -------------------------------------------------------------------------------------------------


class Checks:
    """Of one bundle's files; each method raises BundleError with the file's and the list's name."""

    def __init__(self, bundle: str):
        self._bundle = bundle

    def refuse(self, file: str, what: str) -> BundleError:
        return BundleError(f"{file} of bundle {self._bundle!r} {what}; {AGAIN}")

    def columns(self, file: str, table: pa.Table, kinds: Mapping[str, str]) -> None:
        """Each column's kind: `text`, `whole` or `real`, without gaps; a column that a table may lack is checked where it is there."""
        import pyarrow.types as of

        fits = {
            "text": lambda kind: of.is_string(kind) or of.is_large_string(kind),
            "whole": of.is_integer,
            "real": lambda kind: of.is_floating(kind) or of.is_integer(kind),
        }
        for name, kind in kinds.items():
            column = table.column(name) if name in table.column_names else None
            if column is not None and (not fits[kind](column.type) or column.null_count):
                wanted = {"text": "text", "whole": "whole numbers", "real": "numbers"}[kind]
                raise self.refuse(file, f"holds {column.type} with {column.null_count} gaps as {name}, expected {wanted}")

    def kind(self, file: str, arrays: Mapping[str, np.ndarray], kinds: Mapping[str, tuple[str, int]]) -> None:
        """Each array's kind of numbers (numpy's letters) and number of dimensions."""
        for name, (letters, dimensions) in kinds.items():
            if arrays[name].dtype.kind not in letters or arrays[name].ndim != dimensions:
                raise self.refuse(file, f"holds {arrays[name].dtype} of {arrays[name].ndim} dimensions as {name}, which is not expected")

    def inside(self, file: str, name: str, array: np.ndarray, size: int, *, but: int | None = None, low: int = 0) -> None:
        """All numbers lie in low..size - 1, or are `but`."""
        flat = array.reshape(-1)
        for start in range(0, len(flat), _STEP):
            part = flat[start : start + _STEP]
            part = part if but is None else part[part != but]
            if len(part) and not (low <= int(part.min()) and int(part.max()) < size):
                raise self.refuse(file, f"points outside the bundle: {name} holds a number that is not in {low} to {size - 1}")
            release(array)

    def offsets(self, file: str, name: str, offsets: np.ndarray, size: int, *, count: int) -> None:
        """`count` + 1 offsets that rise from 0 to at most `size`."""
        if len(offsets) != count + 1 or int(offsets[0]) != 0 or int(offsets[-1]) > size or (offsets[1:] < offsets[:-1]).any():
            raise self.refuse(file, f"is not consistent: {name} does not fit what it points into")

    # ---- one file each

    def vocabulary(self, file: str, vocabulary: Vocabulary) -> None:
        self.kind(file, vocabulary._asdict(), {"blob": ("u", 1), "offsets": ("iu", 1), "special": ("b", 1)})
        if vocabulary.blob.dtype.itemsize != 1:
            raise self.refuse(file, "holds no bytes as blob")
        self.offsets(file, "offsets", vocabulary.offsets, len(vocabulary.blob), count=len(vocabulary.special))

    def lens(self, file: str, lens: Mapping[str, np.ndarray], conventions: list[str], *, rows: int, vocabulary: int) -> None:
        for convention in conventions:
            for side in ("positive", "negative"):
                values, ids = f"{convention}.{side}", f"{convention}.{side}_ids"
                self.kind(file, lens, {values: ("f", 2), ids: ("iu", 2)})
                if lens[values].shape != lens[ids].shape:
                    raise self.refuse(file, f"is not consistent: {values} and {ids} are not of one size")
                self.inside(file, ids, lens[ids], vocabulary)
        self.kind(file, lens, {"folded.histogram": ("iu", 2), "folded.low": ("f", 1), "folded.high": ("f", 1)})
        if not all(len(lens[f"folded.{name}"]) == rows for name in ("histogram", "low", "high")):
            raise self.refuse(file, f"is not consistent: the histogram has not {rows} rows")

    def examples(self, file: str, examples: Mapping[str, np.ndarray], *, tokens: int) -> None:
        self.kind(file, examples, {"top": ("u", 2), "interval": ("u", 3), "random": ("u", 2)})
        for name in ("top", "interval", "random"):
            self.inside(file, name, examples[name], tokens, but=int(NONE))

    def features(self, file: str, arrays: Mapping[str, np.ndarray], *, d_sae: int, categories: int) -> None:
        lists = [(f"{side}_neighbours", f"{side}_cosines") for side in ("decoder", "encoder")]
        lists += [("coactive_feature", f"coactive_{what}") for what in ("probability", "correlation", "count")]
        self.kind(file, arrays, {"max": ("f", 1), "histogram": ("iu", 2), "categories": ("iu", 2)})
        if not (np.isfinite(arrays["max"]).all() and (arrays["max"] >= 0).all()):
            raise self.refuse(file, "holds a maximum that is no number of at least 0")
        if arrays["categories"].shape[1] != categories:
            raise self.refuse(file, f"has not {categories} categories, as the {MANIFEST} says")
        for ids, values in lists:
            self.kind(file, arrays, {ids: ("iu", 2), values: ("fiu", 2)})
            if arrays[ids].shape != arrays[values].shape:
                raise self.refuse(file, f"is not consistent: {ids} and {values} are not of one size")
            self.inside(file, ids, arrays[ids], d_sae, low=-1 if ids == "coactive_feature" else 0)

    def map(self, file: str, xy: np.ndarray) -> None:
        self.kind(file, {"xy": xy}, {"xy": ("f", 2)})
        if xy.shape[1] != 2 or not np.isfinite(xy).all():
            raise self.refuse(file, "holds places that are no pairs of numbers")

    def store(self, file: str, store: ActivationStore) -> None:
        """Reads all of it."""
        self.inside(file, "token_features", store.token_features, store.d_sae)
        self.inside(file, "feature_entries", store.feature_entries, len(store.token_features))
        bits = store.token_values.view(np.uint16)  # of fp16 numbers: from 1 to below those of infinity they are finite and above 0
        for start in range(0, len(bits), _STEP):
            part = bits[start : start + _STEP]
            if not (part.min() >= 1 and part.max() < _INFINITY):
                raise self.refuse(file, "holds an activation that is no number above 0")
            release(store.token_values)
