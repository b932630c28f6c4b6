"""Borrow: a feature's activations from another text (activation patching)."""

from __future__ import annotations

import streamlit as st

from sae_explore import resources
from sae_explore.errors import ExploreError
from sae_explore.explore import text_view
from sae_explore.resources import Piece
from sae_explore.views import whatif_effect
from sae_explore.views.whatif_scene import Scene, fires_here, refuse
from sae_explore.wording import count_of

HOW = {"places": "place by place", "strongest": "its strongest, at one token"}
HOW_HELP = (
    "Place by place: where both texts have the same words in the same order, and at the last words of stretches in which they differ. "
    "Its strongest: the feature's largest activation on the other text, put at the token that you click below."
)


def render(scene: Scene) -> None:
    state = st.session_state
    if state.get("_whatif_source_of") != scene.id:
        state["_whatif_source"], state["_whatif_source_of"] = "", scene.id
    with st.form("whatif_source", border=False):
        st.text_area(
            "Text to borrow from",
            key="_whatif_source",
            height=90,
            placeholder="The same text with one word changed, say, or any other on which the feature fires",
        )
        st.form_submit_button("Borrow from this text")
    source = state.get("_whatif_source") or ""
    if not source.strip():
        st.caption("Try it with a copy of the text above in which one word is another.")
        return
    how = st.segmented_control(
        "What goes where",
        list(HOW),
        format_func=HOW.get,
        default="places",
        required=True,
        key="_whatif_how",
        help=HOW_HELP,
        persist_state="session",
    )
    try:
        text_view.check_own_text(source)
        edits = _edits(scene, source, how)
    except ExploreError as error:
        refuse(error)
        return
    if edits:
        whatif_effect.show(scene, edits)


def _edits(scene: Scene, source: str, how: str) -> tuple:
    from sae_explore.whatif.patching import align, patched, patched_maximum

    trace = resources.get_trace(scene.bundle, source)
    other = resources.get_reading(scene.bundle, Piece(source, 0, len(trace.tokens)))
    feature = scene.features[0]
    column = other.rows.column(feature)
    strongest = f"{column.max():.2f} at most" if column.any() else "silent"
    st.markdown(f"{fires_here(scene)} On the other text: {strongest}.")
    if how == "strongest":
        at = scene.peak if scene.token is None else scene.token
        return tuple(patched_maximum(other, f, [at]) for f in scene.features)
    pairs = align(other.tokens.ids, scene.trace.tokens.ids[scene.part])
    if not pairs:
        st.info("The two texts have no places in common.", icon=":material/compare_arrows:")
        return ()
    st.caption(f"{count_of(len(pairs), 'token')} of {len(scene)} have a place in the other text.")
    return tuple(patched(other, f, pairs) for f in scene.features)
