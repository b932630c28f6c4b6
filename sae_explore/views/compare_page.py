"""Compare: two texts through one SAE, or one text through two."""

from __future__ import annotations

import streamlit as st

from sae_explore.bundles.bundle import Bundle
from sae_explore.views import compare_sides

MODES = {"texts": "Two texts", "bundles": "Two bundles"}
INTRO = {
    "texts": "Change a word, or take two texts on different matters: which features fire on one and not on the other?",
    "bundles": "The same text, read by two SAEs: another layer, another model, another dictionary. What does each see in it, and do "
    "their features fire alike?",
}


def render(bundle: Bundle) -> None:
    """Draw the page."""
    compare_sides.take_link(bundle)
    st.space(4)  # a title in a row has no room above it
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.title("Compare", anchor=False, width="content")
        mode = st.segmented_control(
            "What to compare",
            list(MODES),
            format_func=MODES.get,
            default="texts",
            required=True,
            key="_compare_mode",
            persist_state="session",
            label_visibility="collapsed",
            width="content",
        )
    st.markdown(INTRO[mode])
    module = __import__(f"sae_explore.views.compare_{mode}", fromlist=["render"])
    module.render(bundle)
