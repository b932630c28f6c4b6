"""The way from the demo to GPT-2: one button, where there is no GPT-2 bundle and builds are allowed."""

from __future__ import annotations

import streamlit as st

from sae_explore import resources
from sae_explore.building import build_jobs
from sae_explore.building.presets import request_for
from sae_explore.bundles.bundle import Bundle
from sae_explore.views import addresses
from sae_explore.views.build_status import share_done

NAME = "gpt2"


def offer(bundle: Bundle | None) -> None:
    """Draw it. Nothing is asked of the network before the click."""
    if NAME in resources.bundle_names() or not resources.builds_allowed():
        return
    if job := build_jobs.running(resources.cache_folder()):
        what = "GPT-2 is" if job.name == NAME else "A bundle is"
        st.page_link(addresses.page_named("build"), label=f"{what} being built: {share_done(job):.0%}", icon=":material/progress_activity:")
        return
    if bundle is not None:
        st.caption("This is the demo, on a small model. GPT-2 is one step away:" if bundle.name == "demo" else "GPT-2 is one step away:")
    said = "Downloads GPT-2 and a published SAE for it (about 700 MB) and builds their bundle. It can be left alone, cancelled and resumed."
    if st.button("Set up GPT-2", icon=":material/download:", help=said, key="setup_gpt2", width="stretch") and _begun():
        st.switch_page(addresses.page_named("build"))


def _begun() -> bool:
    """Start or go on with it; what stands in the way is said. Where it does not fit this machine, the Build page says so."""
    from sae_explore.building import estimate  # the first page need not pay for these
    from sae_explore.views.build_form import begin, estimate_of

    job = build_jobs.job_named(resources.cache_folder(), NAME)
    request = job.request if job and job.request else request_for(NAME)
    found = estimate_of(request)
    return not found.fits(estimate.this_machine(resources.cache_folder())) or begin(request, expected=found.seconds)
