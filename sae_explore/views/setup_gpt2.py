"""The way from the demo to GPT-2: one button, where there is no GPT-2 bundle and builds are allowed."""

from __future__ import annotations

import streamlit as st

from sae_explore import build_jobs, resources
from sae_explore.bundle import Bundle
from sae_explore.presets import request_for
from sae_explore.views import shell
from sae_explore.views.build_status import share_done

NAME = "gpt2"


def offer(bundle: Bundle | None) -> None:
    """Draw it. Nothing is asked of the network before the click."""
    if NAME in resources.bundle_names() or not resources.builds_allowed():
        return
    if job := build_jobs.running(resources.cache_folder()):
        what = "GPT-2 is" if job.name == NAME else "A bundle is"
        st.page_link(shell.page_named("build"), label=f"{what} being built: {share_done(job):.0%}", icon=":material/progress_activity:")
        return
    if bundle is not None:
        st.caption("This is the demo, on a small model. GPT-2 is one step away:" if bundle.name == "demo" else "GPT-2 is one step away:")
    said = "Downloads GPT-2 (about 550 MB) and builds its bundle. It can be left alone, cancelled and resumed."
    if st.button("Set up GPT-2", icon=":material/download:", help=said, key="setup_gpt2", width="stretch"):
        from sae_explore.views.build_form import begin  # the first page need not pay for it

        job = build_jobs.job_named(resources.cache_folder(), NAME)
        if begin(job.request if job and job.request else request_for(NAME)):
            st.switch_page(shell.page_named("build"))
