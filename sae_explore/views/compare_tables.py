"""Tables of the page Compare: features that two texts hold in different amounts, and features of two bundles that fire alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import streamlit as st

from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import spans
from sae_explore.explore import links, text_view
from sae_explore.explore.compare import Comparison
from sae_explore.explore.compare_bundles import Best, Stretches
from sae_explore.types import TextTrace
from sae_explore.views import feature_tables
from sae_explore.wording import count_of

WHERE = {"texts": "Whole texts", "shared": "Shared tokens"}
WHERE_HELP = (
    "Whole texts: the strongest activation of a feature on A and on B, wherever it is. Shared tokens: the one token, of those that both "
    "texts have, on which the feature differs most. The token is the same, so what differs there comes from the words before it."
)
SIDES = {"all": "All", "only_a": "Only in A", "only_b": "Only in B", "more_a": "Stronger in A", "more_b": "Stronger in B"}
SHARE_HELP = (
    "{what} as a share of the feature's maximum on the corpus. Features differ in scale, so shares compare where values do not. Rows are "
    "sorted by the difference of the two shares. On a text of your own a share can pass 100 %."
)
COSINE_HELP = "How alike the two features fire along this text: 1 in the same proportions on the same {unit}s, 0 never together."
TOGETHER_HELP = "On how many pieces of the text both fire. A match that rests on one or two pieces says little."
LINK_HELP = "Opens the feature's page."


def differences(bundle: Bundle, traces: Sequence[TextTrace], found: Comparison, feature: int) -> None:
    """The features by how much they differ, for the whole texts or on shared tokens; a row chooses the feature."""
    dense = text_view.scale_of(bundle).dense[found.feature]
    where, with_dense = _where(bundle, found, int(dense.sum()))
    rows = np.arange(len(found)) if where == "texts" else found.by_shared()
    rows = rows if with_dense else rows[~dense[rows]]
    a, b = (found.max_a, found.max_b) if where == "texts" else (found.at_a, found.at_b)
    side = _side({name: int(mask[rows].sum()) for name, mask in _masks(a, b).items()})
    rows = rows[_masks(a, b)[side][rows]]
    if not len(rows):
        st.info("No feature differs in this way.", icon=":material/do_not_disturb_on:")
        return
    features = found.feature[rows]
    top = np.asarray(bundle.maxima)[features]
    columns = {
        "feature": features,
        "label": feature_tables.labels(bundle, features),
        "a": 100 * text_view.shares(a[rows], top),
        "b": 100 * text_view.shares(b[rows], top),
    }
    if where == "texts":
        peaks = zip(a[rows] >= b[rows], _tokens(traces[0], found.peak_a[rows]), _tokens(traces[1], found.peak_b[rows]), strict=True)
        columns["token"] = [in_a if stronger_in_a else in_b for stronger_in_a, in_a, in_b in peaks]
    else:
        columns["token"] = _tokens(traces[0], found.pairs[found.pair[rows], 0])
    feature_tables.selectable(
        pd.DataFrame(columns),
        features,
        _difference_columns(where),
        list(columns),
        key=f"compare-{where}-{side}-{with_dense}-{abs(hash((traces[0].text, traces[1].text, bundle.name)))}",
        feature=feature,
        height=feature_tables.height(len(rows), 12),
    )


def _where(bundle: Bundle, found: Comparison, dense: int) -> tuple[str, bool]:
    """(where the table looks, whether it shows dense features)."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        where = "texts"
        if len(found.pairs):
            where = st.segmented_control(
                "Look at",
                list(WHERE),
                format_func=WHERE.get,
                default="texts",
                required=True,
                key="_compare_where",
                persist_state="session",
                help=WHERE_HELP,
            )
        return where, dense_switch(bundle, dense)


def dense_switch(bundle: Bundle, dense: int) -> bool:
    """Whether dense features are shown, of which there are so many here."""
    if not dense:
        return False
    explained = feature_tables.DENSE_HELP.format(limit=bundle.manifest["features"]["dense_above"])
    return st.toggle(f"Show dense features ({dense})", key="_compare_dense", persist_state="session", help=explained)


