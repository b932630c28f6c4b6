"""A bundle opened for reading: everything a page shows that needs no model. Imports no torch.

from sae_explore import open_bundle
bundle = open_bundle("demo")
card = bundle.card(123)
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from sae_explore.activations.activation_store import STORE_FILE, ActivationStore
from sae_explore.activations.feature_stats import NONE
from sae_explore.bundles.bundle_checks import Checks, check_facts
from sae_explore.bundles.curated import read_curated
from sae_explore.errors import BundleError, InputError
from sae_explore.files import hash_record
from sae_explore.files.bundle_files import AGAIN, MANIFEST, MAP_FILE, check_name, default_cache, read_manifest, verify_hashes
from sae_explore.files.parquet_table import read_table
from sae_explore.files.tensor_file import read_tensors
from sae_explore.models.tokens import Vocabulary, readable
from sae_explore.types import Example, FeatureCard, FeatureRef, LensToken, TextTrace, TokenizedText

DOCUMENTS_FILE = "documents.parquet"
TOKENS_FILE = "tokens.safetensors"
VOCABULARY_FILE = "vocabulary.safetensors"
FEATURES_FILE = "features.parquet"
ARRAYS_FILE = "features.safetensors"
LENS_FILE = "lens.safetensors"
EXAMPLES_FILE = "examples.safetensors"
SAE_FOLDER = "sae"
SAE_WEIGHTS = "sae_weights.safetensors"
_ARRAYS = ("max", "histogram", "categories", *(f"coactive_{c}" for c in ("feature", "probability", "correlation", "count")),
           *(f"{side}_{what}" for side in ("decoder", "encoder") for what in ("neighbours", "cosines")))  # fmt: skip
CONTEXT_BEFORE, CONTEXT_AFTER = 20, 12  # tokens of an example around its peak
_LARGE = 1 << 25  # files below are hashed in each process that opens the bundle (32 MB take 20 ms), larger ones once (see `hash_record`)
_DOCUMENTS = {"id": "text", "source": "text", "category": "text", "text": "text"}
_FEATURES = {
    **dict.fromkeys(("feature", "count"), "whole"),
    **dict.fromkeys(("density", "max", "mean", "std", "skew", "kurtosis", "confidence"), "real"),
    **dict.fromkeys(("strength", "strength_ratio", "lens_kurtosis", "decoder_norm"), "real"),
    **dict.fromkeys(("peak_token", "lens_tokens", "label", "label_kind"), "text"),
}


def open_bundle(name: str, *, cache: Path | None = None) -> Bundle:
    """Open `cache/NAME`. BundleError in one sentence if it is missing, damaged or of another schema."""
    return Bundle((cache or default_cache()) / check_name(name))


class Bundle:
    """Read-only and shared by all threads: small tables in memory, large ones and arrays memory-mapped."""

    def __init__(self, folder: Path):
        self.folder, self.name = folder, folder.name
        self.manifest = read_manifest(folder)
        self.files = folder / self.manifest["folder"]
        known = hash_record.known(folder, self.manifest, at_least=_LARGE)
        verify_hashes(folder, self.manifest, known=known)
        check_facts(self.manifest, self.name)
        self.d_sae = int(self.manifest["sae"]["d_sae"])
        self._read_files()
        self._check_files(known)
        hash_record.keep(folder, self.manifest, {n for n, e in self.manifest["files"].items() if e["size"] >= _LARGE} - known)
        self.curated = read_curated(folder, generation=self.files.name, d_sae=self.d_sae, find_document=self.find_document)
        self.human_labels = {f.feature: f.label for f in self.curated.features}
        self.own_labels: Mapping[int, str] = {}

    def _read_files(self) -> None:
        """Tables, and arrays as maps; BundleError if one is missing or of another size."""
        self.documents, self._documents = self._table(DOCUMENTS_FILE, _DOCUMENTS)
        self.features, self._features = self._table(FEATURES_FILE, _FEATURES, rows=self.d_sae)
        tokens = self._tensors(TOKENS_FILE, ("ids", "offsets", "char_ends", "ignored"))
        self.ids, self.doc_offsets = tokens["ids"], np.asarray(tokens["offsets"])
        self.char_ends, self.ignored = tokens["char_ends"], tokens["ignored"]
        vocabulary = self._tensors(VOCABULARY_FILE, Vocabulary._fields)
        self.vocabulary = Vocabulary(**{name: vocabulary[name] for name in Vocabulary._fields})
        self._pieces = self.vocabulary.blob.tobytes()
        self.arrays = self._tensors(ARRAYS_FILE, _ARRAYS, self.d_sae)
        lists = [
            f"{c}.{side}" for c in self.manifest["lens"]["conventions"] for side in ("positive", "positive_ids", "negative", "negative_ids")
        ]
        self.lens = self._tensors(LENS_FILE, [*lists, *(f"folded.{name}" for name in ("histogram", "low", "high"))], self.d_sae)
        self.examples = self._tensors(EXAMPLES_FILE, ("top", "interval", "random"), self.d_sae)
        self.map_xy = self._tensors(MAP_FILE, ("xy",), self.d_sae)["xy"] if MAP_FILE in self.manifest["files"] else None
        self._tensors(f"{SAE_FOLDER}/{SAE_WEIGHTS}", ("W_dec",), self.d_sae)
        self._listed(STORE_FILE)
        try:
            self.store = ActivationStore(self.files / STORE_FILE, self.d_sae)
        except BundleError as error:
            raise BundleError(f"bundle {self.name!r}: {error}; {AGAIN}") from error

    def _check_files(self, known: Collection[str]) -> None:
        """That they fit together; the long lists of files that are `known` to be right are not looked at again."""
        check, n = Checks(self.name), self.store.n_tokens
        check.kind(
            TOKENS_FILE,
            {"ids": self.ids, "offsets": self.doc_offsets, "char_ends": self.char_ends, "ignored": self.ignored},
            {"ids": ("iu", 1), "offsets": ("iu", 1), "char_ends": ("iu", 1), "ignored": ("b", 1)},
        )
        if any(len(a) != n for a in (self.ids, self.char_ends, self.ignored)) or not self._offsets_fit(n):
            raise BundleError(f"tokens and activations of bundle {self.name!r} do not fit together; {AGAIN}")
        check.columns(DOCUMENTS_FILE, self.documents, _DOCUMENTS)
        check.columns(FEATURES_FILE, self.features, _FEATURES)
        check.vocabulary(VOCABULARY_FILE, self.vocabulary)
        check.lens(LENS_FILE, self.lens, self.manifest["lens"]["conventions"], rows=self.d_sae, vocabulary=len(self.vocabulary))
        check.examples(EXAMPLES_FILE, self.examples, tokens=n)
        if self.map_xy is not None:
            check.map(MAP_FILE, self.map_xy)
        check.features(ARRAYS_FILE, self.arrays, d_sae=self.d_sae, categories=len(self.categories))
        if TOKENS_FILE not in known:
            check.inside(TOKENS_FILE, "ids", self.ids, len(self.vocabulary))
        if STORE_FILE not in known:
            check.store(STORE_FILE, self.store)
        if (shape := self.W_dec.shape) != (self.d_sae, self.manifest["sae"]["d_in"]):
            raise check.refuse(f"{SAE_FOLDER}/{SAE_WEIGHTS}", f"holds a W_dec of the shape {shape}, which is not the SAE of the {MANIFEST}")

    def _listed(self, name: str) -> None:
        """BundleError unless the manifest names the file: one that it does not name is not hashed."""
        if name not in self.manifest["files"]:
            raise BundleError(f"the {MANIFEST} of bundle {self.name!r} does not name {name}; {AGAIN}")

    def with_labels(self, own: Mapping[int, str]) -> Bundle:
        """The same bundle as one visitor sees it, whose labels go before all others; it shares everything with this one, which keeps its own."""
        found = copy.copy(self)
        found.own_labels = own
        return found

    def _table(self, name: str, columns: Collection[str], *, rows: int | None = None):
        """(table, its columns by name); BundleError if it cannot be read or lacks something."""
        self._listed(name)
        try:
            table = read_table(self.files / name, scratch=self.files)
        except Exception as error:  # pyarrow raises many kinds for a damaged file
            raise BundleError(
                f"{name} of bundle {self.name!r} cannot be read ({(str(error).splitlines() or [''])[0][:200]}); {AGAIN}"
            ) from error
        missing = [c for c in columns if c not in table.column_names]
        if missing or table.num_rows != (table.num_rows if rows is None else rows):
            what = f"lacks {', '.join(missing)}" if missing else f"has {table.num_rows} rows instead of {rows}"
            raise BundleError(f"{name} of bundle {self.name!r} {what}; {AGAIN}")
        return table, dict(zip(table.column_names, table.columns, strict=True))

    def _tensors(self, name: str, wanted: Sequence[str], rows: int | None = None) -> dict[str, np.ndarray]:
        """Memory maps of a file's tensors; BundleError if one is missing, or one of the `wanted` has not so many rows."""
        self._listed(name)
        try:
            found = read_tensors(self.files / name)
        except BundleError as error:
            raise BundleError(f"bundle {self.name!r}: {error}; {AGAIN}") from error
        for tensor in wanted:
            if tensor not in found or (rows is not None and found[tensor].shape[:1] != (rows,)):
                raise BundleError(f"{name} of bundle {self.name!r} holds no {tensor} that fits; {AGAIN}")
        return found

    def _offsets_fit(self, n_tokens: int) -> bool:
        offsets = self.doc_offsets
        return (
            len(offsets) == self.n_documents + 1
            and int(offsets[0]) == 0
            and int(offsets[-1]) == n_tokens
            and not (offsets[1:] < offsets[:-1]).any()
        )

    # ---- facts -----------------------------------------------------------------------------------------------------

    @property
    def hook(self) -> str:
        return self.manifest["hook"]

    @property
    def units(self) -> str:
        return self.manifest["units"]

    @property
    def n_documents(self) -> int:
        return self.documents.num_rows

    @property
    def categories(self) -> list[str]:
        return list(self.manifest["corpus"]["categories"])

    @property
    def lens_default(self) -> str:
        return self.manifest["lens"]["default"]

    @property
    def maxima(self) -> np.ndarray:
        """(d_sae,) the strongest activation of each feature on the corpus: the colour scale's end."""
        return self.arrays["max"]

    @property
    def W_dec(self) -> np.ndarray:
        """(d_sae, d_model) decoder rows as stored (fp32 or fp16), memory-mapped: no torch is needed to compare directions."""
        return read_tensors(self.files / SAE_FOLDER / SAE_WEIGHTS)["W_dec"]

    def verify(self) -> None:
        """Hash every file; BundleError names the first whose contents changed."""
        verify_hashes(self.folder, self.manifest)

    def check_feature(self, feature: int) -> int:
        if not 0 <= feature < self.d_sae:
            raise InputError(f"bundle {self.name!r} has features 0 to {self.d_sae - 1}; there is no feature {feature}")
        return int(feature)

    # ---- documents and tokens --------------------------------------------------------------------------------------

    def document_of(self, token: int) -> int:
        return int(np.searchsorted(self.doc_offsets, token, side="right")) - 1

    def document_text(self, document: int) -> str:
        return self._documents["text"][document].as_py()

    def token_texts(self, document: int, start: int, stop: int) -> tuple[str, ...]:
        """Texts of the document's tokens start..stop (positions in the document)."""
        base = int(self.doc_offsets[document])
        ends = np.asarray(self.char_ends[base + start : base + stop]).tolist()
        first = int(self.char_ends[base + start - 1]) if start else 0
        text = self.document_text(document)
        return tuple(text[a:b] for a, b in zip([first, *ends], ends, strict=False))  # each begins where the one before ends

    def document_tokens(self, document: int) -> TokenizedText:
        a, b = int(self.doc_offsets[document]), int(self.doc_offsets[document + 1])
        ids = np.asarray(self.ids[a:b], np.int32)
        return TokenizedText(ids, self.token_texts(document, 0, b - a), self.bytes_of(ids), np.asarray(self.vocabulary.special[ids]))

    def bytes_of(self, ids: np.ndarray) -> tuple[bytes, ...]:
        """What the tokens of the vocabulary hold, by id (int64)."""
        starts, stops = self.vocabulary.offsets[ids].tolist(), self.vocabulary.offsets[ids + 1].tolist()
        return tuple(self._pieces[a:b] for a, b in zip(starts, stops, strict=True))

    def document_trace(self, document: int) -> TextTrace:
        """A stored document as if its text had been pasted."""
        if not 0 <= document < self.n_documents:
            raise InputError(f"bundle {self.name!r} has documents 0 to {self.n_documents - 1}; there is no document {document}")
        a, b = int(self.doc_offsets[document]), int(self.doc_offsets[document + 1])
        return TextTrace(
            self.name, self.hook, self.units, self.document_text(document), self.document_tokens(document),
            np.asarray(self.ignored[a:b], bool), self.store.rows(a, b),
        )  # fmt: skip

    def find_document(self, document_id: str) -> int | None:
        """Row of the document with this id, or None."""
        found = self._documents["id"].index(document_id).as_py()
        return None if found < 0 else found

    # ---- features --------------------------------------------------------------------------------------------------

    def label(self, feature: int) -> str:
        """The visitor's own label (see `with_labels`), else the one that was given by hand, else the automatic one."""
        return self.own_labels.get(feature) or self.human_labels.get(feature) or self.automatic_label(feature)

    def automatic_label(self, feature: int) -> str:
        """The label that comes from counting (see `labels`)."""
        return self._features["label"][feature].as_py()

    def row(self, feature: int) -> dict:
        """The feature's row of the table, as plain values; `label` as above, beside `automatic_label`, `human_label` and `own_label`
        (or None)."""
        row = {name: column[feature].as_py() for name, column in self._features.items()}
        human, own = self.human_labels.get(feature), self.own_labels.get(feature)
        return row | {"label": own or human or row["label"], "automatic_label": row["label"], "human_label": human, "own_label": own}

    def example(
        self, feature: int, token: int, kind: str, interval: int | None = None,
        *, before: int = CONTEXT_BEFORE, after: int = CONTEXT_AFTER,
    ) -> Example:  # fmt: skip
        """The stretch of a document around a token of the store."""
        document = self.document_of(token)
        base, end = int(self.doc_offsets[document]), int(self.doc_offsets[document + 1])
        start, stop = max(base, token - before), min(end, token + after + 1)
        table = self._documents
        return Example(
            document=document,
            document_id=table["id"][document].as_py(),
            source=table["source"][document].as_py(),
            category=table["category"][document].as_py(),
            start=start - base,
            peak=token - base,
            kind=kind,
            interval=interval,
            tokens=self.token_texts(document, start - base, stop - base),
            values=self.store.values_of(feature, start, stop),
            ignored=np.array(self.ignored[start:stop], bool),
            cut_left=start > base,
            cut_right=stop < end,
            bytes=self.bytes_of(self.ids[start:stop].astype(np.int64)),
        )

    def top_examples(self, feature: int, n: int = 10, **context: int) -> tuple[Example, ...]:
        tokens = self.examples["top"][feature]
        return tuple(self.example(feature, int(t), "top", **context) for t in tokens[tokens != NONE][:n])

    def interval_examples(self, feature: int, **context: int) -> tuple[Example, ...]:
        """Strongest interval first; each example lies in the interval of its own peak."""
        table = self.examples["interval"][feature]
        return tuple(
            self.example(feature, int(token), "interval", interval, **context)
            for interval in range(len(table) - 1, -1, -1)
            for token in table[interval]
            if token != NONE
        )

    def random_examples(self, feature: int, **context: int) -> tuple[Example, ...]:
        tokens = self.examples["random"][feature]
        return tuple(self.example(feature, int(t), "random", **context) for t in tokens[tokens != NONE])

    def lens_tokens(self, feature: int, convention: str | None = None) -> tuple[tuple[LensToken, ...], tuple[LensToken, ...]]:
        """(positive, negative) lens lists in one of the named conventions."""
        convention = convention or self.lens_default
        if f"{convention}.positive" not in self.lens:
            raise InputError(
                f"lens convention {convention!r} is not in this bundle; it has {', '.join(self.manifest['lens']['conventions'])}"
            )
        lists = []
        for side in ("positive", "negative"):
            ids, logits = self.lens[f"{convention}.{side}_ids"][feature], self.lens[f"{convention}.{side}"][feature]
            texts = map(readable, self.bytes_of(ids.astype(np.int64)))
            lists.append(tuple(LensToken(*row) for row in zip(ids.tolist(), texts, logits.tolist(), strict=True)))
        return lists[0], lists[1]

    def neighbours(self, feature: int, which: str = "decoder") -> tuple[tuple[int, float], ...]:
        """Nearest features by `decoder` or `encoder` cosine."""
        ids, cosines = self.arrays[f"{which}_neighbours"][feature], self.arrays[f"{which}_cosines"][feature]
        return tuple(zip(ids.tolist(), cosines.tolist(), strict=True))

    def coactive(self, feature: int) -> list[dict]:
        """Features that fire together with this one, by phi correlation over the whole dictionary."""
        columns = ("feature", "probability", "correlation", "count")
        rows = zip(*(self.arrays[f"coactive_{c}"][feature].tolist() for c in columns), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows if row[0] >= 0]

    def histogram(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """(edges, counts) of the positive activations, equal bins over (0, max]."""
        counts = np.asarray(self.arrays["histogram"][feature])
        return np.linspace(0, float(self.maxima[feature]), len(counts) + 1), counts

    def lens_histogram(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """(edges, counts) of the folded lens logits over the vocabulary."""
        counts = np.asarray(self.lens["folded.histogram"][feature])
        low, high = float(self.lens["folded.low"][feature]), float(self.lens["folded.high"][feature])
        return np.linspace(low, high, len(counts) + 1), counts

    def category_counts(self, feature: int) -> dict[str, int]:
        """On how many tokens of each category the feature fires."""
        return dict(zip(self.categories, self.arrays["categories"][feature].tolist(), strict=True))

    def category_share(self) -> dict[str, float]:
        """Each category's share of the counted tokens."""
        return self.manifest["corpus"]["category_share"]

    def card(self, feature: int, *, top: int = 10, convention: str | None = None) -> FeatureCard:
        """Everything about one feature."""
        feature = self.check_feature(feature)
        convention = convention or self.lens_default
        positive, negative = self.lens_tokens(feature, convention)
        return FeatureCard(
            ref=FeatureRef(self.name, feature),
            row=self.row(feature),
            top=self.top_examples(feature, top),
            intervals=self.interval_examples(feature),
            random=self.random_examples(feature),
            positive=positive,
            negative=negative,
            lens_convention=convention,
            neighbours=self.neighbours(feature),
            extra={
                "encoder_neighbours": self.neighbours(feature, "encoder"),
                "coactive": self.coactive(feature),
                "categories": self.category_counts(feature),
                "histogram": self.histogram(feature),
                "lens_histogram": self.lens_histogram(feature),
            },
        )
