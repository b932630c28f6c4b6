"""Sections of the Feature page with charts: logit lens, strength, categories, scores."""

from __future__ import annotations

import streamlit as st

from sae_explore import resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import figures_html, spans
from sae_explore.drawing.spans import md
from sae_explore.features.scores import SCORES, score_lines
from sae_explore.strength import band_shares
from sae_explore.types import FeatureCard
from sae_explore.views.feature_current import Here
from sae_explore.views.feature_examples import TOP
from sae_explore.wording import percent

_CATEGORIES = 12
_LENS = 10  # tokens of each lens list

# ---- the logit lens ----------------------------------------------------------------------------------------------------

CONVENTION_WORDS = {
    "folded": "folded: the final norm's gain folded into the unembedding, each token's column centred (the published GPT-2 dashboards)",
    "raw": "raw: the unembedding as it is",
    "cosine": "cosine: unembedding rows made equally long, so that tokens with odd embedding norms do not crowd the list",
}


def convention_choice(bundle: Bundle) -> str:
    """The lens convention, the bundle's default first; why it is the default stands in the help."""
    info = bundle.manifest["lens"]
    options = [bundle.lens_default, *(c for c in info["conventions"] if c != bundle.lens_default)]
    agreement = ", ".join(f"{c} {percent(info['agreement'][c])}" for c in options)
    words = "\n".join(f"- {CONVENTION_WORDS[c]}" for c in options)
    return st.segmented_control(
        "Convention",
        options,
        default=options[0],
        required=True,
        key=f"lens_convention_{options[0]}",
        persist_state="session",
        help=f"How the unembedding is read; ranks differ between them.\n{words}\n\n"
        f"“{options[0]}” is the default here because its ten most promoted tokens "
        f"agree best with the features' own examples: they hold the peak token or the one after it in {agreement} of the top examples.",
    )


def lens_baseline(bundle: Bundle, convention: str, row: dict) -> float:
    """The top logit that random directions as long as this decoder row reach on average."""
    return bundle.manifest["lens"]["random"]["top_logit"][convention] * row["decoder_norm"]


@st.fragment
def lens(bundle: Bundle, feature: int, here: Here | None = None) -> None:
    """The tokens that its decoder direction promotes and suppresses."""
    st.subheader(
        "What it writes", anchor=False, help="The logit lens: the feature's decoder direction read through the model's unembedding."
    )
    convention = convention_choice(bundle)
    card = resources.get_card(bundle, feature, top=TOP, convention=convention)
    baseline = lens_baseline(bundle, convention, card.row)
    for title, tokens, mark in (("Promotes", card.positive, baseline), ("Suppresses", card.negative, -baseline)):
        st.markdown(f"**{title}**")
        listed = ", ".join(spans.plain(t.token) for t in tokens[:_LENS])
        st.html(figures_html.lens_bars(tokens[:_LENS], baseline=mark, alt=f"{title}: {listed}"))
    beyond = sum(t.logit > baseline for t in card.positive)
    st.caption(
        f"Dashed line: the largest logit of random directions, on average ({baseline:.2f}). "
        + (
            f"{beyond} of the {len(card.positive)} most promoted tokens {'lies' if beyond == 1 else 'lie'} beyond it."
            if beyond
            else "No promoted token lies beyond it: read this list with doubt."
        )
    )
    _lens_spread(bundle, card, here)


def _lens_spread(bundle: Bundle, card: FeatureCard, here: Here | None) -> None:
    """Histogram of the logits of all tokens, beside what random directions reach."""
    edges, counts = card.extra["lens_histogram"]
    baseline = lens_baseline(bundle, "folded", card.row)
    st.markdown("**All tokens of the vocabulary**")
    following = here.following if here else None
    said = f"Histogram of folded logits over {counts.sum():,} tokens, from {edges[0]:+.2f} to {edges[-1]:+.2f}"
    st.html(figures_html.lens_histogram(edges, counts, baseline=baseline, here=following, alt=said))
    marked = f" Marked: “{md(following[1])}” ({following[0]:+.2f}), which follows its peak on {here.text}." if following else ""
    st.caption(
        f"Folded logits, from {edges[0]:+.2f} to {edges[-1]:+.2f}; dashed: random directions.{marked}",
        help="A direction that means something to the output has a few tokens far out, beyond what random directions reach, and the rest "
        f"near 0. Excess kurtosis {card.row['lens_kurtosis']:+.1f} (0 is a bell curve); spread {card.row['strength_ratio']:.2f} times that of "
        "a random direction of length 1.",
    )


