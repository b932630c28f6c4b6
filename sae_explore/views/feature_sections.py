"""Sections of the Feature page: examples, logit lens, strength, categories, related features."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from sae_explore import figures, links, resources, spans
from sae_explore.bundle import CONTEXT_AFTER, CONTEXT_BEFORE, Bundle
from sae_explore.scores import SCORES, score_lines
from sae_explore.spans import md
from sae_explore.types import FeatureCard
from sae_explore.views import shell
from sae_explore.wording import band_range, count_of, percent

TOP = 20
_SHOWN = 10  # of the strongest examples, unless asked for all
_CATEGORIES = 12
_LENS = 10  # tokens of each lens list

# ---- examples ----------------------------------------------------------------------------------------------------------

_KINDS = ("Strongest", "By strength", "Random")


@st.fragment
def examples(bundle: Bundle, feature: int) -> None:
    """Where it fires, in context: the strongest, some of each interval, or random ones."""
    st.subheader("Where it fires", anchor=False)
    with st.container(horizontal=True, vertical_alignment="center"):
        kind = st.segmented_control(
            "Which examples",
            _KINDS,
            default=_KINDS[0],
            required=True,
            key="example_kind",
            label_visibility="collapsed",
            persist_state="session",
        )
        whole = st.toggle(
            "Longer context",
            key="example_whole",
            persist_state="session",
            help=f"Up to {bundle.manifest['context']} tokens on each side of the peak, "
            f"not {CONTEXT_BEFORE} before and {CONTEXT_AFTER} after it.",
        )
    around = bundle.manifest["context"] if whole else None
    context = {"before": around or CONTEXT_BEFORE, "after": around or CONTEXT_AFTER}
    maximum = float(bundle.maxima[feature])
    {"Strongest": _strongest, "By strength": _by_strength, "Random": _random}[kind](bundle, feature, maximum, context)


def _strongest(bundle: Bundle, feature: int, maximum: float, context: dict) -> None:
    found = bundle.top_examples(feature, TOP, **context)
    more = len(found) > _SHOWN and st.session_state.get("example_all", False)
    st.caption(
        "Strongest first, one per window of text. Left: activation at the peak, the underlined token. Darker means closer to the maximum."
    )
    st.html(spans.examples_html(found if more else found[:_SHOWN], maximum, feature=feature))
    with st.container(horizontal=True, vertical_alignment="center"):
        if len(found) > _SHOWN:
            st.toggle(f"All {len(found)}", key="example_all", persist_state="session")
        st.page_link(
            shell.page_named("text"),
            label="Open the strongest example in its text",
            icon=":material/open_in_new:",
            query_params=links.query_of(bundle=bundle.name, feature=feature, document=found[0].document_id),
        )


def _by_strength(bundle: Bundle, feature: int, maximum: float, context: dict) -> None:
    """Some examples of each fifth of the range, the strongest fifth first."""
    st.caption(
        "Examples drawn at random from each fifth of the range up to the maximum; each stands in the fifth of its own peak. "
        "A clear feature means the same in all of them."
    )
    found = bundle.interval_examples(feature, **context)
    counts = bundle.histogram(feature)[1]
    intervals = bundle.examples["interval"].shape[1]
    per = counts.reshape(intervals, -1).sum(1) if len(counts) % intervals == 0 else None
    for i in range(intervals - 1, -1, -1):
        low, high = i / intervals, (i + 1) / intervals
        tokens = f", {count_of(int(per[i]), 'token')}" if per is not None else ""
        st.markdown(
            f"**{low * maximum:.2f} to {high * maximum:.2f}** · {band_range(low, high)} ({100 * low:.0f} to {100 * high:.0f} % of the "
            f"maximum{tokens})"
        )
        chosen = [e for e in found if e.interval == i]
        if chosen:
            st.html(spans.examples_html(chosen, maximum, feature=feature))
        else:
            st.caption("No window of text peaks in this range.")


def _random(bundle: Bundle, feature: int, maximum: float, context: dict) -> None:
    st.caption("Windows of text drawn at random from all in which the feature fires: what a typical firing looks like.")
    st.html(spans.examples_html(bundle.random_examples(feature, **context), maximum, feature=feature))


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
def lens(bundle: Bundle, feature: int) -> None:
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
        st.plotly_chart(
            figures.lens_bars(tokens[:_LENS], baseline=mark), config=figures.CONFIG, key=f"lens_{title}", alt=f"{title}: {listed}"
        )
    beyond = sum(t.logit > baseline for t in card.positive)
    st.caption(
        f"Dashed line: the largest logit of random directions, on average ({baseline:.2f}). "
        + (
            f"{beyond} of the {len(card.positive)} most promoted tokens {'lies' if beyond == 1 else 'lie'} beyond it."
            if beyond
            else "No promoted token lies beyond it: read this list with doubt."
        )
    )


# ---- how strong, and where ---------------------------------------------------------------------------------------------


def strength(card: FeatureCard) -> None:
    """Histogram of its activations, with the bands."""
    st.subheader("How strongly it fires", anchor=False)
    edges, counts = card.extra["histogram"]
    shares = " · ".join(f"{name} {percent(share)}" for name, share in figures.band_shares(counts).items())
    st.plotly_chart(
        figures.activation_histogram(edges, counts), config=figures.CONFIG, key="strength", alt=f"Histogram of activations: {shares}"
    )
    st.caption(
        f"Of its firings: {shares}.",
        help="Bands are shares of this feature's own maximum, because units differ between SAEs: "
        "trace below 5 %, weak below 25 %, moderate below 50 %, strong from there. The dotted lines stand at these limits.",
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
    st.plotly_chart(
        figures.category_bars(names, shares, [corpus[name] for name in names]),
        config=figures.CONFIG,
        key="categories",
        alt=f"Share of firings: {said}",
    )
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


# ---- other features ----------------------------------------------------------------------------------------------------


def nearest(bundle: Bundle, card: FeatureCard) -> None:
    """Nearest by decoder cosine."""
    st.subheader("Nearest directions", anchor=False, help="Features whose decoder directions have the largest cosine with this one's.")
    cosine = st.column_config.NumberColumn(format="%.3f", help="Of the decoder directions: 1 is the same direction, 0 unrelated.")
    _feature_table(bundle, card, pd.DataFrame(card.neighbours, columns=["Feature", "Cosine"]), {"Cosine": cosine}, "nearest")


_TOGETHER = {
    "Together": st.column_config.NumberColumn(format="%.0f %%", help="Share of this feature's firing tokens on which the other fires too."),
    "Correlation": st.column_config.NumberColumn(format="%.2f", help="Phi coefficient of the two firing patterns: 1 is always together."),
    "Tokens": st.column_config.NumberColumn(format="localized", help="Tokens on which both fire."),
}


def together(bundle: Bundle, card: FeatureCard) -> None:
    """Features that fire on the same tokens."""
    st.subheader(
        "Fires together with",
        anchor=False,
        help="Features whose firing tokens coincide with this one's more than chance would have it.",
    )
    table = pd.DataFrame(card.extra["coactive"], columns=["feature", "probability", "correlation", "count"])
    if table.empty:
        st.caption("No feature fires on the same tokens more often than chance.")
        return
    table["probability"] *= 100
    table.columns = ["Feature", *_TOGETHER]
    _feature_table(bundle, card, table, _TOGETHER, "coactive")


def _feature_table(bundle: Bundle, card: FeatureCard, table: pd.DataFrame, columns: dict, name: str) -> None:
    """A table of features with their labels; selecting a row opens that feature."""
    table.insert(1, "Label", resources.get_frame(bundle)["label"].to_numpy()[table["Feature"].to_numpy()])
    st.dataframe(
        table,
        hide_index=True,
        key=_table_key(name, card.ref.feature),
        on_select="rerun",
        selection_mode="single-row",
        column_config=columns,
        height="content",
        alt=f"{name} features of feature {card.ref.feature}",
    )
    st.caption("Select a row to open that feature.")


def picked(card: FeatureCard) -> int:
    """The feature whose row was just selected in a table of this feature's page, or this feature: known before anything is drawn."""
    feature = card.ref.feature
    for name, listed in (("nearest", [f for f, _ in card.neighbours]), ("coactive", [row["feature"] for row in card.extra["coactive"]])):
        rows = st.session_state.get(_table_key(name, feature), {}).get("selection", {}).get("rows", ())
        if rows and 0 <= rows[0] < len(listed):
            return int(listed[rows[0]])
    return feature


def _table_key(name: str, feature: int) -> str:
    """A key for each feature, so that a selection never carries over to the next one."""
    return f"{name}_{feature}"
