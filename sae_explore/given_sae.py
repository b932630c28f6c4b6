"""A build from an SAE that was trained elsewhere: found, read, placed in the model, checked, and written into the bundle."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch

from sae_explore import bundle
from sae_explore.build_request import BuildRequest
from sae_explore.build_work import Work
from sae_explore.collect import ignored_rows, median_norm_of, residual_blocks, static_ignored
from sae_explore.errors import InputError, SaeError
from sae_explore.model_sources import Report
from sae_explore.sae import Sae
from sae_explore.sae_conventions import centring, notes_of, repository_of
from sae_explore.sae_formats import load_sae, save_sae
from sae_explore.sae_sources import resolve_sae
from sae_explore.types import HookPoint

if TYPE_CHECKING:
    from sae_explore.build_context import Context

_L0_TOKENS = 4_096  # on which the number of active latents is measured before a store is built
_MOST_OF_K = 3.0  # BatchTopK SAEs have k active latents on average over their own training texts


def read_given_sae(request: BuildRequest, work: Work, report: Report) -> Sae:
    """The SAE of the request, its place in the model settled; InputError if the request and its files do not agree about that."""
    found = resolve_sae(request.sae, hook=request.hook, report=report)
    work.same(f"the SAE in {request.sae}", found.fingerprint)
    sae = load_sae(found.path, source=found.name, repository=found.repository, center=request.center)
    spec = sae.spec
    if not spec.hook and not request.hook:
        raise InputError(f"the files of the SAE {request.sae} do not say where in the model it reads; say it with --hook")
    if spec.hook and request.hook and HookPoint.parse(spec.hook).depth != HookPoint.parse(request.hook).depth:
        raise InputError(
            f"the SAE {request.sae} reads {spec.hook}, but {request.hook} was asked for; leave --hook out or choose another SAE"
        )
    _, why = centring(request.center, spec, found.repository or repository_of(str(found.path)))
    return replace(
        sae,
        spec=replace(
            spec,
            hook=spec.hook or request.hook,
            context=spec.context or request.context,
            revision=found.revision,
            notes=notes_of(spec, why_centred=why),
        ),
    )


def write_given_sae(context: Context) -> dict:
    """Write sae/; {"spec", "train", "median_norm", "held_out"}. InputError or SaeError if it does not fit the model or the texts."""
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
