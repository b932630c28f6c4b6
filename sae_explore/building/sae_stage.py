"""The stage of a build that writes sae/: an SAE that was trained elsewhere, checked against model and texts, or one trained here."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch

from sae_explore.activations import encoding
from sae_explore.activations.collect import collect_activations, ignored_rows, median_norm_of, residual_blocks, static_ignored
from sae_explore.building.build_context import Context, tokenized, training_split
from sae_explore.building.build_request import EVALUATED_TOKENS
from sae_explore.building.metrics import evaluate_reconstruction
from sae_explore.bundles import bundle
from sae_explore.bundles.tracer import bundle_sae
from sae_explore.errors import InputError, SaeError
from sae_explore.saes.sae import Sae
from sae_explore.saes.sae_formats import save_sae
from sae_explore.saes.train import Progress, TrainConfig, train_topk
from sae_explore.types import SaeSpec

_L0_TOKENS = 4_096  # on which the number of active latents is measured before a store is built
_MOST_OF_K = 3.0  # BatchTopK SAEs have k active latents on average over their own training texts


def stage_sae(context: Context) -> dict:
    """Write sae/; {"spec", "train", "median_norm", "held_out"}."""
    return _given_sae(context) if context.foreign else _trained_sae(context)


def _given_sae(context: Context) -> dict:
    """As `stage_sae`. InputError or SaeError if it does not fit the model or the texts."""
    sae, model = context.foreign, context.model
    if sae.spec.d_in != model.d_model:
        named = f" Its files name {sae.spec.model}." if sae.spec.model else ""
        raise InputError(
            f"the SAE reads {sae.spec.d_in} dimensions, but {context.source.display} has {model.d_model}; is it made for this model?{named}"
        )
    sae = replace(sae, spec=replace(sae.spec, **_as_read(context)))
    save_sae(sae, context.out / bundle.SAE_FOLDER, dtype=getattr(torch, context.request.weights))
    for first, last, rows in residual_blocks(model, context.ids_of, context=context.window, bos=context.bos):
        static = static_ignored(context.ids_of[first:last], model.vocabulary.special, context=context.window, bos=context.bos)
        if median := median_norm_of(rows, static):
            _check_l0(sae.to(model.device), rows[~ignored_rows(rows, static, median)])
            return {"spec": asdict(sae.spec), "train": None, "median_norm": median, "held_out": None}
    raise InputError("the texts hold nothing but special tokens and first positions of windows, which are left out; give longer ones")


def _as_read(context: Context) -> dict:
    """What the SAE's files left open and the model has settled."""
    spec = context.foreign.spec
    if spec.prepend_bos is not None:
        return {}
    said = "its files do not say whether windows begin with a BOS; they are read with" + ("" if context.bos else "out")
    return {"prepend_bos": context.bos, "notes": (*spec.notes, f"{said} one, as the model's tokenizer does")}


def _check_l0(sae: Sae, rows: torch.Tensor) -> None:
    """Refuse an SAE of which many more latents are active on the first tokens than its k: its files are not what they say (SAELens#553)."""
    if not sae.spec.k:
        return
    rows = rows[:_L0_TOKENS]
    l0 = len(sae.encode(rows)[0].features) / max(len(rows), 1)
    if l0 > _MOST_OF_K * sae.spec.k:
        raise SaeError(
            f"{l0:.1f} latents of the {sae.spec.architecture} SAE are active on a token, but its k is {sae.spec.k}: "
            "its files are not what they say, or it is not of this model at this hook"
        )


def _trained_sae(context: Context) -> dict:
    request, model, work = context.request, context.model, context.work
    trained_on, held_out = training_split(work.folder)
    train_ids = tokenized(
        model,
        trained_on["text"],
        lambda s: context.report("sae", "reading the texts", min(s, 1.0)),
        enough=request.max_tokens and int(1.2 * request.max_tokens) + 10_000,  # some are ignored: sinks, special tokens
    )
    total = min(request.max_tokens or 1 << 62, sum(map(len, train_ids)))
    data, info = collect_activations(
        model,
        train_ids,
        work.folder / "activations",
        context=context.window,
        bos=context.bos,
        max_tokens=request.max_tokens,
        batch_rows=request.batch_size,
        autocast=encoding.training_dtype(request.dtype),
        progress=lambda n: context.report("sae", f"residuals of {n:,} of {total:,} tokens", min(1.0, n / max(total, 1))),
    )
    config = TrainConfig(request.latents, request.k, request.epochs, request.lr, request.batch_tokens, seed=request.seed)
    spec = SaeSpec(
        "topk",
        model.d_model,
        request.latents,
        request.k,
        context.hook.name,
        request.model,
        context.window,
        context.bos,
        source="trained here",
    )
    last: list[Progress] = []

    def tell(p: Progress) -> None:
        last[:] = [p]
        context.report(
            "sae",
            f"epoch {p.epoch + 1} of {config.epochs}: loss {p.loss:.3f}, explained variance {p.explained_variance:.3f}, "
            f"L0 {p.l0:.1f}, dead {p.dead}",
            p.step / p.steps,
        )

    sae, used = train_topk(
        data,
        config,
        spec=spec,
        device=context.device,
        checkpoint=work.folder / "checkpoint.pt",
        encoder_dtype=encoding.training_dtype(request.dtype),
        report=tell,
    )
    save_sae(sae, context.out / bundle.SAE_FOLDER, dtype=getattr(torch, request.weights))
    sae = bundle_sae(context.out / bundle.SAE_FOLDER, asdict(spec)).to(context.device)
    options = {"context": context.window, "bos": context.bos, "median_norm": info["median_norm"]}
    outside = None
    if held_out.num_rows:
        ids = tokenized(model, held_out["text"], lambda _s: None)
        outside = evaluate_reconstruction(model, sae, ids, held_out["category"].to_pylist(), max_tokens=EVALUATED_TOKENS, **options)
    inside = evaluate_reconstruction(model, sae, train_ids, ["train"] * len(train_ids), max_tokens=EVALUATED_TOKENS // 4, **options)
    train = {
        "tokens": info["tokens"],
        "documents": info["documents"],
        "sinks": info["sinks"],
        "config": asdict(used),
        "tokens_seen": data.tokens // used.batch_tokens * used.batch_tokens * used.epochs,
        "explained_variance": inside.explained_variance,
        "tokens_evaluated": inside.tokens,
        "l0": inside.l0,
    }
    return {"spec": asdict(spec), "train": train, "median_norm": info["median_norm"], "held_out": asdict(outside) if outside else None}
