"""Which features answer a question: fire on a phrase, on a token or in a category, promote a token, point like another feature.

`fit` is the score of everything that fires on given tokens. It is large for what fires there and not in general:

    fit = strength * log2(1 / density)
    strength = mean over the tokens of min(1, activation / the feature's maximum on the corpus), silent tokens counting 0
    density = (firings on the corpus + 1) / (tokens of the corpus + 1)

So a feature that is at its maximum on every one of the tokens, and fires on one token in 1,024 elsewhere, has fit 10. A feature that never
fires on the corpus has no maximum there; its strongest activation on the tokens stands for it. Numpy only: no model, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sae_explore.bundles.bundle import Bundle
from sae_explore.errors import InputError
from sae_explore.types import TextTrace

SAMPLE = 10_000  # occurrences of a token that are looked at
SAMPLE_FIRINGS = 1_000_000  # and about as many firings on them: an SAE with many active features is looked at in fewer places
SIMILAR = 100  # features listed by cosine
AT_CHANCE = 20  # firings, spread over the categories as the texts are, that are added to a feature's own
SIDES = ("positive", "negative")
_CHUNK = 4_096  # decoder rows at once


@dataclass(frozen=True)
class Found:
    """Features that a search found, best first (ties: lower number), each once, with figures in arrays of the same length."""

    feature: np.ndarray  # (n,) int64
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.feature)

    def only(self, keep: np.ndarray) -> Found:
        """Those of a mask (n,)."""
        return Found(self.feature[keep], {name: column[keep] for name, column in self.columns.items()})


class _Corpus:
    """What the corpus says about each feature."""

    def __init__(self, bundle: Bundle):
        self.count = bundle.features["count"].to_numpy()
        self.maxima = np.asarray(bundle.maxima, np.float64)
        self.bits = np.log2((bundle.manifest["features"]["counted_tokens"] + 1) / (self.count + 1))


# ---- what fires --------------------------------------------------------------------------------------------------------


def by_trace(bundle: Bundle, trace: TextTrace) -> Found:
    """Features that fire on a text, by fit over its tokens (ignored ones left out).

    Columns: `fit`, `strength`, `tokens` (on how many it fires), `position` (int64, of its strongest activation, the first of equals).
    """
    n = int((~trace.ignored).sum())
    found, order = _fit(_Corpus(bundle), trace.rows.features, trace.rows.values, n)
    position = np.repeat(np.arange(len(trace.rows)), np.diff(trace.rows.offsets))
    features, values = trace.rows.features, trace.rows.values
    strongest_first = np.lexsort((position, -values, features))
    each, first = np.unique(features[strongest_first], return_index=True)
    peak = np.zeros(bundle.d_sae, np.int64)
    peak[each] = position[strongest_first][first]
    return Found(order, found | {"position": peak[order]})


@dataclass(frozen=True)
class TokenFound:
    """What fires on a vocabulary token. Columns of `found`: `fit`, `strength`, `on` (share of the token's occurrences on which it fires),
    `of` (share of the feature's firings that are on the token, estimated where the occurrences are a sample)."""

    found: Found
    counts: np.ndarray  # (ids,) int64: how often each of the ids asked for stands in the corpus, ignored places left out
    looked_at: int  # occurrences; fewer than all if there are more than may be looked at


def by_token(bundle: Bundle, ids: np.ndarray, *, most: int = SAMPLE, seed: int = 0) -> TokenFound:
    """Features that fire on occurrences of any of the token ids in the corpus, by fit over them. At most `most` occurrences (and about
    SAMPLE_FIRINGS firings) are looked at, drawn at random with the seed."""
    ids = np.asarray(ids, np.int64)
    asked = np.zeros(len(bundle.vocabulary), bool)
    asked[ids] = True
    at = np.flatnonzero(asked[bundle.ids] & ~bundle.ignored)
    counts = np.bincount(bundle.ids[at], minlength=len(asked))[ids]
    store, total = bundle.store, len(at)
    firings = max(1, len(store.token_features) // max(1, store.n_tokens))  # on a token, in the mean
    most = min(most, max(1, SAMPLE_FIRINGS // firings))
    if total > most:
        at = np.sort(np.random.default_rng(seed).choice(at, most, replace=False))
    starts, stops = np.asarray(store.token_offsets)[at], np.asarray(store.token_offsets)[at + 1]
    entries = _ranges(starts, stops - starts)
    corpus = _Corpus(bundle)
    columns, order = _fit(corpus, store.token_features[entries], store.token_values[entries], len(at))
    fired = columns.pop("tokens")
    columns["on"] = fired / max(len(at), 1)
    columns["of"] = np.minimum(1.0, fired * (total / max(len(at), 1)) / np.maximum(corpus.count[order], 1))
    return TokenFound(Found(order, columns), counts, len(at))


def _fit(corpus: _Corpus, features: np.ndarray, values: np.ndarray, n: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(columns `fit`, `strength`, `tokens`; features in their order) from the firings (nnz,) on n tokens."""
    d_sae, values = len(corpus.count), values.astype(np.float64)
    maxima = corpus.maxima
    if len(dead := features[maxima[features] == 0]):
        maxima = maxima.copy()
        np.maximum.at(maxima, dead, values[maxima[features] == 0])
    strength = np.bincount(features, np.minimum(1.0, values / maxima[features]), d_sae) / max(n, 1)
    tokens = np.bincount(features, minlength=d_sae)
    fit = strength * corpus.bits
    fired = np.flatnonzero(tokens)
    order = fired[np.argsort(-fit[fired], kind="stable")]
    return {"fit": fit[order], "strength": strength[order], "tokens": tokens[order]}, order


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers start, start + 1, ... of each range, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def by_category(bundle: Bundle, category: str) -> Found:
    """Features that fire in texts of a category more often than its share of all tokens, by how many times more often.

    Columns: `share` (of the feature's firings that lie in the category), `times` (how many times the category's share of the tokens that is,
    after AT_CHANCE firings at that share are added, so that three firings do not look like a rule). InputError for an unknown category.
    """
    if category not in bundle.categories:
        raise InputError(f"there is no category {category!r}; there are {', '.join(bundle.categories)}")
    inside = np.asarray(bundle.arrays["categories"])[:, bundle.categories.index(category)].astype(np.float64)
    count = bundle.features["count"].to_numpy()
    expected = bundle.category_share()[category]
    if expected <= 0:
        return Found(np.zeros(0, np.int64), {"share": np.zeros(0), "times": np.zeros(0)})
    share = inside / np.maximum(count, 1)
    times = (inside + AT_CHANCE * expected) / (count + AT_CHANCE) / expected
    more = np.flatnonzero((inside > 0) & (times > 1))
    order = more[np.argsort(-times[more], kind="stable")]
    return Found(order, {"share": share[order], "times": times[order]})


# ---- what directions say -----------------------------------------------------------------------------------------------


def by_lens(bundle: Bundle, ids: np.ndarray, *, side: str = "positive", convention: str | None = None) -> Found:
    """Features among whose most promoted (`positive`) or most suppressed (`negative`) tokens is one of the ids: earlier places first,
    among equals those of the larger logit.

    Columns: `place` (from 1), `logit`, `id` (of the token). InputError for an unknown side or convention.
    """
    convention = convention or bundle.lens_default
    if side not in SIDES or f"{convention}.{side}_ids" not in bundle.lens:
        raise InputError(f"there is no lens list {convention}.{side}; sides are {', '.join(SIDES)}")
    listed, logits = np.asarray(bundle.lens[f"{convention}.{side}_ids"]), bundle.lens[f"{convention}.{side}"]
    asked = np.zeros(len(bundle.vocabulary), bool)
    asked[np.asarray(ids, np.int64)] = True
    holds = asked[listed]
    rows = np.flatnonzero(holds.any(1))
    place = holds[rows].argmax(1)
    logit = np.asarray(logits[rows, place], np.float64)
    order = np.lexsort((rows, -np.abs(logit), place))
    rows, place = rows[order], place[order]
    return Found(rows, {"place": place + 1, "logit": logit[order], "id": listed[rows, place].astype(np.int64)})


def similar(bundle: Bundle, feature: int, *, top: int = SIMILAR) -> Found:
    """The `top` other features whose decoder rows point most nearly the same way, over the whole dictionary. Column: `cosine` (float64).

    InputError if the bundle has no such feature.
    """
    feature = bundle.check_feature(feature)
    W_dec = bundle.W_dec
    row = W_dec[feature].astype(np.float32)
    cosines = np.concatenate([_cosines(W_dec[a : a + _CHUNK], row) for a in range(0, len(W_dec), _CHUNK)])
    cosines[feature] = -np.inf
    top = min(top, len(cosines) - 1)
    best = np.argpartition(-cosines, top)[:top] if top else np.zeros(0, np.int64)
    best = best[np.lexsort((best, -cosines[best]))]
    return Found(best, {"cosine": cosines[best]})


def _cosines(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Cosines of rows (n, d) with one (d,); 0 where one of the two is zero."""
    rows = rows.astype(np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows)).astype(np.float64) * float(np.linalg.norm(row))
    return np.divide((rows @ row).astype(np.float64), norms, out=np.zeros(len(rows)), where=norms > 0)
