"""Change features: switch them off, set them, or multiply them."""

from __future__ import annotations

import streamlit as st

from sae_explore.views import whatif_effect
from sae_explore.views.whatif_scene import Scene, fires_here, silent, unit_of
from sae_explore.whatif.edits import Edit

MODES = {"ablate": "Switch off", "set": "Set to", "scale": "Multiply by"}
MODE_HELP = (
    "Switch off: as if the feature did not fire. Set to: this share of the feature's maximum, also where it is silent. Multiply by: more "
    "or less of it where it fires."
)
WHERE = {"all": "all tokens", "one": "one token"}
WHERE_HELP = "One token: the one that you click in the text below, at first the one on which the feature is strongest."


def render(scene: Scene) -> None:
    stay = {"persist_state": "session"}
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        mode = st.segmented_control(
            "How", list(MODES), format_func=MODES.get, default="ablate", required=True, key="_whatif_mode", help=MODE_HELP, **stay
        )
        share = times = 0.0
        if mode == "set":
            share = st.slider("Share of its maximum", 0, 300, 100, 10, format="%d %%", key="_whatif_share", width=220, **stay) / 100
        elif mode == "scale":
            times = st.slider("Times", 0.0, 8.0, 2.0, 0.5, key="_whatif_times", width=220, **stay)
        where = st.segmented_control(
            "Where", list(WHERE), format_func=WHERE.get, default="all", required=True, key="_whatif_where", help=WHERE_HELP, **stay
        )
    if mode != "set" and not any(scene.column(f).any() for f in scene.features):
        silent(scene, "Switching it off or multiplying it changes nothing. You can set it to a value.")
        return
    st.markdown(fires_here(scene))
    position = scene.peak if scene.token is None else scene.token
    positions = None if where == "all" else (position,)
    amounts = {f: times if mode == "scale" else share * unit_of(scene.bundle, f) for f in scene.features}
    whatif_effect.show(scene, tuple(Edit(f, mode, amount, positions) for f, amount in amounts.items()))
