"""An SAE that was trained elsewhere, for a build: found, read, and its place in the model settled."""

from __future__ import annotations

from dataclasses import replace

from sae_explore.building.build_request import BuildRequest
from sae_explore.building.build_work import Work
from sae_explore.errors import InputError
from sae_explore.models.model_sources import Report
from sae_explore.saes.sae import Sae
from sae_explore.saes.sae_conventions import centring, notes_of, repository_of
from sae_explore.saes.sae_formats import load_sae
from sae_explore.saes.sae_sources import resolve_sae
from sae_explore.types import HookPoint


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