def _masks(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """Which features belong to which choice of SIDES; those that do not differ are in none."""
    return {
        "all": a != b,
        "only_a": (a > 0) & (b == 0),
        "only_b": (a == 0) & (b > 0),
        "more_a": (a > b) & (b > 0),
        "more_b": (b > a) & (a > 0),
    }


def _side(counts: dict[str, int]) -> str:
    return st.pills(
        "Show",
        list(SIDES),
        format_func=lambda name: f"{SIDES[name]} ({counts[name]:,})",
        default="all",
        required=True,
        key="_compare_side",
        persist_state="session",
        wrap=True,
    )


def _tokens(trace: TextTrace, positions: np.ndarray) -> list[str]:
    """The tokens there, or nothing for -1."""
    tokens = trace.tokens
    return ["" if p < 0 else spans.dotted(tokens.texts[p], tokens.bytes[p]) for p in positions.tolist()]


def _difference_columns(where: str) -> dict:
    what = "Its strongest activation on {side}" if where == "texts" else "Its activation on this token in {side}"

    def bar(side: str) -> st.column_config.ProgressColumn:
        explained = SHARE_HELP.format(what=what.format(side=side))
        return st.column_config.ProgressColumn(f"In {side}", format="%.0f %%", min_value=0, max_value=100, width=84, help=explained)

    return {
        "feature": st.column_config.NumberColumn("Feature", format="%d", width=56),
        "label": st.column_config.TextColumn("Label", width=190, help="Automatic: what its strongest examples have in common."),
        "a": bar("A"),
        "b": bar("B"),
        "token": st.column_config.TextColumn("Peak", width=84, help="The token on which it is strongest, in the text where it is stronger.")
        if where == "texts"
        else st.column_config.TextColumn("Token", width=84, help="The shared token on which it differs most."),
    }


# ---- two bundles -------------------------------------------------------------------------------------------------------


def best_matches(bundles: tuple[Bundle, Bundle], best: Best, unit: str, *, key: str, feature: int | None) -> None:
    """For each feature of the first bundle the one of the second that fires most alike; a row chooses the first one's feature."""
    first, second = bundles
    there = best.cosine > 0
    frame = pd.DataFrame(
        {
            "feature": best.feature,
            "label": feature_tables.labels(first, best.feature),
            "cosine": best.cosine,
            "other": _links(second, np.where(there, best.other, -1)),
            "other_label": _labels_or_none(second, np.where(there, best.other, -1)),
            "together": best.together,
        }
    )
    config = _match_columns(unit) | {"feature": st.column_config.NumberColumn("Feature", format="%d", width=56)}
    feature_tables.selectable(
        frame, best.feature, config, list(frame.columns), key=key, feature=feature, height=feature_tables.height(len(frame), 10)
    )


def _match_columns(unit: str) -> dict:
    return {
        "label": st.column_config.TextColumn("Label", width=190),
        "cosine": st.column_config.ProgressColumn(
            "Alike", format="%.2f", min_value=0, max_value=1, width=84, help=COSINE_HELP.format(unit=unit)
        ),
        "other": st.column_config.LinkColumn("Match", display_text=r"feature=(\d+)", width=56, help=LINK_HELP),
        "other_label": st.column_config.TextColumn("Label of the match", width=190),
        "together": st.column_config.NumberColumn("Together", width=64, help=TOGETHER_HELP),
    }


def stretch_table(bundles: tuple[Bundle, Bundle], found: Stretches, text: str, names: tuple[str, str]) -> None:
    """What fires most strongly on each piece of the text, in both bundles."""
    rows = np.flatnonzero(~found.ignored)
    if len(rows) < len(found):
        st.caption(f"{count_of(len(found) - len(rows), 'piece')} that either bundle ignores left out.")
    columns = {"piece": [spans.dotted(text[found.start[i] : found.stop[i]]) for i in rows]}
    config = {"piece": st.column_config.TextColumn("Piece", width=90, pinned=True)}
    for bundle, name, side in zip(bundles, names, "ab", strict=True):
        feature, share = getattr(found, f"feature_{side}")[rows], getattr(found, f"share_{side}")[rows]
        columns |= {
            f"feature_{side}": _links(bundle, feature),
            f"label_{side}": _labels_or_none(bundle, feature),
            f"share_{side}": np.where(feature >= 0, 100 * share, np.nan),
        }
        config |= {
            f"feature_{side}": st.column_config.LinkColumn(f"In {name}", display_text=r"feature=(\d+)", width=70, help=LINK_HELP),
            f"label_{side}": st.column_config.TextColumn("Label", width=210),
            f"share_{side}": st.column_config.ProgressColumn(
                "Share", format="%.0f %%", min_value=0, max_value=100, width=84, help=feature_tables.SHARE_HELP
            ),
        }
    st.dataframe(
        pd.DataFrame(columns),
        hide_index=True,
        column_config=config,
        placeholder="–",
        key="_compare_stretches",
        height=feature_tables.height(len(rows), 12),
        row_height=35,
        alt="Pieces of the text with the strongest feature of both bundles",
    )


def _links(bundle: Bundle, features: np.ndarray) -> list[str | None]:
    """Addresses of the features' pages, relative to a page of the app."""
    return [None if f < 0 else _address(bundle.name, f) for f in features.tolist()]


def _address(bundle: str, feature: int) -> str:
    from urllib.parse import urlencode

    return f"feature?{urlencode(links.query_of(bundle=bundle, feature=feature))}"


def _labels_or_none(bundle: Bundle, features: np.ndarray) -> list[str | None]:
    found = feature_tables.labels(bundle, np.maximum(features, 0))
    return [label if f >= 0 else None for f, label in zip(features.tolist(), found, strict=True)]
