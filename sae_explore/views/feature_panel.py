"""A feature in short, beside something else: what it is, how often and how strongly it fires, where most strongly, what it promotes."""

from __future__ import annotations

import streamlit as st

from sae_explore import wording
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import spans
from sae_explore.explore.text_view import shares
from sae_explore.strength import band_of
from sae_explore.types import TextTrace
from sae_explore.views import addresses

EXAMPLES, BEFORE, AFTER, LENS = 4, 9, 6, 8

LABEL_HELP = (
    "An automatic label is a description made by counting: what the tokens of the strongest examples have in common. "
    "Confidence is the share of strong and weak examples for which it is true. No other model was asked."
)
DENSITY_HELP = "Density: on how many of the corpus's tokens the feature fires at all."
MAX_HELP = (
    "The strongest activation of this feature on the corpus. Values are in the SAE's own units; they compare within a feature, "
    "hardly between two."
)
BAND_HELP = "Shares of the feature's own maximum in words: trace under 5 %, weak under 25 %, moderate under 50 %, strong from there."
LENS_HELP = (
    "The logit lens reads the feature's direction as if it were the model's last word: tokens that it makes more likely, "
    "and tokens that it makes less likely."
)


def feature_panel(bundle: Bundle, feature: int, *, trace: TextTrace | None = None, kicker: str | None = None) -> None:
    """Draw the card; with a `trace`, also how the feature does on that text. `kicker` says above it why it is shown."""
    row = bundle.row(feature)
    with st.container(gap="xsmall"):
        if kicker:
            st.caption(kicker)
        st.subheader(spans.md(wording.shown_label(row)), anchor=False, help=wording.mark_help(row))
        if row["count"]:
            st.caption(f"Feature {feature}; {spans.md(wording.label_origin(row))}", help=LABEL_HELP)
            st.markdown(
                f"Fires on **{wording.percent(row['density'])}** of tokens: {wording.density_words(row['density'])}", help=DENSITY_HELP
            )
            st.markdown(f"Maximum **{row['max']:.2f}** on the corpus", help=MAX_HELP)
        if trace is not None:
            st.markdown(_on_text(bundle, feature, trace), help=BAND_HELP)
    if row["count"]:
        with st.container(gap="xsmall"):
            st.markdown("**Fires most strongly on**")
            st.html(spans.examples_html(bundle.top_examples(feature, EXAMPLES, before=BEFORE, after=AFTER), row["max"], feature=feature))
    for title, listed in zip(("Promotes", "Suppresses"), bundle.lens_tokens(feature), strict=True):
        with st.container(gap="xsmall"):
            st.markdown(f"**{title}**", help=LENS_HELP)
            st.html(spans.chips_html(t.token for t in listed[:LENS]))
    addresses.feature_link(bundle, feature, "Open this feature's page", icon=":material/arrow_forward:")


def _on_text(bundle: Bundle, feature: int, trace: TextTrace) -> str:
    values = trace.rows.column(feature)
    count = int((values > 0).sum())
    if not count:
        return "On this text: **silent**"
    peak = int(values.argmax())
    token = spans.md(spans.dotted(trace.tokens.texts[peak], trace.tokens.bytes[peak]))
    share = float(shares(values[peak : peak + 1], bundle.maxima[feature : feature + 1])[0])
    said = f", {wording.percent(share)} of its maximum: **{band_of(share)}**" if share == share else ""
    return f"On this text: **{values[peak]:.2f}** on “{token}”{said}; fires on {wording.count_of(count, 'token')}"
