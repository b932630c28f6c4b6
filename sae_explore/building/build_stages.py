"""The stages of a build. Each takes the `Context`, writes its files into `out/`, and returns what later stages and the manifest need.

No stage holds anything of size tokens x latents or tokens x d_model beyond a block of documents.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sae_explore.activations import activation_store, encoding
from sae_explore.activations.activation_store import ActivationStore, StoreWriter
from sae_explore.activations.collect import capacity_of, ignored_rows, residual_blocks, static_ignored
from sae_explore.building.build_context import TRAIN_DOCUMENTS, Context
from sae_explore.building.diagnosis import warnings_for
from sae_explore.building.evaluation import evaluate
from sae_explore.building.sae_stage import stage_sae as stage_sae
from sae_explore.bundles import bundle
from sae_explore.errors import InputError
from sae_explore.features import feature_map
from sae_explore.features.feature_table import build_features
from sae_explore.files.tensor_file import read_tensors, write_tensors
from sae_explore.models.model import load_full_model
from sae_explore.saes.sae_conventions import units_of
from sae_explore.texts.dataset import load_texts
from sae_explore.types import SaeSpec

log = logging.getLogger(__name__)

# ---- texts and tokens --------------------------------------------------------------------------------------------------


def stage_texts(context: Context) -> dict:
    """Documents to explore -> documents.parquet; documents to train on, in random order, beside the bundle."""
    request = context.request
    say = lambda text: context.report("texts", text)  # noqa: E731
    explored = load_texts(request.store_texts or request.texts, max_texts=request.max_texts, seed=request.seed, report=say)
    if not explored.documents:
        raise InputError(f"the texts {', '.join(request.store_texts or request.texts)} hold nothing to read")
    pq.write_table(_table(explored.documents), context.out / bundle.DOCUMENTS_FILE, compression="zstd")
    notes, sources = list(explored.notes), [asdict(s) for s in explored.sources]
    train_sources = sources
    if not request.sae:
        training = load_texts(request.texts, seed=request.seed, report=say) if request.store_texts else explored
        order = np.random.default_rng(request.seed).permutation(len(training.documents))
        pq.write_table(_table([training.documents[i] for i in order]), context.work.folder / TRAIN_DOCUMENTS)
        notes += [n for n in training.notes if n not in notes]
        train_sources = [asdict(s) for s in training.sources]
    counts = Counter(d.category for d in explored.documents)
    return {
        "documents": len(explored.documents),
        "categories": sorted(counts),
        "notes": notes,
        "sources": sources,
        "train_sources": train_sources,
    }


def _table(documents) -> pa.Table:
    return pa.table({name: pa.array([getattr(d, name) for d in documents], pa.string()) for name in ("id", "source", "category", "text")})


def stage_tokens(context: Context) -> dict:
    """vocabulary.safetensors: what every token id holds, so that pages need no tokenizer; the number of tokens."""
    vocabulary = context.model.vocabulary
    write_tensors(
        context.out / bundle.VOCABULARY_FILE,
        {
            "blob": vocabulary.blob,
            "offsets": vocabulary.offsets.astype(np.uint32),
            "special": vocabulary.special,
        },
    )
    tokens = sum(map(len, context.ids_of))
    if not tokens:
        raise InputError("the texts hold no tokens")
    return {"tokens": tokens, "bos": context.bos, "n_layers": context.model.n_layers, "revision": context.source.revision}


# ---- the store ---------------------------------------------------------------------------------------------------------


def stage_store(context: Context) -> dict:
    """activations.safetensors and tokens.safetensors, in one pass over the documents."""
    model, sae, work, ids_of = context.model, context.sae, context.work, context.ids_of
    median = work.state["done"]["sae"]["median_norm"]
    cap = context.request.store_cap or activation_store.CAP
    writer = StoreWriter(work.folder / "store", sae.spec.d_sae, cap=cap)
    at = work.progress("store") or {"document": 0, "part": 0, "sinks": 0}
    if "dtype" not in at:  # measured once, so that a resumed build goes on in the same precision
        autocast, agreement = encoding.store_dtype(context.request.dtype, model, sae, ids_of, context=context.window, bos=context.bos)
        at |= {"dtype": "bfloat16" if autocast else "float32", "agreement": agreement}
    autocast = torch.bfloat16 if at["dtype"] == "bfloat16" else None
    blocks = (
        residual_blocks(
            model,
            ids_of,
            context=context.window,
            bos=context.bos,
            batch_rows=context.request.batch_size,
            autocast=autocast,
            first_document=at["document"],
        )
        if at["document"] < len(ids_of)
        else ()
    )
    for first, last, rows in blocks:
        static = static_ignored(ids_of[first:last], model.vocabulary.special, context=context.window, bos=context.bos)
        ignored = ignored_rows(rows, static, median)
        encoding.write_block(writer, at["part"], sae, rows, ignored)
        at |= {"document": last, "part": at["part"] + 1, "sinks": at["sinks"] + int(ignored.sum()) - int(static.sum())}
        work.save_progress("store", at)
        context.report("store", f"{last:,} of {len(ids_of):,} texts", last / len(ids_of))
    totals = writer.finish(
        context.out / activation_store.STORE_FILE,
        seed=context.request.seed,
        progress=lambda share: context.report("store", "ordering by feature", share),
    )
    _write_tokens(context, writer.ignored())
    np.savez(work.folder / "totals.npz", **totals._asdict())
    return {
        "sinks": at["sinks"],
        "ignored": int(writer.ignored().sum()),
        "dtype": at["dtype"],
        "bf16_agreement": at["agreement"],
        "cap": cap,
    }


def _write_tokens(context: Context, ignored: np.ndarray) -> None:
    from sae_explore.models.tokens import char_ends

    ends = [char_ends(context.model.tokenize(text.as_py()).texts) for text in context.documents["text"]]
    write_tensors(
        context.out / bundle.TOKENS_FILE,
        {
            "ids": np.concatenate(context.ids_of).astype(np.uint16 if len(context.model.vocabulary) <= 1 << 16 else np.uint32),
            "offsets": np.concatenate([[0], np.cumsum([len(i) for i in context.ids_of])]).astype(np.int64),
            "char_ends": np.concatenate(ends).astype(np.uint32),
            "ignored": ignored,
        },
    )


# ---- features, metrics, manifest ---------------------------------------------------------------------------------------


def stage_features(context: Context) -> dict:
    """features.parquet, features.safetensors, lens.safetensors, examples.safetensors."""
    totals = activation_store.FeatureTotals(**np.load(context.work.folder / "totals.npz"))
    store = ActivationStore(context.out / activation_store.STORE_FILE, context.sae.spec.d_sae)
    tokens = read_tensors(context.out / bundle.TOKENS_FILE)
    category = np.asarray(context.documents["category"].to_pylist())
    return build_features(
        context.out,
        store=store,
        totals=totals,
        sae=context.sae.to("cpu"),
        unembedding=context.model.unembedding,
        vocabulary=context.model.vocabulary,
        ids=np.asarray(tokens["ids"]),
        doc_offsets=np.asarray(tokens["offsets"]),
        ignored=np.asarray(tokens["ignored"]),
        category_of_document=category,
        window=capacity_of(context.window, bos=context.bos),
        seed=context.request.seed,
        report=lambda text, share=None: context.report("features", text, share),
    )


def stage_map(context: Context) -> dict:
    """map.safetensors, where the library is installed and the dictionary can be drawn: a bundle is whole without it."""
    if not feature_map.can_draw():
        context.report("map", f"left out: {feature_map.LIBRARY} is not installed")
        return {"drawn": False}
    context.report("map", "drawing the map")
    try:
        feature_map.write_map(context.out, report=lambda text, share=None: context.report("map", text, share))
    except (ImportError, MemoryError, ValueError, ArithmeticError) as error:
        log.warning("the map of the dictionary was left out: %s", error)
        return {"drawn": False}
    return {"drawn": True}


def stage_metrics(context: Context) -> dict:
    """Explained variance, L0, dead and cross entropies on the evaluated documents."""
    chosen, which, sentence = context.evaluated
    context.report("metrics", "how well the SAE rebuilds the residuals")
    figures = evaluate(
        context.model,
        load_full_model(context.source.folder, device=context.device),
        context.sae,
        [context.ids_of[i] for i in chosen],
        [context.documents["category"][i].as_py() for i in chosen],
        window=context.window,
        bos=context.bos,
        median_norm=context.work.state["done"]["sae"]["median_norm"],
        report=lambda share: context.report("metrics", "what the SAE costs the model's predictions", share),
    )
    return {"evaluated_set": which, "evaluated_on": sentence, **figures}


def manifest(context: Context, found: dict[str, dict]) -> dict:
    """What the manifest says beside schema, folder and files."""
    sae, texts, tokens, store = found["sae"], found["texts"], found["tokens"], found["store"]
    train, summary, metrics = sae["train"], found["features"]["summary"], found["metrics"]
    return {
        "model": {
            "spec": context.source.spec,
            "display": context.source.display,
            "revision": tokens["revision"],
            "licence": context.source.licence,
            "n_layers": tokens["n_layers"],
        },
        "hook": context.hook.name,
        "units": units_of(SaeSpec(**{**sae["spec"], "notes": tuple(sae["spec"]["notes"])})),
        "context": context.window,
        "bos": tokens["bos"],
        "median_norm": sae["median_norm"],
        "sae": sae["spec"],
        "train": train,
        "corpus": {
            "texts": list(context.request.store_texts or context.request.texts),
            "documents": texts["documents"],
            "tokens": tokens["tokens"],
            "counted_tokens": tokens["tokens"] - store["ignored"],
            "sinks": store["sinks"],
            "categories": texts["categories"],
            "category_share": summary["category_share"],
            "sources": texts["sources"],
            "train_sources": texts["train_sources"],
            "notes": texts["notes"],
        },
        "store": {key: store[key] for key in ("dtype", "bf16_agreement", "cap")},
        "lens": found["features"]["lens"],
        "features": summary,
        "metrics": {
            "tokens_train": train["tokens"] if train else None,
            "explained_variance_train": train["explained_variance"] if train else None,
            "latents": sae["spec"]["d_sae"],
            "dead": summary["dead"],
            "held_out_of_training_sources": sae["held_out"],
            **metrics,
        },
        "warnings": warnings_for(
            explained_variance=metrics["explained_variance"],
            tokens_train=train and train["tokens"],
            latents=sae["spec"]["d_sae"],
            k=sae["spec"]["k"],
            architecture=sae["spec"]["architecture"],
            d_in=sae["spec"]["d_in"],
            dead=summary["dead"],
            counted_tokens=summary["counted_tokens"],
            kinds=summary["kinds"],
            l0=summary["l0"],
        ),
        "request": context.work.state["request"],
    }
