"""About: the ideas behind the pages with live examples, the SAE's figures, sources and licences, and help where something looks wrong."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from sae_explore import public_mode, resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import figures, figures_html, spans
from sae_explore.drawing.spans import md
from sae_explore.explore import about, links
from sae_explore.explore.browse import start_feature
from sae_explore.strength import band_shares
from sae_explore.views import addresses, sidebar
from sae_explore.wording import confidence_words, count_of, density_words, percent, sentence

_EXAMPLES, _BEFORE, _AFTER = 3, 9, 6
_LISTED = 8  # sources of texts that are shown at once


def render(bundle: Bundle) -> None:
    """The page."""
    addresses.write_link(bundle)
    st.title("About", anchor=False)
    st.markdown(
        "A sparse autoencoder (SAE) rewrites a language model's inner state as a short list of **features**. This explorer shows what they "
        "respond to, what they write, and how far the list can be trusted."
    )
    st.header("Ideas", anchor=False)
    left, right = st.columns(2, gap="large")
    frame = resources.get_frame(bundle)
    clear = start_feature(frame)
    with left:
        _sparsity(bundle, frame)
        _monosemantic(bundle, clear)
    with right:
        _strength(bundle, clear)
        _polysemantic(bundle, frame)
    st.header("How good is this SAE?", anchor=False)
    _figures(bundle)
    st.header("If something looks wrong", anchor=False)
    _troubles(bundle)
    st.header("Where everything comes from", anchor=False)
    _sources(bundle)
    st.header("How labels are made", anchor=False)
    st.markdown(about.LABELS)
    st.header("Related techniques", anchor=False)
    st.markdown(about.RELATED)


# ---- ideas -------------------------------------------------------------------------------------------------------------


def _sparsity(bundle: Bundle, frame: pd.DataFrame) -> None:
    l0, d_in = bundle.manifest["features"]["l0"], bundle.manifest["sae"]["d_in"]
    live = frame["density"].to_numpy()[frame["count"].to_numpy() > 0]
    st.subheader("Sparsity", anchor=False)
    st.markdown(
        f"Of this SAE's {bundle.d_sae:,} features only **{l0:.1f}** are active on a token, on average: {percent(l0 / bundle.d_sae)}. This "
        f"number is called L0. Together they rebuild a vector of {d_in:,} numbers that says little by itself."
    )
    st.plotly_chart(
        figures.density_histogram(live), config=figures.CONFIG, key="about_density", alt="Histogram: how many features fire how often"
    )
    if len(live):
        middle = float(pd.Series(live).median())
        st.caption(f"How often the {len(live):,} live features fire; half of them fire on fewer than {density_words(middle)}.")


def _strength(bundle: Bundle, feature: int) -> None:
    st.subheader("Activation strength", anchor=False)
    st.markdown(
        "An activation says how much of a feature a token holds: 0 is **absent**. Units differ between SAEs, so pages speak in shares of "
        "the feature's own maximum: **trace** below 5 %, **weak** below 25 %, **moderate** below 50 %, **strong** from there. For SAEs in "
        "the units of their training convention the field also uses fixed bands: below 1 trace, 1 to 5 weak, 5 to 10 moderate, above 10 "
        "strong."
    )
    if not bundle.row(feature)["count"]:
        st.caption("No feature of this bundle fires.")
        return
    edges, counts = bundle.histogram(feature)
    shares = " · ".join(f"{name} {percent(share)}" for name, share in band_shares(counts).items())
    st.html(figures_html.activation_histogram(edges, counts, alt=f"Histogram of activations: {shares}"))
    st.caption(f"The firings of feature {feature}, with dotted lines between the bands: {shares}.")


def _monosemantic(bundle: Bundle, feature: int) -> None:
    st.subheader("Monosemantic features", anchor=False)
    st.markdown(
        "A feature that stands for one thing: its examples have something in common, the strong ones and the weak ones alike. One from "
        "here:"
    )
    _live_example(bundle, feature)


def _polysemantic(bundle: Bundle, frame: pd.DataFrame) -> None:
    st.subheader("Polysemantic features", anchor=False)
    st.markdown(
        "A feature that fires on several things that seem unrelated: several meanings share one direction, or the meaning is one that "
        "counting tokens does not find. Its label begins with “mixed”. One from here:"
    )
    feature = about.mixed_feature(frame, bundle.manifest["features"]["dense_above"])
    if feature is None:
        st.caption("No feature of this bundle has a mixed label.")
    else:
        _live_example(bundle, feature)


def _live_example(bundle: Bundle, feature: int) -> None:
    row = bundle.row(feature)
    if not row["count"]:
        st.caption("No feature of this bundle fires.")
        return
    st.caption(f"{md(row['label'])} · {confidence_words(row['confidence'])} ({row['confidence']:.2f})")
    st.html(spans.examples_html(bundle.top_examples(feature, _EXAMPLES, before=_BEFORE, after=_AFTER), row["max"], feature=feature))
    addresses.feature_link(bundle, feature, icon=":material/arrow_forward:")


# ---- figures -----------------------------------------------------------------------------------------------------------


def _figures(bundle: Bundle) -> None:
    m = bundle.manifest["metrics"]
    st.markdown(
        f"Explained variance **{m['explained_variance']:.3f}** on {m['tokens_eval']:,} tokens "
        f"({md(m['evaluated_on'])}); with the reconstruction in place of the residual stream the model's loss is "
        f"**{m['ce_increase']:+.3f}** nats a token higher; **{percent(m['dead'] / m['latents'])}** of its features never fire."
    )
    st.page_link(
        addresses.page_named("quality"),
        label="All figures, each with its definition",
        icon=":material/arrow_forward:",
        query_params=links.query_of(bundle=bundle.name),
    )


def _troubles(bundle: Bundle) -> None:
    """What the build noticed about this SAE, then what to try in general."""
    warnings = bundle.manifest.get("warnings", [])
    for warning in warnings:
        st.warning(md(sentence(warning)), icon=":material/troubleshoot:")
    if not warnings:
        st.success(about.all_well(bundle.manifest), icon=":material/check_circle:")
    st.markdown(about.TROUBLES)


# ---- sources -----------------------------------------------------------------------------------------------------------


def _sources(bundle: Bundle) -> None:
    m = bundle.manifest
    if public_mode.is_public():
        st.info(sidebar.public_words(), icon=":material/lock:")
    facts = pd.DataFrame(about.origin_rows(m, named=public_mode.shown_name), columns=["", "What", "Licence"])
    st.table(facts.map(md), border="horizontal", hide_index=True)
    if bundle.map_xy is not None:
        st.caption("The page Map draws the features by t-SNE (openTSNE) of the cosines between their decoder directions.")
    corpus = m["corpus"]
    same = corpus["train_sources"] == corpus["sources"]
    st.markdown("**Texts explored**" + (" (the SAE was trained on the same sources)" if same and m["train"] else ""))
    st.table(_source_table(corpus["sources"]), border="horizontal", hide_index=True)
    if m["train"] and not same:
        sources = corpus["train_sources"]
        st.markdown("**Texts the SAE was trained on**")
        said = f"{count_of(len(sources), 'source')}, {sum(s['texts'] for s in sources):,} texts"
        with st.expander(said, expanded=len(sources) <= _LISTED, key="about_sources"):
            st.table(_source_table(sources), border="horizontal", hide_index=True)
            if not any(s["licence"] for s in sources):
                st.caption("The sources state no licence.")
    for note in corpus["notes"]:
        st.caption(md(note))


def _source_table(sources: list[dict]) -> pd.DataFrame:
    """Where each text is from; without the licences where none is stated, so that the table fits a small screen."""
    found = pd.DataFrame(about.source_rows(sources), columns=["Source", "Texts", "Licence as stated", "Version"]).map(md)
    return found if any(s["licence"] for s in sources) else found.drop(columns="Licence as stated")
