"""Quality: how far can this SAE be trusted? Every figure with its definition, and on how many tokens it was measured."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import streamlit as st

from sae_explore import resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import figures, figures_quality, spans
from sae_explore.drawing.spans import md
from sae_explore.features import quality
from sae_explore.features.quality import LOSSES, NEAR, StoreQuality, number
from sae_explore.views import addresses
from sae_explore.wording import count_of, density_words, percent, sentence


def render(bundle: Bundle) -> None:
    """The page."""
    addresses.write_link(bundle)
    st.title("Quality", anchor=False)
    st.markdown(
        "How much of the model survives in this SAE, and at what price. Each figure stands beside its definition and the tokens that it was "
        f"measured on. The evaluated texts: {md(quality.held_out_words(bundle.manifest))}"
    )
    for warning in bundle.manifest.get("warnings", []):
        st.warning(md(sentence(warning)), icon=":material/troubleshoot:")
    found = resources.get_quality(bundle)
    left, right = st.columns(2, gap="large")
    with left:
        st.header("What it rebuilds", anchor=False)
        st.html(spans.facts_html(quality.variance_rows(bundle.manifest)))
    with right:
        st.header("What that costs the model", anchor=False)
        _losses(bundle.manifest["metrics"])
    st.header("How sparse it is", anchor=False)
    rows = quality.sparsity_rows(bundle.manifest, found)
    left, right = st.columns(2, gap="large")
    with left:
        st.html(spans.facts_html(rows[:1]))
        _l0(bundle, found)
    with right:
        st.html(spans.facts_html(rows[1:]))
        _density(bundle, found)
    st.header("Its directions", anchor=False)
    left, right = st.columns(2, gap="large")
    with left:
        _nearest(bundle, found)
    with right:
        _norms(found)
    _categories(bundle.manifest["metrics"])


# ---- predictions -------------------------------------------------------------------------------------------------------


def _losses(m: dict) -> None:
    keys = [key for key, _, _ in LOSSES if math.isfinite(m[f"ce_{key}"])]
    names, losses = [name for key, name, _ in LOSSES if key in keys], [m[f"ce_{key}"] for key in keys]
    said = ", ".join(f"{name} {number(loss)}" for name, loss in zip(names, losses, strict=True))
    st.plotly_chart(
        figures_quality.loss_bars(names, keys, losses), config=figures.CONFIG, key="quality_losses", alt=f"Cross entropy in nats: {said}"
    )
    meant = "; ".join(f"{name.lower().replace('sae', 'SAE')}: {what}" for _, name, what in LOSSES)
    st.caption(
        f"Cross entropy of the next token, in nats a token: the mean of −ln of the probability that the model gave it. {meant[:1].upper()}{meant[1:]}."
    )
    st.html(spans.facts_html(quality.loss_rows({"metrics": m})))


# ---- sparsity ----------------------------------------------------------------------------------------------------------


def _l0(bundle: Bundle, found: StoreQuality) -> None:
    st.subheader("Active features on a token", anchor=False)
    if not found.tokens:
        st.caption("No token is counted.")
        return
    low, middle, high = (found.l0_quantile(share) for share in (0.05, 0.5, 0.95))
    st.plotly_chart(
        figures_quality.l0_histogram(found.l0),
        config=figures.CONFIG,
        key="quality_l0",
        alt=f"Histogram of active features on a token: mean {found.mean_l0:.1f}, median {middle}",
    )
    said = f"On how many tokens so many features are active. Mean {found.mean_l0:.1f}, median {middle}, nine tokens in ten between {low} and {high}."
    if np.count_nonzero(found.l0) == 1:
        k = bundle.manifest["sae"]["k"]
        said = f"Every one of the {found.tokens:,} counted tokens has {middle} active features" + (
            f": a TopK SAE keeps the {k} largest." if k == middle else "."
        )
    st.caption(said)


def _density(bundle: Bundle, found: StoreQuality) -> None:
    live = found.density[found.density > 0]
    st.subheader("How often features fire", anchor=False)
    dense = bundle.manifest["features"]["dense_above"]
    st.plotly_chart(
        figures.density_histogram(found.density, dense_above=dense),
        config=figures.CONFIG,
        key="quality_density",
        alt="Histogram: how many features fire how often",
    )
    said = "Density: the share of tokens on which a feature's activation is above 0, on a logarithmic axis."
    if len(live):
        said += (
            f" Half of the {len(live):,} live features fire on fewer than {density_words(float(np.median(live)))}. Dotted: dense from here."
        )
    st.caption(said)


# ---- directions --------------------------------------------------------------------------------------------------------


def _nearest(bundle: Bundle, found: StoreQuality) -> None:
    st.subheader("Nearest neighbours", anchor=False)
    if not len(found.nearest):
        st.caption("There is one feature only.")
        return
    n, d = bundle.d_sae, bundle.manifest["sae"]["d_in"]
    edges = figures_quality.cosine_edges(found.nearest)
    st.plotly_chart(
        figures_quality.nearest_histogram(found.nearest, quality.nearest_by_chance(edges, n=n, dimensions=d)),
        config=figures.CONFIG,
        key="quality_nearest",
        alt=f"Histogram of the cosine of each feature with its nearest one: mean {found.nearest.mean():.2f}",
    )
    near = int((found.nearest > NEAR).sum())
    st.caption(
        f"Cosine of each decoder direction with the nearest other one, mean {found.nearest.mean():.2f}; line: what {n:,} random directions "
        f"in {d:,} dimensions give, mean {quality.mean_by_chance(n=n, dimensions=d):.2f}. Far to the right of the line features repeat each "
        f"other: {count_of(near, 'feature has', 'features have')} a neighbour above {NEAR}."
    )


def _norms(found: StoreQuality) -> None:
    st.subheader("Decoder norms", anchor=False)
    low, middle, high = float(found.norms.min()), float(np.median(found.norms)), float(found.norms.max())
    st.plotly_chart(
        figures_quality.norm_histogram(found.norms),
        config=figures.CONFIG,
        key="quality_norms",
        alt=f"Histogram of the lengths of decoder rows: {low:.3f} to {high:.3f}",
    )
    said = f"Length of each feature's decoder row, from {low:.3f} to {high:.3f}, median {middle:.3f}. "
    equal = high - low < 0.01 * high
    st.caption(
        said
        + (
            "They are as good as equal, so activations of different features compare."
            if equal
            else "They differ, so an activation of 1 adds more to the residual stream for one feature than for another."
        )
    )


# ---- categories --------------------------------------------------------------------------------------------------------

_SHARE = {"format": "%.3f", "min_value": 0.0, "max_value": 1.0}
_COLUMNS = {
    "Tokens": st.column_config.NumberColumn(format="localized", help="On which explained variance and L0 are measured."),
    "Explained variance": st.column_config.ProgressColumn(width=120, help="As above, on this category's tokens alone.", **_SHARE),
    "L0": st.column_config.NumberColumn(format="%.1f", help="Mean number of active features on a token."),
    "Clean": st.column_config.NumberColumn(format="%.3f", help="Cross entropy of the next token in nats, the model as it is."),
    "With the SAE": st.column_config.NumberColumn(
        format="%.3f", help="The same with the SAE's reconstruction in place of the residual stream."
    ),
    "Increase": st.column_config.NumberColumn(format="%+.3f", help="Cross entropy with the SAE minus the clean one, in nats."),
    "Mean-ablated": st.column_config.NumberColumn(format="%.3f", help="Cross entropy with the average residual in its place."),
    "Zero-ablated": st.column_config.NumberColumn(format="%.3f", help="Cross entropy with zeros in its place."),
    "Recovered (mean)": st.column_config.NumberColumn(format="%.1f %%", help="(mean-ablated − with SAE) / (mean-ablated − clean)."),
    "Recovered (zero)": st.column_config.NumberColumn(format="%.1f %%", help="(zero-ablated − with SAE) / (zero-ablated − clean)."),
}


def _categories(m: dict) -> None:
    st.header("By category of text", anchor=False)
    _table(m["by_category"], "the evaluated texts", "quality_categories")
    held = m.get("held_out_of_training_sources")
    if held and held.get("by_category"):
        st.markdown("**Held-out texts of the training sources**")
        _table(held["by_category"], "held-out texts of the training sources", "quality_held_out")


def _table(by_category: dict[str, dict], what: str, key: str) -> None:
    table = quality.category_rows(by_category)
    if table.empty:
        st.caption(f"There are no categories in {what}.")
        return
    table = table.dropna(axis="columns", how="all")
    table["Category"] = table["Category"].map(spans.plain)
    st.dataframe(table, hide_index=True, column_config=_COLUMNS, height="content", key=key, alt=f"Figures by category of {what}")
    best, worst = table["Explained variance"].idxmax(), table["Explained variance"].idxmin()
    if len(table) > 1:
        st.caption(f"Rebuilt best: {_named(table, best)}; worst: {_named(table, worst)}. Small categories scatter.")


def _named(table: pd.DataFrame, row: int) -> str:
    return f"{md(table['Category'][row])} ({table['Explained variance'][row]:.2f}, {percent(table['Tokens'][row] / table['Tokens'].sum())} of the tokens)"
