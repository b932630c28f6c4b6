"""Build: make a bundle from here. Choices with an estimate, live progress, and what became of earlier builds."""

from __future__ import annotations

import streamlit as st

from sae_explore import resources
from sae_explore.building import build_jobs
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing.spans import md
from sae_explore.views import addresses
from sae_explore.views.build_form import build_form
from sae_explore.views.build_status import ended_build, running_build
from sae_explore.wording import sentence


def render(bundle: Bundle | None) -> None:
    """The page; it needs no bundle."""
    if bundle is not None:
        addresses.write_link(bundle)
    st.title("Build", anchor=False)
    if not resources.builds_allowed():
        st.info("Nothing can be built here: this app shows what was built elsewhere.", icon=":material/lock:")
        return
    st.markdown("Make your own bundle: a model, a place in it, an SAE and texts. It then opens like the demo.")
    if problem := st.session_state.pop("_build_problem", None):
        st.error(md(sentence(problem)), icon=":material/error:")
    cache = resources.cache_folder()
    build_jobs.tidy(cache)
    found = build_jobs.jobs(cache)
    now = next((job for job in found if job.running), None)
    if now:
        running_build(now.name)
    for job in found:
        if not job.running:
            ended_build(job)
    if now:
        st.caption("One build at a time: the choices for another come back when this one has ended.")
    else:
        build_form()
