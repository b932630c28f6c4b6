"""Builds as cards: one that runs, with its progress every second; ones that ended, with what became of them and what to do."""

from __future__ import annotations

import time

import streamlit as st

from sae_explore import resources
from sae_explore.building import build_jobs
from sae_explore.building.build_jobs import Job
from sae_explore.building.build_work import STAGES
from sae_explore.building.estimate import time_words
from sae_explore.drawing.spans import md
from sae_explore.errors import ExploreError
from sae_explore.models.model_sources import display_name
from sae_explore.views import addresses
from sae_explore.wording import count_of, sentence

_EVERY = 1.5  # seconds between two looks
_SILENT = 45.0  # seconds without a sign of life after which that is said
_LAST = "publish"
_NAMES = {
    "texts": "Read the texts",
    "model": "Get and load the model",
    "tokens": "Cut texts into tokens",
    "sae": "Make the SAE",
    "store": "Run the model over all texts",
    "features": "Examples, vocabulary and labels",
    "map": "Draw the map of the features",
    "metrics": "Measure how good it is",
    _LAST: "Check and switch",
}
_ORDER = ("texts", "model", *STAGES[1:], _LAST)
_SHORT_OF_MEMORY = "If memory ran out: a smaller batch, fewer latents or fewer tokens need less of it."


# ---- one that runs -----------------------------------------------------------------------------------------------------


@st.fragment(run_every=_EVERY)
def running_build(name: str) -> None:
    """How far it is. When it ends, the page is drawn anew."""
    job = build_jobs.job_named(resources.cache_folder(), name)
    if job is None or not job.running:
        st.rerun()
    with st.container(border=True):
        st.subheader(f"Building {md(name)}", anchor=False)
        _about(job)
        now = time.time()
        left = seconds_left(job, now)
        words = f"{time_words(now - job.started)} so far" + (f", about {time_words(left)} left" if left is not None else "")
        st.progress(share_done(job, now), text=words)
        _stages(job)
        if now - job.ended > _SILENT:
            st.caption(f":material/hourglass_empty: No news for {now - job.ended:.0f} seconds: the machine may be very busy.")
        st.caption("It runs by itself: this page may be left, reloaded or closed.")
        st.button(
            "Cancel", icon=":material/stop_circle:", on_click=_cancel, args=(name,), key="build_cancel", help="Finished stages are kept."
        )


def _about(job: Job) -> None:
    if job.request is not None:
        hook = job.request.hook  # None: where the given SAE says
        where = f", {'before' if hook.endswith('pre') else 'after'} block {hook.split('.')[1]}" if hook else ""
        sae = f"{job.request.latents:,} latents, k = {job.request.k}" if job.request.sae is None else "a given SAE"
        st.caption(f"{md(display_name(job.request.model))}{where}, {sae}" + ("" if job.launched else ". Begun in a terminal."))


def _stages(job: Job) -> None:
    at = _ORDER.index(job.stage) if job.stage in _ORDER else -1
    for i, stage in enumerate(_ORDER):
        took = job.seconds.get(stage)
        if i == at:
            share = f" · {job.share:.0%}" if job.share is not None else ""
            st.markdown(f":orange[:material/play_circle:] **{_NAMES[stage]}**{share}  \n:small[{md(job.text)}]")
            st.progress(min(1.0, max(0.0, job.share or 0.0)))
        elif took is not None or i < at:
            st.markdown(f":green[:material/check_circle:] {_NAMES[stage]}" + (f" :small[{_seconds(took)}]" if took is not None else ""))
        else:
            st.markdown(f":gray[:material/radio_button_unchecked: {_NAMES[stage]}]")


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else time_words(seconds)


def share_done(job: Job, now: float | None = None) -> float:
    """Of the time that the whole build takes, as far as that can be told."""
    now = time.time() if now is None else now
    left, ran = seconds_left(job, now), max(0.0, now - job.started)
    if left is not None:
        return ran / max(ran + left, 1e-9)
    return _ORDER.index(job.stage) / len(_ORDER) if job.stage in _ORDER else 0.0


