"""Everything a page says about features, computed once at build time and written into the bundle.

features.parquet       a row a feature: plain numbers and words to sort, filter and search by
features.safetensors   arrays a feature: histogram, categories, neighbours, co-active features
lens.safetensors       logit-lens lists in each convention, histogram of the folded logits
examples.safetensors   tokens at which the top, interval and random examples peak
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sae_explore.activations import feature_stats
from sae_explore.activations.activation_store import ActivationStore, FeatureTotals
from sae_explore.activations.feature_stats import NONE
from sae_explore.bundles import bundle
from sae_explore.features import lens
from sae_explore.features.evidence import word_columns
from sae_explore.files.tensor_file import write_tensors
from sae_explore.models.model import Unembedding
from sae_explore.models.tokens import Vocabulary
from sae_explore.saes.sae import Sae

NEIGHBOURS = 10
DENSE = 0.1  # share of tokens from which a feature counts as dense: hidden by default in ranked lists


def build_features(
    out: Path,
    *,
    store: ActivationStore,
    totals: FeatureTotals,
    sae: Sae,
    unembedding: Unembedding,
    vocabulary: Vocabulary,
    ids: np.ndarray,
    doc_offsets: np.ndarray,
    ignored: np.ndarray,
    category_of_document: np.ndarray,
    window: int,
    seed: int = 0,
    report: Callable[..., None] = lambda _text, _share=None: None,
) -> dict:
    """Write the four files; returns {"lens": ..., "summary": ...} for the manifest."""
    n_tokens = len(ids)
    document = np.repeat(np.arange(len(doc_offsets) - 1), np.diff(doc_offsets))
    position = np.arange(n_tokens) - doc_offsets[document]
    unit = np.cumsum(np.concatenate([[0], (np.diff(document) != 0) | (np.diff(position // window) != 0)]))  # document windows
    categories = sorted(set(category_of_document.tolist()))
    category_of_token = np.searchsorted(categories, category_of_document)[document]

    report("examples")
    examples = feature_stats.choose_examples(store, ids, unit, seed=seed)
    write_tensors(out / bundle.EXAMPLES_FILE, examples._asdict())
    report("lens")
    tables, random, lens_info = lens_tables(sae.W_dec, unembedding, vocabulary, examples.top, ids, seed=seed)
    write_lens(out, tables)
    report("neighbours and co-active features")
    near = {name: lens.nearest_by_cosine(rows, NEIGHBOURS) for name, rows in (("decoder", sae.W_dec), ("encoder", sae.W_enc.T))}
    counted = int((~ignored).sum())
    together = feature_stats.coactivation(store, totals.count, counted, seed=seed)
    by_category = feature_stats.group_counts(store, category_of_token, len(categories))
    arrays = {
        "max": totals.max,
        "histogram": feature_stats.histograms(store, totals.max).astype(np.uint32),
        "categories": by_category.astype(np.uint32),
        "coactive_feature": together.feature,
        "coactive_probability": together.probability.astype(np.float16),
        "coactive_correlation": together.correlation.astype(np.float16),
        "coactive_count": together.count.astype(np.uint32),
    }
    for name, (neighbours, cosines) in near.items():
        arrays |= {f"{name}_neighbours": neighbours, f"{name}_cosines": cosines.astype(np.float16)}
    write_tensors(out / bundle.ARRAYS_FILE, arrays)
    report("labels")
    columns = _number_columns(totals, counted, tables, random, sae)
    category_share = _category_share(categories, category_of_token[~ignored])
    listed = tables[lens_info["default"]]
    columns |= word_columns(
        ids=ids,
        vocabulary=vocabulary,
        doc_offsets=doc_offsets,
        category_of_document=category_of_document,
        category_share=category_share,
        examples=examples,
        lens_ids=listed.positive_ids,
        z_top=_z_top(listed),
        random_z_top=_z_top(random[lens_info["default"]]),
        rows_of=lambda rows: unembedding.W_U[torch.from_numpy(rows)].float().numpy(),
        seed=seed,
    )
    pq.write_table(pa.table(columns), out / bundle.FEATURES_FILE, compression="zstd")
    live = totals.count > 0
    density = totals.count / max(counted, 1)
    return {
        "lens": lens_info,
        "summary": {
            "dead": int((~live).sum()),
            "dense": int((density > DENSE).sum()),
            "dense_above": DENSE,
            "counted_tokens": counted,
            "l0": float(totals.count.sum() / max(counted, 1)),
            "kinds": dict(Counter(columns["label_kind"])),
            "category_share": category_share,
        },
    }


# ---- the logit lens ----------------------------------------------------------------------------------------------------


def lens_tables(W_dec: torch.Tensor, unembedding: Unembedding, vocabulary: Vocabulary, top: np.ndarray, ids: np.ndarray, *, seed: int = 0):
    """(tables, tables of random directions, info) by convention; the default is the one that agrees best with the features' examples."""
    hidden = vocabulary.special | (np.diff(vocabulary.offsets) == 0)
    tables = lens.lens_tables(W_dec, unembedding, hidden)
    random = lens.lens_tables(lens.random_directions(W_dec.shape[1], seed=seed), unembedding, hidden)
    agreement = {convention: round(_mean_agreement(table.positive_ids, top, ids), 4) for convention, table in tables.items()}
    default = max(lens.CONVENTIONS, key=lambda c: agreement[c])
    baseline = random["folded"]
    info = {
        "default": default,
        "conventions": list(lens.CONVENTIONS),
        "agreement": agreement,
        "random": {
            "directions": lens.N_RANDOM,
            "strength": float(baseline.std.mean()),
            "top_logit": {c: float(t.positive[:, 0].mean()) for c, t in random.items()},
            "z_top": {c: float(_z_top(t).mean()) for c, t in random.items()},
        },
    }
    return tables, random, info


