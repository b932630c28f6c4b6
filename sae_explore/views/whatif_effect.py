"""What a change does: the text coloured by how much the prediction moves after each token, and one token's prediction in detail."""

from __future__ import annotations

import math

import numpy as np
import streamlit as st

from sae_explore import resources
from sae_explore.drawing import figures, spans
from sae_explore.drawing.spans import md
from sae_explore.errors import ExploreError
from sae_explore.views.token_picker import token_picker
from sae_explore.views.whatif_scene import Scene, cost, refuse
from sae_explore.whatif.edits import CONTROLS, Edit, Effect
from sae_explore.wording import percent

SHOWN = 6  # tokens of each list
KL_HELP = (
    "KL divergence, in nats: how far the prediction with the change lies from the one without it. 0 is the same prediction; about 0.01 is "
    "hardly to be seen, 0.1 is clear, 1 is another prediction altogether."
)
CHANCE_HELP = (
    f"The same change at the same tokens and of the same length, but along a random direction; the mean of {CONTROLS}. A feature that does "
    "no more than this does not matter by what it means."
)
LOSS_HELP = "How badly the model expects the words that really follow, in nats a token: with and without the change. Less is better."
LIMITS = (
    "Only the text shown is read, without what comes before or after it. A TopK SAE does not choose its features anew when one is changed. "
    "An effect says that the model uses this direction here; a feature without one may still matter on other texts."
)
_FAINT, _FULL = 0.003, 1.0  # nats: the colour scale is logarithmic between them


def level(kl: float) -> float:
    """Position on the colour scale, 0 to 1, of a KL divergence in nats."""
    if not kl >= _FAINT / 3:
        return 0.0
    return min(1.0, math.log1p(kl / _FAINT) / math.log1p(_FULL / _FAINT))


def show(scene: Scene, edits: tuple[Edit, ...]) -> None:
    """Compute and draw; what cannot be done is one sentence."""
    try:
        with st.spinner("Running the model …", show_time=True):
            effect, seconds = resources.get_effect(scene.bundle, scene.piece, edits)
    except ExploreError as error:
        refuse(error)
        return
    _summary(scene, effect)
    position = int(effect.kl.argmax()) if scene.token is None else scene.token
    _text(scene, effect, position)
    _token(scene, effect, position)
    model = resources.get_lab(scene.bundle).tracer.model
    blocks = model.n_layers - model.hook.depth
    said = f"{len(scene)} tokens through {blocks} of {model.n_layers} blocks {2 + CONTROLS} times: without, with, and {CONTROLS} by chance."
    cost(scene, said, seconds, LIMITS)


def _summary(scene: Scene, effect: Effect) -> None:
    if not effect.changed.any():
        st.info("This change leaves everything as it is: the features are at these values already.", icon=":material/equal:")
        return
    since = slice(int(effect.changed.argmax()), None)  # before the first changed token nothing can move
    mean, chance = float(effect.kl[since].mean()), float(effect.control[since].mean())
    facts = [
        ("Largest change", f"{effect.kl.max():.3f} nats", KL_HELP),
        ("Mean change", f"{mean:.3f} nats", f"Over the tokens from the first changed one on. {KL_HELP}"),
        ("By chance", f"{chance:.3f} nats", CHANCE_HELP),
    ]
    before, after = effect.loss_before[since][:-1], effect.loss_after[since][:-1]
    if len(before):
        facts.append(("Loss of what follows", f"{before.mean():.2f} → {after.mean():.2f}", LOSS_HELP))
    with st.container(horizontal=True, gap="large"):
        for label, value, explained in facts:
            st.metric(label, value, help=explained, width="content")
    where = md(scene.names[int(effect.kl.argmax())])
    times = mean / chance if chance > 0 else math.inf
    verdict = (
        f"**{times:.1f} times** what a random direction of the same length does"
        if times >= 1.5
        else "**no more than chance**: random directions of the same length do as much"
    )
    changed = int(effect.changed.sum())
    st.markdown(
        f"The prediction moves most after “{where}”. On average this is {verdict}. "
        f"Changed at {changed} of {len(scene)} tokens, there by {percent(float(effect.size[effect.changed].mean()))} of the state's length."
    )


def _text(scene: Scene, effect: Effect, position: int) -> None:
    tokens = scene.trace.tokens
    pieces = [spans.pieces(t, b) for t, b in zip(tokens.texts[scene.part], tokens.bytes[scene.part], strict=True)]
    tips = [
        f"after token {scene.piece.start + i}: {name}\nKL {kl:.3f} nats{' (the feature is changed here)' if changed else ''}"
        for i, (name, kl, changed) in enumerate(zip(scene.names, effect.kl, effect.changed, strict=True))
    ]

    def choose(i: int) -> None:
        st.session_state["_whatif_token"] = (scene.id, i)

    # Ignored tokens are never changed, but what is expected after them can be: they are coloured as all others.
    token_picker(
        pieces,
        np.asarray([level(float(kl)) for kl in effect.kl]),
        np.zeros(len(scene), bool),
        tips,
        text_id=scene.id,
        selected=position,
        on_choose=choose,
        key="_whatif_picker",
    )
    st.html(spans.legend_html([(f"{kl:g}", "nats" if kl == 1 else "", spans.step_at(level(kl))) for kl in (0.003, 0.03, 0.3, 1.0)]))
    st.caption("The darker a token, the more the prediction of what comes after it changes. Click one to see how.")


def _token(scene: Scene, effect: Effect, position: int) -> None:
    """The prediction after one token."""
    from sae_explore.drawing.figures_effects import probability_bars  # plotly takes a while to import

    names = scene.names
    st.subheader(f"After “{md(names[position])}”", anchor=False)
    if position + 1 < len(scene):
        p, q = (math.exp(-float(loss[position])) for loss in (effect.loss_before, effect.loss_after))
        st.markdown(f"The text goes on with “{md(names[position + 1])}”: {percent(p)} → **{percent(q)}**")
    vocabulary = scene.bundle.vocabulary
    # What gains or loses less than nothing is no gain or loss.
    lists = []
    for shift, sign in ((effect.up, 1), (effect.down, -1)):
        kept = [k for k in range(SHOWN) if sign * (shift.after[position, k] - shift.before[position, k]) > 1e-5]
        lists.append([(vocabulary.text_of(int(shift.ids[position, k])), shift.before[position, k], shift.after[position, k]) for k in kept])
    if not any(lists):
        st.caption("Nothing changes here.")
        return
    end = max(max(p, q) for listed in lists for _, p, q in listed)
    for column, title, listed, up in zip(st.columns(2, gap="large"), ("More likely", "Less likely"), lists, (True, False), strict=True):
        if not listed:
            continue
        tokens, before, after = zip(*listed, strict=True)
        with column:
            st.markdown(f"**{title}**")
            st.plotly_chart(
                probability_bars(tokens, np.asarray(before), np.asarray(after), end=end, up=up),
                config=figures.CONFIG,
                key=f"whatif_{'up' if up else 'down'}",
                alt=f"{title}: " + ", ".join(f"{spans.plain(t)} {percent(float(p))} to {percent(float(q))}" for t, p, q in listed),
            )