def seconds_left(job: Job, now: float) -> float | None:
    """From the pace of the running stage, and for the others from what was expected, corrected by how that has turned out so far."""
    if not job.expected or job.stage not in _ORDER:
        return None
    after = _ORDER[_ORDER.index(job.stage) + 1 :]
    took = sum(seconds for stage, seconds in job.seconds.items() if stage in job.expected and stage != job.stage)
    thought = sum(job.expected[stage] for stage in job.seconds if stage in job.expected and stage != job.stage)
    pace = min(5.0, max(0.2, took / thought)) if thought else 1.0
    running = now - job.part_started
    here = running * (1 - job.share) / job.share if job.share and running > 5 else pace * job.expected.get(job.stage, 0.0)
    return here + pace * sum(job.expected.get(stage, 0.0) for stage in after)


# ---- ones that ended ---------------------------------------------------------------------------------------------------


def ended_build(job: Job) -> None:
    """What became of it, and what to do."""
    with st.container(border=True):
        _done(job) if job.state == build_jobs.DONE else _unfinished(job)


def _done(job: Job) -> None:
    manifest = resources.get_bundle(job.name).manifest
    st.subheader(f"{md(job.name)} is ready", anchor=False)
    variance = manifest["metrics"]["explained_variance"]
    first = " It opens first from now on." if resources.bundle_names()[0] == job.name else ""
    st.success(
        f"{manifest['sae']['d_sae']:,} features over {count_of(manifest['corpus']['documents'], 'text')}; they explain {variance:.0%} of the "
        f"variance. It took {time_words(job.ended - job.started)}.{first}",
        icon=":material/check_circle:",
    )
    for warning in manifest["warnings"]:
        st.warning(md(sentence(warning)), icon=":material/troubleshoot:")
    for note in manifest["corpus"]["notes"]:
        st.caption(md(note))
    columns = st.columns([1, 1, 2])
    if columns[0].button("Open it", type="primary", icon=":material/arrow_forward:", key=f"build_open_{job.name}", width="stretch"):
        open_bundle(job.name)
    columns[1].button("Hide this", on_click=_act, args=(build_jobs.remove, job.name), key=f"build_hide_{job.name}", width="stretch")


def _unfinished(job: Job) -> None:
    words = {build_jobs.FAILED: "failed", build_jobs.CANCELLED: "was cancelled"}
    st.subheader(f"{md(job.name)} {words.get(job.state, 'was broken off')}", anchor=False)
    _about(job)
    if job.error:
        st.error(md(sentence(job.error)), icon=":material/error:")
    if job.state == build_jobs.STOPPED:
        st.caption(_SHORT_OF_MEMORY)
    done = [_NAMES[stage].lower() for stage in _ORDER if stage in job.seconds and stage != job.stage]
    if done:
        st.caption(f"Finished and kept: {', '.join(done)}.")
    if job.state == build_jobs.FAILED:
        st.caption("Resume tries the same again. For other settings remove it, and choose anew below.")
    if lines := build_jobs.log_tail(resources.cache_folder(), job.name):
        with st.expander("What it printed last"):
            st.code("\n".join(lines), language=None, wrap_lines=True)
    columns = st.columns([1, 1, 2])
    can = job.request is not None
    columns[0].button("Resume", type="primary", icon=":material/resume:", on_click=_act, args=(build_jobs.resume, job.name), disabled=not can,
                      key=f"build_resume_{job.name}", width="stretch")  # fmt: skip
    with columns[1].popover("Remove", icon=":material/delete:", width="stretch"):
        st.markdown("Its finished stages and its uploaded texts will be gone.")
        st.button("Remove it", on_click=_act, args=(build_jobs.remove, job.name), key=f"build_remove_{job.name}")


def open_bundle(name: str) -> None:
    """Go to the first page with this bundle open."""
    st.session_state["bundle"] = name
    for key in addresses.CHOICES:
        st.session_state.pop(key, None)
    st.switch_page(addresses.page_named("text"))


def _act(action, name: str) -> None:
    """Do something with a build; what goes wrong is said by the page that is drawn next."""
    try:
        action(resources.cache_folder(), name)
    except (ExploreError, OSError) as error:
        st.session_state["_build_problem"] = str(error)


def _cancel(name: str) -> None:
    _act(build_jobs.cancel, name)
