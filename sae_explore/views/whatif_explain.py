"""Explain: which features does the next word rest on? Estimates by gradient, the direct effect, and real ablations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from sae_explore import resources
from sae_explore.drawing import spans
from sae_explore.drawing.spans import md
from sae_explore.errors import ExploreError
from sae_explore.explore import text_view
from sae_explore.views.token_picker import token_picker
from sae_explore.views.whatif_scene import Scene, cost, refuse
from sae_explore.whatif.edits import CHECKED, Attribution
from sae_explore.wording import count_of, percent

SHOWN = 16
FOIL_HELP = (
    "Another word that could stand there: then the question is why the model prefers its own word to this one. Its first token counts. "
    "Left empty, the word's logit is compared with the mean over the whole vocabulary."
)
ESTIMATE_HELP = (
    "Gradient × activation, over all tokens up to this one: how much the logit would fall if the feature were switched off and the rest of "
    "the model were linear. Negative: the feature speaks against the word."
)
HERE_HELP = "The part of the estimate that comes from the clicked token itself; the rest comes from earlier tokens, by attention."
DIRECT_HELP = (
    "What the feature writes into the logit at the clicked token by itself, past all later blocks: the logit lens in this token's units."
)
ABLATION_HELP = f"By how much the logit really falls when the feature is switched off. Measured for the {CHECKED} largest estimates."
LIMITS = (
    "An estimate is a slope at one point: where the model is curved, it differs from the real ablation, which stands beside it. "
    "Features that stand in for one another can each show little. What the SAE leaves out of the state is one sum, not split further."
)


def render(scene: Scene) -> None:
    position = scene.peak if scene.token is None else scene.token
    foil_text = st.text_input(
        "Compare with another word", key="_whatif_foil", placeholder="none", width=260, help=FOIL_HELP, persist_state="session"
    )
    try:
        foil = _token_id(scene, foil_text) if foil_text.strip() else None
        with st.spinner("Running the model, forwards and back …", show_time=True):
            found, seconds = resources.get_attribution(scene.bundle, scene.piece, position, foil=foil)
    except ExploreError as error:
        found = None
        refuse(error)
    if found is not None:
        _sentence(scene, found)
    _text(scene, found, position)
    if found is not None:
        _table(scene, found)
        said = f"one pass back through the blocks, and {min(CHECKED, len(found.features))} real ablations."
        cost(scene, said, seconds, LIMITS)


def _token_id(scene: Scene, typed: str) -> int:
    """The first token of a word as it would follow here: with a space in front unless one says otherwise."""
    text = typed if typed[0].isspace() or not typed[0].isalnum() else f" {typed}"
    return int(resources.get_lab(scene.bundle).tracer.model.tokenize(text).ids[0])


def _name(scene: Scene, token: int) -> str:
    return md(spans.dotted(scene.bundle.vocabulary.text_of(token)))


def _sentence(scene: Scene, found: Attribution) -> None:
    against = "the mean of all words" if found.foil is None else f"“{_name(scene, found.foil)}”"
    st.markdown(
        f"After “{md(scene.names[found.position])}” the model expects “**{_name(scene, found.target)}**” ({percent(found.probability)}), its logit "
        f"{abs(found.value):.2f} {'above' if found.value >= 0 else 'below'} {against}."
    )


def _text(scene: Scene, found: Attribution | None, position: int) -> None:
    """The text, coloured by how much of the support comes from each token."""
    n, tokens = len(scene), scene.trace.tokens
    support = np.zeros(n)
    if found is not None:
        support[: found.position + 1] = np.bincount(found.pair_position, weights=found.pair_estimate, minlength=found.position + 1)
    end = float(support.max())
    tips = [
        f"token {scene.piece.start + i}: {name}\nits features: {value:+.3f}"
        for i, (name, value) in enumerate(zip(scene.names, support, strict=True))
    ]

    def choose(i: int) -> None:
        st.session_state["_whatif_token"] = (scene.id, i)

    pieces = [spans.pieces(t, b) for t, b in zip(tokens.texts[scene.part], tokens.bytes[scene.part], strict=True)]
    levels = np.asarray([spans.strength(float(v), end) for v in support])
    token_picker(pieces, levels, scene.ignored, tips, text_id=scene.id, selected=position, on_choose=choose, key="_whatif_picker")
    st.caption("The darker a token, the more its features speak for that word. Click another token to ask about what comes after it.")


def _rounded(values: np.ndarray) -> np.ndarray:
    """To the decimals shown, without a minus in front of 0; what was not measured, or is none, stays empty."""
    return np.where(values == 0, np.nan, np.round(values, 3) + 0.0)


def _table(scene: Scene, found: Attribution) -> None:
    if not len(found.features):
        st.info("No feature fires up to this token.", icon=":material/do_not_disturb_on:")
        return
    k = min(SHOWN, len(found.features))
    frame = pd.DataFrame(
        {
            "feature": found.features[:k],
            "label": [spans.plain(label) for label in text_view.labels_of(scene.bundle, found.features[:k])],
            **{name: _rounded(getattr(found, name)[:k]) for name in ("estimate", "ablation", "direct", "here")},
            "on": [scene.names[p] for p in found.strongest[:k]],
        }
    )
    number = {"format": "%+.3f", "width": 82}
    config = {
        "feature": st.column_config.NumberColumn("Feature", format="%d", width=64),
        "label": st.column_config.TextColumn("Label", width=262),
        "on": st.column_config.TextColumn("Strongest on", width=96, help="The token up to this one on which it fires most strongly."),
        "estimate": st.column_config.NumberColumn("Estimate", help=ESTIMATE_HELP, **number),
        "here": st.column_config.NumberColumn("… of it here", help=HERE_HELP, **number),
        "direct": st.column_config.NumberColumn("Direct", help=DIRECT_HELP, **number),
        "ablation": st.column_config.NumberColumn("Switched off", help=ABLATION_HELP, **number),
    }
    key = f"whatif_table_{scene.id}_{found.position}_{found.foil}"

    def chosen() -> None:
        if rows := st.session_state[key]["selection"]["rows"]:
            feature = st.session_state["feature"] = int(found.features[rows[0]])
            st.session_state["_whatif_piece"], st.session_state["_whatif_token"] = (feature, scene.piece), (scene.id, found.position)

    st.dataframe(frame, key=key, hide_index=True, column_config=config, selection_mode="single-row", on_select=chosen, height="content",
                 placeholder="–")  # fmt: skip
    checked = ~np.isnan(found.ablation)
    said = [
        f"{k} of {count_of(len(found.features), 'feature')} that fire up to here, the largest estimates first; select one to choose it above."
    ]
    if checked.sum() > 2:
        r = np.corrcoef(found.estimate[checked], found.ablation[checked])[0, 1]
        said.append(f"Estimate and real ablation of the first {checked.sum()}: correlation {r:.2f}.")
    said.append(f"What the SAE leaves unexplained: {found.error:+.2f}; all features together: {found.estimate.sum():+.2f}.")
    st.caption(" ".join(said))
