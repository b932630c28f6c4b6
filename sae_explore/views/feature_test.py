"""Does my text activate this feature? A text box of the Feature page; the text stays while one walks from feature to feature."""

from __future__ import annotations

import numpy as np
import streamlit as st

from sae_explore import public_mode, resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import spans
from sae_explore.drawing.spans import dotted, md
from sae_explore.errors import ExploreError
from sae_explore.explore import links
from sae_explore.strength import band_of
from sae_explore.types import TextTrace
from sae_explore.views import addresses
from sae_explore.views.feature_current import TEST_TEXT
from sae_explore.views.model_wait import model_ready
from sae_explore.wording import count_of, percent, sentence

MAX_CHARACTERS = 5_000


@st.fragment
def test_box(bundle: Bundle, feature: int) -> None:
    """A form in a row, and below it the text coloured by this feature."""
    with st.form("feature_test", border=False), st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        text = st.text_area(
            "Does your text activate it?",
            key="_test_area",
            persist_state="session",
            height=68,
            max_chars=public_mode.max_text_chars(MAX_CHARACTERS),
            placeholder="A sentence that may or may not activate this feature",
        )
        submitted = st.form_submit_button("Test", icon=":material/play_arrow:")
    if submitted:
        st.session_state[TEST_TEXT] = text.strip() and text
    text = st.session_state.get(TEST_TEXT, "")
    if not text:
        if submitted:
            st.caption("There is no text yet: write or paste some.")
        return
    job = resources.tracer_job(bundle)
    if job.tracer is None and not (submitted or job.running):
        return  # walking on to another feature loads no model: that is asked for with the button
    if model_ready(bundle, st.empty()):
        try:
            trace = resources.get_trace(bundle, text)
        except ExploreError as error:
            st.error(md(sentence(public_mode.shown(error))), icon=":material/error:")
            return
        if submitted:
            st.rerun()  # the charts below mark its value
        _result(bundle, feature, trace)


def verdict(values: np.ndarray, tokens: tuple[str, ...], data: tuple[bytes, ...], counted: int, maximum: float) -> str:
    """One sentence: on how many tokens it fires, where most, and how strong that is beside its maximum on the corpus. Markdown."""
    firing = int((values > 0).sum())
    if not firing:
        return f"Silent on all {count_of(counted, 'token')}."
    peak = int(values.argmax())
    top = float(values[peak])
    beside = (
        f"{band_of(top / maximum)}, {percent(top / maximum)} of its maximum on the corpus"
        if maximum > 0
        else "it never fires on the corpus"
    )
    return (
        f"Fires on {firing:,} of {count_of(counted, 'token')}, most on “{md(dotted(tokens[peak], data[peak]))}”: **{top:.2f}** ({beside})."
    )


def _result(bundle: Bundle, feature: int, trace: TextTrace) -> None:
    values = np.where(trace.ignored, 0, trace.rows.column(feature))
    maximum = float(bundle.maxima[feature])
    st.markdown(verdict(values, trace.tokens.texts, trace.tokens.bytes, int((~trace.ignored).sum()), maximum))
    scale = maximum or float(values.max())
    peak = int(values.argmax()) if (values > 0).any() else None
    st.html(spans.run_html(trace.tokens.texts, values, trace.ignored, scale, peak=peak, data=trace.tokens.bytes, feature=feature))
    st.page_link(
        addresses.page_named("text"),
        label="All features of this text",
        icon=":material/edit_note:",
        query_params=links.query_of(bundle=bundle.name, text=trace.text),
    )
    if not links.fits_link(trace.text):
        st.caption(f"The text is longer than a link can carry ({links.MAX_LINK_TEXT:,} characters): paste it there.")
