"""Frozen dataclasses that travel between modules (standard library and numpy only).

Positions count tokens of the user's text or document from 0; a BOS that the program put in front is never counted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from sae_explore.errors import InputError

_HOOK = re.compile(r"blocks\.(\d{1,3})\.hook_resid_(pre|post)")
_ALIAS = re.compile(r"(?:transformer\.h|model\.layers|gpt_neox\.layers)\.(\d{1,3})")


@dataclass(frozen=True)
class HookPoint:
    """A place in the residual stream, named as in TransformerLens: before (`pre`) or after (`post`) a block."""

    block: int
    site: str = "post"

    @classmethod
    def parse(cls, name: str) -> HookPoint:
        """Read `blocks.6.hook_resid_post`, or the module name of a block (`transformer.h.6`, `model.layers.6`)."""
        if match := _HOOK.fullmatch(name.strip()):
            return cls(int(match[1]), match[2])
        if match := _ALIAS.fullmatch(name.strip()):
            return cls(int(match[1]), "post")
        raise InputError(f"hook {name!r} is not understood; use blocks.L.hook_resid_pre, blocks.L.hook_resid_post or transformer.h.L")

    @property
    def name(self) -> str:
        return f"blocks.{self.block}.hook_resid_{self.site}"

    @property
    def depth(self) -> int:
        """How many blocks have to run: `resid_post` of block L equals `resid_pre` of block L + 1."""
        return self.block + (self.site == "post")


@dataclass(frozen=True)
class SaeSpec:
    """Everything about an SAE but its weights. Units of activations are the SAE's own.

    encode: x' = normalise(x - mean(x) if center_input else x); pre = (x' - b_dec if apply_b_dec_to_input else x') W_enc + b_enc;
    then the family's selection. Constant input scales and SAELens's `rescale_acts_by_decoder_norm` are folded into the weights
    by the loader, exactly, and noted. What the files of a foreign SAE leave open (hook "", context 0, prepend_bos None) is settled
    when a bundle is built from it.
    """

    architecture: str  # topk | standard | jumprelu | batchtopk | gated
    d_in: int
    d_sae: int
    k: int | None = None
    hook: str = "blocks.6.hook_resid_post"
    model: str = ""  # the model it was trained on, as its config says
    context: int = 128
    prepend_bos: bool | None = True
    apply_b_dec_to_input: bool = True
    center_input: bool = False  # subtract the mean over d_in (models with center_writing_weights)
    normalise: str = "none"  # none | layer_norm | constant_norm, undone by decode
    decoder_norms_folded: bool = False  # decoder rows made unit norm, activations scaled to compensate
    source: str = ""  # where it came from: Hub id, folder, or "trained here"
    revision: str = ""  # the commit, of an SAE from the Hub
    format: str = "saelens"  # as it was read
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenizedText:
    """Tokens of one text. `"".join(texts)` is the text; `bytes` says what each token holds."""

    ids: np.ndarray  # (n,) int32
    texts: tuple[str, ...]
    bytes: tuple[bytes, ...]
    special: np.ndarray  # (n,) bool

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class SparseRows:
    """Activations of n tokens, CSR: token i holds `features[offsets[i]:offsets[i+1]]`, strongest first, all values > 0."""

    offsets: np.ndarray  # (n + 1,) int64
    features: np.ndarray  # (nnz,) uint32
    values: np.ndarray  # (nnz,) float32

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        a, b = int(self.offsets[i]), int(self.offsets[i + 1])
        return self.features[a:b], self.values[a:b]

    def column(self, feature: int) -> np.ndarray:
        """Values of one feature at every token, (n,) float32, zeros where it is silent."""
        out = np.zeros(len(self), np.float32)
        at = np.flatnonzero(self.features == feature)
        out[np.searchsorted(self.offsets, at, side="right") - 1] = self.values[at]
        return out


@dataclass(frozen=True)
class FeatureHit:
    """A feature's record on one text."""

    feature: int
    max: float
    sum: float
    position: int  # of its maximum
    count: int  # tokens on which it fires


@dataclass(frozen=True)
class TextTrace:
    """One text through model and SAE."""

    bundle: str
    hook: str
    units: str
    text: str
    tokens: TokenizedText
    ignored: np.ndarray  # (n,) bool: special tokens, attention sinks, a first position without a BOS
    rows: SparseRows

    def hits(self) -> list[FeatureHit]:
        """Every feature that fires, strongest first (ties: lower index)."""
        if not len(self.rows.features):
            return []
        position = np.repeat(np.arange(len(self.rows)), np.diff(self.rows.offsets))
        order = np.lexsort((position, -self.rows.values, self.rows.features))
        features, values, position = self.rows.features[order], self.rows.values[order], position[order]
        first = np.flatnonzero(np.r_[True, features[1:] != features[:-1]])
        counts = np.diff(np.r_[first, len(features)])
        sums = np.add.reduceat(values.astype(np.float64), first)
        found = [
            FeatureHit(int(features[a]), float(values[a]), float(s), int(position[a]), int(c))
            for a, s, c in zip(first, sums, counts, strict=True)
        ]
        return sorted(found, key=lambda hit: (-hit.max, hit.feature))


@dataclass(frozen=True, order=True)
class FeatureRef:
    """A feature of a bundle."""

    bundle: str
    feature: int


@dataclass(frozen=True)
class Example:
    """A stretch of a document around a peak of one feature, in whole tokens."""

    document: int  # row of the documents table
    document_id: str
    source: str
    category: str
    start: int  # position in the document of the first token shown
    peak: int  # position in the document of the peak token
    kind: str  # top | interval | random
    interval: int | None  # 0 is the weakest interval; None if the examples are not by interval
    tokens: tuple[str, ...]
    values: np.ndarray  # (len(tokens),) float32
    ignored: np.ndarray  # (len(tokens),) bool
    cut_left: bool = False  # the document goes on to the left of what is shown
    cut_right: bool = False
    bytes: tuple[bytes, ...] = ()  # what each token holds, for those that are no whole character

    @property
    def max(self) -> float:
        return float(self.values[self.peak - self.start])


@dataclass(frozen=True)
class LensToken:
    """One vocabulary entry of a logit-lens list."""

    id: int
    token: str
    logit: float


@dataclass(frozen=True)
class FeatureCard:
    """All that a feature's page shows, as plain values."""

    ref: FeatureRef
    row: dict  # the feature's row of features.parquet: density, max, mean, std, histogram, scores, label ...
    top: tuple[Example, ...]
    intervals: tuple[Example, ...]
    random: tuple[Example, ...]
    positive: tuple[LensToken, ...]
    negative: tuple[LensToken, ...]
    lens_convention: str
    neighbours: tuple[tuple[int, float], ...]  # decoder cosine
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """One text of a corpus."""

    id: str  # unique in its corpus
    source: str  # where it came from: a file, a data set, the register of an embedded text
    category: str
    text: str
