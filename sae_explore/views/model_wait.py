"""Waiting for a bundle's model: what is being done, how far it is, and a way to try again."""

from __future__ import annotations

import time

import streamlit as st

from sae_explore import public_mode, resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import spans
from sae_explore.models.model_sources import display_name, download_size, is_local
from sae_explore.wording import page_words

_TICK = 0.25  # seconds between two looks at the job


OWN_TEXTS = "Own texts need the language model itself; it is kept for the next time."
WHOLE_MODEL = "Changing features needs the whole language model; it is kept for the next time."


def model_ready(bundle: Bundle, place, *, whole: bool = False) -> bool:
    """Whether own texts can be read now, or, with `whole`, features changed. If not, load the model and show the progress in `place`,
    an `st.empty`; False after a failure, which stays there with a way to try again.
    """
    job = resources.lab_job(bundle) if whole else resources.tracer_job(bundle)
    if job.tracer is None and (job.error is None or job.running):
        job.start()
        place.empty()
        if not job.wait(_TICK):  # long enough for the browser to have emptied the place
            with place.container():
                _follow(job, bundle.manifest["model"]["spec"], WHOLE_MODEL if whole else OWN_TEXTS)
            place.empty()
    if job.tracer is not None:
        return True
    with place.container():
        st.error(
            f"The model could not be loaded: {spans.md(page_words(public_mode.shown(job.error or 'the work was interrupted')))}",
            icon=":material/cloud_off:",
        )
        st.caption("Stored texts and all features can be explored without it.")
        st.button("Try again", icon=":material/refresh:", on_click=job.start)
    return False


def _follow(job, spec: str, why: str) -> None:
    """Show what the job is doing until it has ended, and why."""
    here = is_local(spec, models=resources.cache_folder() / "models")
    size = download_size(spec)
    title = (
        f"Loading {display_name(spec)}"
        if here
        else ", ".join(filter(None, (f"Fetching {display_name(spec)}", size, "the first time only")))
    )
    with st.status(spans.md(title), expanded=True):
        if not here:
            st.write(why)
        started, bar = time.monotonic(), st.progress(0.0)
        while not job.wait(_TICK):
            bar.progress(min(1.0, job.share or 0.0), text=f"{spans.md(job.text)} ({time.monotonic() - started:.0f} s)")
