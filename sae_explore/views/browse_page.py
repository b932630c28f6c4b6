"""Browse: what is in this SAE? One searchable, sortable table of all features, and a small preview of the selected one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from sae_explore import figures, resources
from sae_explore.browse import COLUMNS, Filter, kept, ordered
from sae_explore.bundle import Bundle
from sae_explore.scores import SCORES, known_scores
from sae_explore.spans import md
from sae_explore.views import export_buttons, shell
from sae_explore.views.feature_panel import feature_panel
from sae_explore.wording import KIND_WORDS, count_of, percent

_ONE_IN = (0, 1_000_000, 300_000, 100_000, 30_000, 10_000, 3_000, 1_000, 300, 100, 30, 10, 3, 1)  # stops of the density slider; 0: no limit
_SLIDERS = 4  # in a row
_HEIGHT, _ROWS = 560, 15  # of the table, in pixels and in the rows that fit
_DEAD = "Features that fire on none of this bundle's tokens."

_HOLDS = "Share of examples, strong and weak ones, for which the label holds."

_CONFIG = {
    "feature": st.column_config.NumberColumn("Feature", format="%d", width=62, pinned=True),
    "kind": st.column_config.TextColumn("The label names", width=150, help="Which property the label is about."),
    "confidence": st.column_config.ProgressColumn("Confidence", format="%.2f", min_value=0, max_value=1, width=95, help=_HOLDS),
    "density": st.column_config.NumberColumn(
        "Fires on", format="%.3f %%", width=80, help="Density: share of tokens on which the feature fires."
    ),
    "max": st.column_config.NumberColumn(
        "Max", format="%.2f", width=65, help="Strongest activation on these texts, in the SAE's own units."
    ),
    "peak": st.column_config.TextColumn(
        "Peak token", width=90, help="The commonest peak token of the strongest examples; · is a leading space."
    ),
    "lens": st.column_config.TextColumn("Writes", width=215, help="The tokens that the logit lens says the feature promotes most."),
    **{
        f"score_{name}": st.column_config.ProgressColumn(
            score.short, format="%.2f", min_value=0, max_value=1, width=88, help=score.explained
        )
        for name, score in SCORES.items()
    },
}
_LABEL_WIDTH, _NARROW = 285, 200  # with the columns that are always there, and beside others
_BY_CHOICE = {"peak": "Peak token", "lens": "Writes", "max": "Max", "kind": "The label names"}


def render(bundle: Bundle) -> None:
    """The page."""
    shell.write_link(bundle)
    st.title("Browse", anchor=False)
    frame, summary = resources.get_frame(bundle), bundle.manifest["features"]
    wanted, chosen_columns = _filters(bundle, summary)
    mask = kept(frame, wanted)
    rows = ordered(frame, mask, query=wanted.query)
    left, right = st.columns([8, 5], gap="medium")
    with left:
        st.markdown(
            f"**{len(rows):,} of {count_of(len(frame), 'feature')}**" + _hidden(wanted, summary),
            help="First the features with clear labels that are not too common. A click on a column's head sorts by it.",
        )
        chosen = _table(frame, rows, wanted, chosen_columns) if len(rows) else _nothing(wanted)
        export_buttons.table_buttons(bundle)
    with right:
        _density(frame, wanted)
        if chosen is None:
            st.caption("Select a row of the table to look at its feature here.")
        else:
            with st.container(border=True):
                feature_panel(bundle, chosen)


# ---- filters -----------------------------------------------------------------------------------------------------------


def _filters(bundle: Bundle, summary: dict) -> tuple[Filter, list[str]]:
    """(what to show, columns beside those that are always there). The controls keep their values when one comes back to the page."""
    stay = {"persist_state": "session"}
    first, second, third, fourth = st.columns([6, 4, 4, 4], gap="medium")
    with first:
        query = st.text_input(
            "Search",
            key="browse_query",
            placeholder="a label, a token or a number",
            live=True,
            type="search",
            help="Finds this piece of text, in upper or lower case, in labels, peak tokens and promoted tokens.",
            **stay,
        )
        with st.container(horizontal=True, vertical_alignment="center"):
            hide_dead = bool(summary["dead"]) and st.toggle(f"Hide {summary['dead']:,} dead", True, key="browse_dead", help=_DEAD, **stay)
            dense_help = (
                f"Features that fire on more than {percent(summary['dense_above'])} of all tokens: they say little about any one of them."
            )
            hide_dense = bool(summary["dense"]) and st.toggle(
                f"Hide {summary['dense']:,} dense", True, key="browse_dense", help=dense_help, **stay
            )
    with second:
        kinds = st.multiselect(
            "The label names",
            list(KIND_WORDS),
            format_func=KIND_WORDS.get,
            key="browse_kinds",
            placeholder="anything",
            help="Which property the label is about.",
            **stay,
        )
        columns = _columns(stay)
    with third:
        confidence = st.slider("Confidence at least", 0.0, 1.0, 0.0, 0.05, key="browse_confidence", help=_HOLDS, **stay)
    with fourth:
        low, high = st.select_slider("Fires on", _ONE_IN, (_ONE_IN[0], _ONE_IN[-1]), format_func=_stop_words, key="browse_density", **stay)
    wanted = Filter(
        query=query or "",
        hide_dead=hide_dead,
        dense_above=summary["dense_above"] if hide_dense else None,
        kinds=frozenset(kinds),
        confidence=confidence,
        density=(1 / low if low else 0.0, 1 / high if high else 0.0),
        scores=_least(bundle, columns, stay),
    )
    return wanted, columns


def _columns(stay: dict) -> list[str]:
    """Columns beside those that are always there, by choice."""
    titles = _BY_CHOICE | {f"score_{name}": score.title for name, score in SCORES.items()}
    with st.popover("Columns and scores", icon=":material/view_column:"):
        return st.pills(
            "More columns",
            list(titles),
            format_func=titles.get,
            selection_mode="multi",
            wrap=True,
            key="browse_columns",
            help="A click on a column's head sorts by it. Each score lies between 0 and 1; choosing one also brings a slider that "
            "filters by it.",
            **stay,
        )


def _least(bundle: Bundle, columns: list[str], stay: dict) -> tuple[tuple[str, float], ...]:
    """The least value of each chosen score, where one is asked for."""
    chosen, known, least = [name for name in SCORES if f"score_{name}" in columns], known_scores(bundle), []
    if missing := [SCORES[name].title for name in chosen if name not in known]:
        st.caption(f"Not in this bundle, which was built before: {', '.join(missing)}. Building it again adds them.")
    chosen = [name for name in chosen if name in known]
    for at in range(0, len(chosen), _SLIDERS):
        for place, name in zip(st.columns(_SLIDERS, gap="medium"), chosen[at : at + _SLIDERS], strict=False):
            score = SCORES[name]
            with place:
                value = st.slider(f"{score.title}, at least", 0.0, 1.0, 0.0, 0.05, key=f"browse_score_{name}", help=score.explained, **stay)
            if value:
                least.append((name, value))
    return tuple(least)


def _stop_words(one_in: int) -> str:
    return "rarest" if not one_in else "every token" if one_in == 1 else f"1 in {one_in:,}"


def _hidden(wanted: Filter, summary: dict) -> str:
    parts = []
    if wanted.hide_dead and summary["dead"]:
        parts.append(f"{summary['dead']:,} dead")
    if wanted.dense_above is not None and summary["dense"]:
        parts.append(f"{summary['dense']:,} dense")
    return f"; {' and '.join(parts)} ones are hidden" if parts else ""


# ---- table and chart ---------------------------------------------------------------------------------------------------


def _table(frame: pd.DataFrame, rows: np.ndarray, wanted: Filter, columns: list[str]) -> int | None:
    """The table; returns the selected feature. Its key changes with the filters, so that a selection never means another row."""
    scores = [column for column in columns if column.startswith("score_")]
    shown = frame.loc[rows, [*COLUMNS, *scores]]
    shown["density"] = shown["density"] * 100
    shown["kind"] = shown["kind"].map(KIND_WORDS)
    event = st.dataframe(
        shown,
        hide_index=True,
        column_order=("feature", "label", *columns, "confidence", "density"),
        column_config=_CONFIG | {"label": _label_column(_NARROW if columns else _LABEL_WIDTH)},
        placeholder="–",  # scores that the bundle lacks
        key=f"browse_table_{abs(hash(wanted))}",
        on_select="rerun",
        selection_mode="single-row",
        height="content" if len(rows) <= _ROWS else _HEIGHT,
        alt="Features with label, confidence, density, maximum, peak token and promoted tokens",
    )
    picked = event["selection"]["rows"]
    return int(rows[picked[0]]) if picked and picked[0] < len(rows) else None


def _label_column(width: int) -> dict:
    return st.column_config.TextColumn("Label", width=width, help="Automatic: what the strongest examples have in common.")


def _nothing(wanted: Filter) -> None:
    """An empty result says what was asked."""
    asked = f"No feature matches “{md(wanted.query)}”" if wanted.query else "No feature is left"
    st.info(f"{asked} under these filters. Try a shorter piece of text, or widen the filters.", icon=":material/search_off:")


def _density(frame: pd.DataFrame, wanted: Filter) -> None:
    density = frame["density"].to_numpy()
    low, high = wanted.density
    narrowed = (low, high) != (0.0, 1.0)
    st.plotly_chart(
        figures.density_histogram(density, low=low if narrowed else None, high=high if narrowed else None, dense_above=wanted.dense_above),
        config=figures.CONFIG,
        key="browse_histogram",
        alt="Histogram: how many features fire how often",
    )
    st.caption(
        "How often features fire."
        + (" Grey: the chosen range." if narrowed else "")
        + (" Dotted: dense from here." if wanted.dense_above else "")
    )