def _z_top(table: lens.LensTable) -> np.ndarray:
    """The largest listed logit in standard deviations over the vocabulary, (n,)."""
    return table.positive[:, 0].astype(np.float32) / np.maximum(table.std, 1e-12)


def _mean_agreement(positive_ids: np.ndarray, top: np.ndarray, ids: np.ndarray, first: int = 10) -> float:
    """Over live features: mean share of top examples whose peak token or the one after it is among the first lens tokens."""
    shares = []
    for row, listed in zip(top, positive_ids[:, :first], strict=True):
        peaks = row[row != NONE].astype(np.int64)
        if len(peaks):
            after = ids[np.minimum(peaks + 1, len(ids) - 1)]
            shares.append(float((np.isin(ids[peaks], listed) | np.isin(after, listed)).mean()))
    return float(np.mean(shares)) if shares else 0.0


def write_lens(out: Path, tables: dict[str, lens.LensTable]) -> None:
    """Lists of every convention; the histogram only of the folded one, in which strength is defined."""
    arrays = {}
    for convention, table in tables.items():
        for side in ("positive", "negative"):
            arrays[f"{convention}.{side}_ids"] = getattr(table, f"{side}_ids")[:, : lens.LENS_TOP].astype(np.uint32)
            arrays[f"{convention}.{side}"] = getattr(table, side)
    folded = tables["folded"]
    arrays |= {"folded.histogram": folded.histogram.astype(np.uint32), "folded.low": folded.low, "folded.high": folded.high}
    write_tensors(out / bundle.LENS_FILE, arrays)


# ---- the table ---------------------------------------------------------------------------------------------------------


def _number_columns(totals: FeatureTotals, counted: int, tables, random, sae: Sae) -> dict:
    moments = feature_stats.moments(totals)
    folded, chance = tables["folded"], float(random["folded"].std.mean())
    return {
        "feature": np.arange(len(totals.count), dtype=np.int32),
        "count": totals.count,
        "density": (totals.count / max(counted, 1)).astype(np.float32),
        "max": totals.max.astype(np.float32),
        "mean": moments.mean.astype(np.float32),
        "std": moments.std.astype(np.float32),
        "skew": moments.skew.astype(np.float32),
        "kurtosis": moments.kurtosis.astype(np.float32),
        "strength": folded.std,
        "strength_ratio": (folded.std / max(chance, 1e-12)).astype(np.float32),
        "lens_kurtosis": folded.kurtosis,
        "decoder_norm": sae.W_dec.norm(dim=-1).numpy().astype(np.float32),
    }


def _category_share(names: list[str], category_of_token: np.ndarray) -> dict[str, float]:
    """Each category's share of the tokens."""
    counts = np.bincount(category_of_token, minlength=len(names))
    return {name: round(float(c) / max(int(counts.sum()), 1), 6) for name, c in zip(names, counts, strict=True)}
