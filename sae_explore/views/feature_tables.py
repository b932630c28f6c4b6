"""Tables of the features that fire on a text or a token. A chosen row chooses the feature for the whole page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import streamlit as st

from sae_explore import wording
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import spans
from sae_explore.explore import text_view
from sae_explore.types import TextTrace

RANK_NAMES = {"share": "Share of maximum", "max": "Maximum", "sum": "Sum"}
_FIGURES = {"share": ("share",), "max": ("max",), "sum": ("sum", "tokens")}  # shown in a table ranked so
_LABEL = {"share": 235, "max": 255, "sum": 215}  # pixels that are left for the label
_ROW = 35
CONFIDENCE_HELP = (
    "How sure the automatic label is, from 0 to 1: the share of the feature's strong and weak examples for which it holds. "
    "A label that a person gave has none."
)
SHARE_HELP = (
    "The strongest activation here as a share of the feature's maximum on the corpus. Features differ in scale, so shares compare "
    "where values do not. On a text of your own it can pass 100 %."
)
DENSE_HELP = (
    "Dense features fire on more than {limit:.0%} of all tokens: often position, sentence structure or the model's bookkeeping, "
    "and so they say little about this text."
)
RANK_HELP = "Share: for what the feature can reach. Maximum: its strongest activation here. Sum: over all tokens of the text."


def stored_choices() -> tuple[str, bool]:
    """(ranking, whether dense features are shown) as the controls below stand."""
    return st.session_state.get("_rank") or "share", bool(st.session_state.get("_dense", False))


def controls(bundle: Bundle, hidden: int) -> None:
    """How the table below ranks, and whether it shows dense features, of which `hidden` are left out now."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.segmented_control(
            "Rank by",
            list(RANK_NAMES),
            format_func=RANK_NAMES.get,
            default="share",
            required=True,
            key="_rank",
            persist_state="session",
            help=RANK_HELP,
        )
        if hidden or stored_choices()[1]:
            st.toggle(
                "Show dense features" + (f" ({hidden} hidden)" if hidden else ""),
                key="_dense",
                persist_state="session",
                help=DENSE_HELP.format(limit=bundle.manifest["features"]["dense_above"]),
            )


def ranked_table(bundle: Bundle, trace: TextTrace, rows: text_view.Ranked, *, key: str, feature: int | None) -> None:
    """All features that fire on the text."""
    by, dense = stored_choices()
    if not len(rows):
        st.info("No feature fires on this text.", icon=":material/do_not_disturb_on:")
        return
    st.caption(f"{wording.count_of(len(rows), 'feature')} of {bundle.d_sae:,} fire on this text.")
    peaks = [spans.dotted(trace.tokens.texts[p], trace.tokens.bytes[p]) for p in rows.position]
    frame = pd.DataFrame(
        {
            "feature": rows.feature,
            "label": labels(bundle, rows.feature),
            "confidence": confidence(bundle, rows.feature),
            "share": 100 * rows.share,
            "max": rows.max,
            "sum": rows.sum,
            "tokens": rows.count,
            "peak": peaks,
        }
    )
    config = common_columns(_LABEL[by]) | {
        "max": st.column_config.NumberColumn(
            "Max", format="%.2f", width=64, help="Strongest activation on this text, in the SAE's own units."
        ),
        "sum": st.column_config.NumberColumn("Sum", format="%.1f", width=54, help="Sum of its activations over the text."),
        "tokens": st.column_config.NumberColumn("Tokens", width=54, help="On how many tokens of the text it fires."),
        "peak": st.column_config.TextColumn("Peak", width=72, help="The token on which it fires most strongly."),
    }
    order = ("feature", "label", "confidence", *_FIGURES[by], "peak")
    selectable(frame, rows.feature, config, order, key=f"{key}-{by}-{dense}", feature=feature, height=height(len(frame), 12))


def token_table(bundle: Bundle, found: text_view.TokenFeatures, *, key: str, feature: int | None) -> None:
    """The features that fire on one token."""
    by, dense = stored_choices()
    if not len(found.feature):
        but = f" but {wording.count_of(found.hidden, 'dense feature')}, which the switch shows" if found.hidden else ""
        st.info(f"Nothing fires on this token{but}.", icon=":material/do_not_disturb_on:")
        return
    st.caption(f"{wording.count_of(len(found.feature), 'feature')} on this token.")
    frame = pd.DataFrame(
        {
            "feature": found.feature,
            "label": labels(bundle, found.feature),
            "confidence": confidence(bundle, found.feature),
            "share": 100 * found.share,
            "value": found.value,
        }
    )
    config = common_columns(235) | {
        "value": st.column_config.NumberColumn("Value", format="%.2f", width=70, help="Its activation on this token.")
    }
    order = list(frame.columns)
    selectable(frame, found.feature, config, order, key=f"{key}-{by}-{dense}", feature=feature, height=height(len(frame), 12))


def labels(bundle: Bundle, features: np.ndarray) -> list[str]:
    return [spans.plain(label) for label in text_view.labels_of(bundle, features)]


def confidence(bundle: Bundle, features: np.ndarray) -> np.ndarray:
    """Of the automatic labels; NaN where the label is a person's."""
    found = bundle.features["confidence"].take(features).to_numpy().astype(np.float64)
    return np.where([f in bundle.human_labels or f in bundle.own_labels for f in features.tolist()], np.nan, found)


def height(rows: int, most: int) -> int:
    """Pixels of a table that shows `most` rows at once."""
    return 38 + _ROW * min(rows, most)


def common_columns(width: int) -> dict:
    return {
        "feature": st.column_config.NumberColumn("Feature", format="%d", width=56),
        "label": st.column_config.TextColumn(
            "Label", width=width, help="Automatic: what the tokens of its strongest examples have in common."
        ),
        "confidence": st.column_config.NumberColumn("Sure", format="%.2f", width=52, help=CONFIDENCE_HELP),
        "share": st.column_config.ProgressColumn("Share", format="%.0f %%", min_value=0, max_value=100, width=88, help=SHARE_HELP),
    }


def selectable(
    frame: pd.DataFrame, features: np.ndarray, config: dict, order: Sequence[str], *, key: str, feature: int | None, height: int
) -> None:
    """A table in which the row of the chosen feature is selected, however it was chosen. A click on any cell chooses its row."""
    at = [] if feature is None else np.flatnonzero(features == feature)[:1].tolist()
    state = st.session_state.get(key, {"selection": {"rows": [], "cells": []}})["selection"]
    if list(state["rows"]) != at:
        # The browser keeps its cell: taking it away would make it report another one later.
        kept = [cell for cell in state["cells"] if [cell[0]] == at]
        st.session_state[key] = {"selection": {"rows": at, "columns": [], "cells": kept}}

    def chosen() -> None:
        rows, cells = (list(st.session_state[key]["selection"][what]) for what in ("rows", "cells"))
        if cells and (key, cells) != st.session_state.get("_last_cell"):
            rows = [cells[0][0]]
        st.session_state["_last_cell"] = (key, cells)
        if rows:
            st.session_state["feature"] = int(features[rows[0]])
        else:
            st.session_state.pop("feature", None)

    st.dataframe(
        frame,
        key=key,
        hide_index=True,
        column_config=config,
        column_order=order,
        placeholder="–",
        selection_mode=("single-row", "single-cell"),
        on_select=chosen,
        height=height,
        row_height=_ROW,
    )
