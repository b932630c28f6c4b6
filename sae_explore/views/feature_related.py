"""Tables of features related to one: near it in direction, and firing on the same tokens. A chosen row opens its feature."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from sae_explore import resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.types import FeatureCard

_PICKS = "_related_picks"  # how many rows were selected so far
_NEAREST = {"decoder": "Decoder: what it writes", "encoder": "Encoder: what it reads"}
_NEAREST_HELP = (
    "The ten largest cosines over the whole dictionary. Decoder directions are what features add to the model's state, encoder directions "
    "what makes them fire; features can be near in one and not in the other."
)
_COSINE = {"Cosine": st.column_config.NumberColumn(format="%.3f", width=84, help="1 is the same direction, 0 unrelated, -1 the opposite.")}
_TOGETHER = {
    "Together": st.column_config.NumberColumn(
        format="%.0f %%", width=92, help="Conditional probability: the share of this feature's firing tokens on which the other fires too."
    ),
    "Correlation": st.column_config.NumberColumn(
        format="%.2f",
        width=98,
        help="Phi coefficient of the two firing patterns over all counted tokens: 1 is always together, 0 is chance.",
    ),
    "Tokens": st.column_config.NumberColumn(format="localized", width=84, help="Tokens on which both fire."),
}


def nearest(bundle: Bundle, card: FeatureCard) -> None:
    """Nearest by decoder or encoder cosine."""
    st.subheader("Nearest directions", anchor=False, help=_NEAREST_HELP)
    which = st.segmented_control(
        "Compare by", list(_NEAREST), format_func=_NEAREST.get, default="decoder", required=True, key="nearest_by",
        label_visibility="collapsed", persist_state="session",
    )  # fmt: skip
    _feature_table(bundle, card, pd.DataFrame(_near(card, which), columns=["Feature", "Cosine"]), _COSINE, _name(which))


def together(bundle: Bundle, card: FeatureCard) -> None:
    """Features that fire on the same tokens."""
    st.subheader(
        "Fires together with",
        anchor=False,
        help="Out of the whole dictionary the features whose firing tokens coincide with this one's more than chance would have it.",
    )
    table = pd.DataFrame(card.extra["coactive"], columns=["feature", "probability", "correlation", "count"])
    if table.empty:
        st.caption("No feature fires on the same tokens more often than chance.")
        return
    table["probability"] *= 100
    table.columns = ["Feature", *_TOGETHER]
    _feature_table(bundle, card, table, _TOGETHER, "coactive")


def _near(card: FeatureCard, which: str) -> tuple[tuple[int, float], ...]:
    return card.neighbours if which == "decoder" else card.extra["encoder_neighbours"]


def _name(which: str) -> str:
    return "nearest" if which == "decoder" else f"nearest_{which}"


def _feature_table(bundle: Bundle, card: FeatureCard, table: pd.DataFrame, columns: dict, name: str) -> None:
    """A table of features with their labels after the first figure; selecting a row opens that feature."""
    table.insert(2, "Label", resources.get_frame(bundle)["label"].to_numpy()[table["Feature"].to_numpy()])
    fixed = {"Feature": st.column_config.NumberColumn(format="%d", width=70), "Label": st.column_config.TextColumn(width=315)}
    st.dataframe(
        table,
        hide_index=True,
        key=_table_key(name),
        on_select="rerun",
        selection_mode="single-row",
        column_config=fixed | columns,
        height="content",
        alt=f"{name} features of feature {card.ref.feature}",
    )
    st.caption("Select a row to open that feature.")


def picked(card: FeatureCard) -> int:
    """The feature whose row was just selected in a table of this feature's page, or this feature: known before anything is drawn."""
    feature = card.ref.feature
    listed = {_name(which): [f for f, _ in _near(card, which)] for which in _NEAREST}
    listed["coactive"] = [row["feature"] for row in card.extra["coactive"]]
    for name, features in listed.items():
        rows = st.session_state.get(_table_key(name), {}).get("selection", {}).get("rows", ())
        if rows:
            st.session_state[_PICKS] = st.session_state.get(_PICKS, 0) + 1
            if 0 <= rows[0] < len(features):
                return int(features[rows[0]])
    return feature


def _table_key(name: str) -> str:
    """Another key after each selection, which must not carry over to the next feature; the same while one leafs through features, because
    a browser draws a new table much more slowly than new rows.
    """
    return f"{name}_{st.session_state.get(_PICKS, 0)}"
