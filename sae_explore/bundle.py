"""A bundle opened for reading: everything a page shows that needs no model. Imports no torch.

    from sae_explore import open_bundle
    bundle = open_bundle("demo")
    card = bundle.card(123)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sae_explore.activation_store import STORE_FILE, ActivationStore
from sae_explore.bundle_files import check_name, default_cache, read_manifest, verify_hashes
from sae_explore.errors import BundleError, InputError
from sae_explore.feature_stats import NONE
from sae_explore.tensor_file import read_tensors
from sae_explore.tokens import Vocabulary
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
CONTEXT_BEFORE, CONTEXT_AFTER = 20, 12  # tokens of an example around its peak
_HASH_AT_OPEN = 1 << 20  # small files are hashed when a bundle is opened, large ones by `verify`


def open_bundle(name: str, *, cache: Path | None = None) -> Bundle:
    """Open `cache/NAME`. BundleError in one sentence if it is missing, damaged or of another schema."""
    return Bundle((cache or default_cache()) / check_name(name))


class Bundle:
    """Read-only and shared by all threads: tables in memory, arrays memory-mapped."""

    def __init__(self, folder: Path):
        import pyarrow.parquet as pq

        self.folder, self.name = folder, folder.name
        self.manifest = read_manifest(folder)
        self.files = folder / self.manifest["folder"]
        verify_hashes(folder, self.manifest, below=_HASH_AT_OPEN)
        self.d_sae = int(self.manifest["sae"]["d_sae"])
        try:
            self.documents = pq.read_table(self.files / DOCUMENTS_FILE)
            self.features = pq.read_table(self.files / FEATURES_FILE)
        except Exception as error:  # pyarrow raises many kinds for a damaged file
            raise BundleError(f"a table of bundle {self.name!r} cannot be read: {str(error).splitlines()[0][:200]}") from error
        if self.features.num_rows != self.d_sae:
            raise BundleError(f"features.parquet of bundle {self.name!r} has {self.features.num_rows} rows, expected {self.d_sae}")
        tokens = read_tensors(self.files / TOKENS_FILE)
        self.ids, self.doc_offsets = tokens["ids"], np.asarray(tokens["offsets"])
        self.char_ends, self.ignored = tokens["char_ends"], tokens["ignored"]
        vocabulary = read_tensors(self.files / VOCABULARY_FILE)
        self.vocabulary = Vocabulary(vocabulary["blob"], vocabulary["offsets"], vocabulary["special"])
        self.arrays = read_tensors(self.files / ARRAYS_FILE)
        self.lens = read_tensors(self.files / LENS_FILE)
        self.examples = read_tensors(self.files / EXAMPLES_FILE)
        self.store = ActivationStore(self.files / STORE_FILE, self.d_sae)
        if len(self.ids) != self.store.n_tokens or int(self.doc_offsets[-1]) != len(self.ids):
            raise BundleError(f"tokens and activations of bundle {self.name!r} do not fit together; build it again with --force")

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
        return self.documents["text"][document].as_py()

    def token_texts(self, document: int, start: int, stop: int) -> tuple[str, ...]:
        """Texts of the document's tokens start..stop (positions in the document)."""
        base = int(self.doc_offsets[document])
        ends = np.asarray(self.char_ends[base + start : base + stop]).tolist()
        first = int(self.char_ends[base + start - 1]) if start else 0
        text = self.document_text(document)
        return tuple(text[a:b] for a, b in zip([first, *ends[:-1]], ends, strict=True))

    def document_tokens(self, document: int) -> TokenizedText:
        a, b = int(self.doc_offsets[document]), int(self.doc_offsets[document + 1])
        ids = np.asarray(self.ids[a:b], np.int32)
        pieces = tuple(self.vocabulary.bytes_of(int(i)) for i in ids)
        return TokenizedText(ids, self.token_texts(document, 0, b - a), pieces, np.asarray(self.vocabulary.special[ids]))

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
        found = np.flatnonzero(self.documents["id"].to_numpy(zero_copy_only=False) == document_id)
        return int(found[0]) if len(found) else None

    # ---- features --------------------------------------------------------------------------------------------------

    def label(self, feature: int) -> str:
        """The feature's automatic label."""
        return self.features["label"][feature].as_py()

    def row(self, feature: int) -> dict:
        """The feature's row of the table, as plain values."""
        return {name: self.features[name][feature].as_py() for name in self.features.column_names}

    def example(
        self, feature: int, token: int, kind: str, interval: int | None = None,
        *, before: int = CONTEXT_BEFORE, after: int = CONTEXT_AFTER,
    ) -> Example:  # fmt: skip
        """The stretch of a document around a token of the store."""
        document = self.document_of(token)
        base, end = int(self.doc_offsets[document]), int(self.doc_offsets[document + 1])
        start, stop = max(base, token - before), min(end, token + after + 1)
        # Begin and end with whole characters: a token without text belongs to the character that a later one completes.
        texts = self.token_texts(document, start - base, stop - base)
        return Example(
            document=document,
            document_id=self.documents["id"][document].as_py(),
            source=self.documents["source"][document].as_py(),
            category=self.documents["category"][document].as_py(),
            start=start - base,
            peak=token - base,
            kind=kind,
            interval=interval,
            tokens=texts,
            values=self.store.rows(start, stop).column(feature),
            ignored=np.asarray(self.ignored[start:stop], bool),
            cut_left=start > base,
            cut_right=stop < end,
            bytes=tuple(self.vocabulary.bytes_of(int(i)) for i in self.ids[start:stop]),
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
            raise InputError(f"lens convention {convention!r} is not in this bundle; it has {', '.join(self.manifest['lens']['conventions'])}")
        lists = []
        for side in ("positive", "negative"):
            ids, logits = self.lens[f"{convention}.{side}_ids"][feature], self.lens[f"{convention}.{side}"][feature]
            lists.append(tuple(LensToken(int(i), self.vocabulary.text_of(int(i)), float(v)) for i, v in zip(ids, logits, strict=True)))
        return lists[0], lists[1]

    def neighbours(self, feature: int, which: str = "decoder") -> tuple[tuple[int, float], ...]:
        """Nearest features by `decoder` or `encoder` cosine."""
        ids, cosines = self.arrays[f"{which}_neighbours"][feature], self.arrays[f"{which}_cosines"][feature]
        return tuple((int(i), float(c)) for i, c in zip(ids, cosines, strict=True))

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
