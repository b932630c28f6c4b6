"""Steer: the model writes on from a beginning, as it is and with features pushed, side by side and word by word."""

from __future__ import annotations

import time

import numpy as np
import streamlit as st

from sae_explore import public_mode, resources
from sae_explore.drawing import spans
from sae_explore.errors import ExploreError
from sae_explore.views.whatif_scene import Scene, cost, refuse, unit_of
from sae_explore.whatif import edits
from sae_explore.whatif.edits import Push, Sampling
from sae_explore.wording import percent

BEGINNING = "I think that"
_TOKENS_A_TEXT = 10  # new tokens that count as much as a text read, where visitors share a machine
_RESULT = "_whatif_written"
STRENGTH_HELP = (
    "In units of the feature's maximum on the corpus: 1 adds what the feature adds where it is strongest, below 0 pushes away from it. "
    "Small pushes do little; large ones break the model's language."
)
TEMPERATURE_HELP = "0 always takes the likeliest word. Higher values draw more freely. Both sides draw with the same random numbers."
TOP_P_HELP = "Draws only from the likeliest words that together hold this share of the probability."
PROMPT_HELP = "Push at the words of the beginning as well, not only at the new ones."
LIMITS = (
    f"At most {edits.MAX_NEW_TOKENS} new tokens. The push is added at every token alike, whether the feature would fire there or not, "
    "so it shows what the direction can do, not what the feature does by itself. One pair of texts is one draw: try other seeds. The model "
    "stops at its own end mark."
)


def render(scene: Scene) -> None:
    options = _form()
    kept = st.session_state.get(_RESULT)
    said = _size(scene, options["strength"])
    if options.pop("submitted"):
        _write(scene, said, **options)
    elif kept and kept["features"] == (scene.bundle.name, scene.features):
        _draw_both(scene, kept)
        _closing(scene, kept)
    else:
        st.caption(said)


def _form() -> dict:
    stay = {"persist_state": "session"}
    with st.form("whatif_steer", border=False):
        prompt = st.text_area("Beginning", BEGINNING, key="_whatif_prompt", height=76, **stay)
        first, second, third, fourth = st.columns(4, gap="medium")
        strength = first.slider("Strength", -4.0, 4.0, 2.0, 0.25, key="_whatif_strength", help=STRENGTH_HELP, **stay)
        temperature = second.slider("Temperature", 0.0, 1.5, 0.7, 0.1, key="_whatif_temperature", help=TEMPERATURE_HELP, **stay)
        top_p = third.slider("Top-p", 0.05, 1.0, 0.95, 0.05, key="_whatif_top_p", help=TOP_P_HELP, **stay)
        new_tokens = fourth.slider("New tokens", 5, edits.MAX_NEW_TOKENS, 40, 5, key="_whatif_new", **stay)
        with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
            seed = st.number_input(
                "Seed", 0, 1_000_000, 0, key="_whatif_seed", width=130, help="The same seed gives the same texts.", **stay
            )
            on_prompt = st.checkbox("Push the beginning too", True, key="_whatif_on_prompt", help=PROMPT_HELP, **stay)
            submitted = st.form_submit_button("Write", type="primary", icon=":material/edit:")
    sampling = Sampling(float(temperature), float(top_p), int(seed or 0))
    return {
        "prompt": prompt or "", "strength": float(strength), "sampling": sampling, "new_tokens": int(new_tokens), "on_prompt": bool(on_prompt),
        "submitted": submitted,
    }  # fmt: skip


def _size(scene: Scene, strength: float) -> str:
    """How large the push is beside what the model's state is like: a sentence."""
    manifest = scene.bundle.manifest
    if manifest["sae"]["normalise"] != "none":  # the length then depends on the token
        return ""
    amounts = [strength * unit_of(scene.bundle, f) for f in scene.features]
    length = float(np.linalg.norm(np.asarray(amounts) @ np.asarray(scene.bundle.W_dec[list(scene.features)], np.float32)))
    return f"At strength {strength:g} the push is {percent(length / manifest['median_norm'])} as long as the model's state typically is."


def _write(scene: Scene, said: str, *, prompt: str, strength: float, sampling: Sampling, new_tokens: int, on_prompt: bool) -> None:
    """Stream both texts. What is there is kept at every step, so that an interruption leaves it on the page."""
    from sae_explore.whatif.steering import continuations

    kept = {"features": (scene.bundle.name, scene.features), "prompt": prompt, "strength": strength, "said": said, "texts": ["", ""],
            "tokens": 0, "seconds": 0.0, "ended": (False, False), "stopped": True}  # fmt: skip
    st.session_state[_RESULT] = kept
    stop = st.empty()
    stop.button("Stop", icon=":material/stop:", key="_whatif_stop")  # any click ends the run: what was written stays
    places = _columns(scene, kept)
    try:
        public_mode.spend(new_tokens / _TOKENS_A_TEXT)
        pushes = [Push(f, strength * unit_of(scene.bundle, f)) for f in scene.features]
        steps = continuations(
            resources.get_lab(scene.bundle), prompt, pushes, sampling=sampling, new_tokens=new_tokens, on_prompt=on_prompt
        )
    except ExploreError as error:
        stop.empty()
        st.session_state.pop(_RESULT)
        refuse(error)
        return
    started = time.perf_counter()
    for step in steps:
        kept["texts"] = [kept["texts"][0] + step.plain, kept["texts"][1] + step.steered]
        kept |= {"tokens": kept["tokens"] + 1, "ended": step.ended, "seconds": time.perf_counter() - started}
        for place, text in zip(places, kept["texts"], strict=True):
            place.html(spans.prose_html(prompt, text))
    kept["stopped"] = False
    stop.empty()
    _closing(scene, kept)


def _columns(scene: Scene, kept: dict) -> list:
    """Both headings, and a place for each text."""
    which = f"feature {scene.features[0]}" if len(scene.features) == 1 else f"{len(scene.features)} features"
    places = []
    for column, title in zip(st.columns(2, gap="large"), ("As it is", f"With {which} at {kept['strength']:g}"), strict=True):
        with column:
            st.markdown(f"**{title}**")
            places.append(st.empty())
            places[-1].html(spans.prose_html(kept["prompt"], ""))
    return places


def _draw_both(scene: Scene, kept: dict) -> None:
    for place, text in zip(_columns(scene, kept), kept["texts"], strict=True):
        place.html(spans.prose_html(kept["prompt"], text))


def _closing(scene: Scene, kept: dict) -> None:
    ended = [name for name, end in zip(("the left", "the right"), kept["ended"], strict=True) if end]
    parts = [kept["said"]]
    if kept["stopped"]:
        parts.append("Stopped before the end.")
    if ended:
        parts.append(f"The model itself ended {' and '.join(ended)} text.")
    if any("\ufffd" in text for text in kept["texts"]):
        parts.append("� stands for bytes that are no whole character.")
    st.caption(" ".join(filter(None, parts)))
    rate = kept["seconds"] / max(kept["tokens"], 1)
    cost(scene, f"{kept['tokens']} steps of both texts at once, {rate:.2f} s each.", kept["seconds"], LIMITS)
