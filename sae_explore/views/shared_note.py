"""What a visitor sees of the bundles that the app fetches by itself (see `shared_bundles`): progress, and a note where some are missing."""

from __future__ import annotations

import streamlit as st

from sae_explore import public_mode, resources
from sae_explore.bundles.shared_bundles import SharedBundles
from sae_explore.drawing.spans import md
from sae_explore.wording import sentence

_TICK = 0.25  # seconds between two looks at the job
_TITLE = "Fetching bundles"


def wait_if_needed() -> None:
    """Start fetching with the first visit, and wait for it where there is nothing to show before: no bundle, or not the one of the link."""
    job = resources.shared_bundles_job()
    if job is None:
        return
    job.start()
    names = resources.bundle_names()
    if not job.running or (names and st.query_params.get("bundle", names[0]) in names):
        return
    place = st.empty()
    with place.container(), st.status(_TITLE, expanded=True):
        bar = st.progress(0.0)
        while not job.wait(_TICK):
            _show(job, bar)
    place.empty()


def note() -> None:
    """In the sidebar: how far it is, or what is missing."""
    job = resources.shared_bundles_job()
    if job is None:
        return
    if job.running:
        with st.sidebar:
            _follow(job)
    elif job.problems:
        if public_mode.is_public():
            st.sidebar.caption(":material/cloud_off: Some bundles could not be fetched just now; these are the ones that are here.")
        else:
            said = "\n".join(f"- {md(problem)}" for problem in job.problems)
            st.sidebar.caption(
                ":material/cloud_off: Some bundles could not be fetched; the app goes on with those that are here.", help=said
            )


@st.fragment(run_every=1.0)
def _follow(job: SharedBundles) -> None:
    if not job.running:  # the list of bundles has grown
        st.rerun()
    with st.status(_TITLE, expanded=True):
        _show(job, st.progress(0.0))


def _show(job: SharedBundles, bar) -> None:
    bar.progress(min(1.0, job.share or 0.0), text=md("" if public_mode.is_public() else sentence(job.text)))