# ---- how strong, and where ---------------------------------------------------------------------------------------------


def strength(bundle: Bundle, card: FeatureCard, here: Here | None) -> None:
    """Histogram of its activations, with the bands, its moments, and the value on the current text."""
    st.subheader("How strongly it fires", anchor=False)
    edges, counts = card.extra["histogram"]
    shares = " · ".join(f"{name} {percent(share)}" for name, share in band_shares(counts).items())
    value = here.value if here and here.value else None
    st.html(figures_html.activation_histogram(edges, counts, here=value, alt=f"Histogram of activations: {shares}"))
    st.caption(
        f"Of its firings: {shares}.",
        help="Bands are shares of this feature's own maximum, because units differ between SAEs: "
        "trace below 5 %, weak below 25 %, moderate below 50 %, strong from there. The dotted lines stand at these limits.",
    )
    row = card.row
    st.caption(
        f"Mean {row['mean']:.2f} · standard deviation {row['std']:.2f} · skewness {row['skew']:+.2f} · excess kurtosis {row['kurtosis']:+.2f}",
        help="Moments of its activations where it fires. Skewness above 0: many weak firings and a tail of strong ones. Excess kurtosis above "
        "0: the tails are heavier than a bell curve's.",
    )
    if here is not None:
        st.caption(f"On {here.text}: " + (_said(bundle, card, here) if here.value else "silent."))


def _said(bundle: Bundle, card: FeatureCard, here: Here) -> str:
    return (
        f"{here.value:.2f} at most, on “{md(here.token)}”: {percent(here.value / float(bundle.maxima[card.ref.feature]))} of its maximum."
    )


def categories(bundle: Bundle, card: FeatureCard) -> None:
    """Share of its firings in each category beside the category's share of the corpus."""
    st.subheader("In which texts", anchor=False)
    counts, corpus = card.extra["categories"], bundle.category_share()
    total = sum(counts.values())
    if len(counts) < 2:
        st.caption(f"All texts of this bundle are of one category: {md(next(iter(counts), 'none'))}.")
        return
    names = sorted(counts, key=lambda name: -counts[name])[:_CATEGORIES]
    shares = [counts[name] / total for name in names]
    said = ", ".join(f"{spans.plain(name)} {share:.0%}" for name, share in zip(names, shares, strict=True))
    st.html(figures_html.category_bars(names, shares, [corpus[name] for name in names], alt=f"Share of firings: {said}"))
    left = len(counts) - len(names)
    st.caption(
        "A bar that reaches far beyond its mark: the feature prefers such texts."
        + (f" {left} more categories have fewer firings." if left > 0 else "")
    )


# ---- how clear it is ---------------------------------------------------------------------------------------------------


def scores(bundle: Bundle, feature: int) -> None:
    """What its automatic label rests on: every score, and what it is about."""
    st.subheader(
        "Scores",
        anchor=False,
        help="How much the strongest examples have in common, each from 0 (nothing) to 1 (all of them). The automatic label is made from these.",
    )
    lines = score_lines(bundle, feature)
    st.html(spans.scores_html((SCORES[s.name].title, SCORES[s.name].explained, s.value, s.what) for s in lines))
    if any(s.value is None for s in lines):
        st.caption("– : this bundle was built before this score existed. Building it again adds it.")
    with st.expander("How they are counted"):
        st.markdown("\n".join(f"- **{score.title}**: {score.explained}" for score in SCORES.values()))
