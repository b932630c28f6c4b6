"""Browse: what is in this SAE? One searchable, sortable table of all features, and a small preview of the selected one."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlencode

import numpy as np
import pandas as pd
import streamlit as st

from sae_explore import resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import figures, spans
from sae_explore.drawing.spans import md
from sae_explore.errors import ExploreError
from sae_explore.explore import links
from sae_explore.explore.browse import ANY, COLUMNS, Filter, kept, ordered
from sae_explore.explore.find_links import Search
from sae_explore.features.scores import SCORES
from sae_explore.types import TextTrace
from sae_explore.views import (
    addresses,
    export_buttons,
    find_fields,
    find_filters,
    find_keep,
    find_results,
    notes_widgets,
    own_notes,
)
from sae_explore.views.feature_panel import feature_panel
from sae_explore.views.find_results import Results
from sae_explore.wording import CHECKED, KIND_WORDS, count_of

_HEIGHT, _ROWS = 560, 15  # of the table, in pixels and in the rows that fit

_CONFIG = {
    "feature": st.column_config.NumberColumn("Feature", format="%d", width=62, pinned=True),
    "kind": st.column_config.TextColumn("The label names", width=150, help="Which property the label is about."),
    "confidence": st.column_config.ProgressColumn(
        "Confidence", format="%.2f", min_value=0, max_value=1, width=95, help=find_filters.CONFIDENCE_HELP
    ),
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
_WIDTH = 512  # pixels of the table at 1,280, without the column of its boxes
_LABEL_LEAST = 125
_BY_CHOICE = {"confidence": "Confidence", "peak": "Peak token", "lens": "Writes", "max": "Max", "kind": "The label names"}
_STAY = {"persist_state": "session"}


def render(bundle: Bundle) -> None:
    """The page."""
    st.title("Browse", anchor=False)
    own_notes.show_problem()
    find_fields.take_link()
    frame = resources.get_frame(bundle)
    asked = find_fields.field(bundle)
    filters = find_filters.filters(bundle, frame)
    search = replace(filters, by=asked.by, query=asked.query, suppressed=asked.suppressed)
    addresses.write_link(bundle, search=search)
    wanted = find_filters.filter_of(search, bundle)
    mask = kept(frame, wanted)
    place = st.empty()
    if search.by == "label":
        found, rows = None, ordered(frame, mask, query=wanted.query)
    else:
        found = find_results.results(bundle, search, place)
        rows = np.zeros(0, np.int64) if found.found is None else found.found.feature
        at = np.flatnonzero(mask[rows])
        rows = rows[at]
    left, right = st.columns([8, 5], gap="medium")
    chosen = None
    with left:
        if found is not None and found.found is None:
            if found.hint:
                st.info(found.hint, icon=":material/search:")
        else:
            _count(bundle, search, found, len(rows))
            with st.container(horizontal=True, vertical_alignment="center"):
                columns = _columns(found is not None)
                if len(rows):
                    find_keep.keep_as_list(bundle, rows, note=_note(bundle, search))
                if filters != find_filters.NO_SEARCH:
                    st.button("Reset the filters", icon=":material/restart_alt:", on_click=find_filters.reset)
            if len(rows):
                extra = None if found is None else found.table(at)
                chosen = _table(frame, rows, extra, columns, key=hash((bundle.name, search)))
            else:
                _nothing(search, filters)
        export_buttons.table_buttons(bundle)
    with right:
        if chosen is None and len(rows):
            st.caption("Select a row of the table to look at its feature here.")
        _density(frame, wanted)
        if chosen is not None:
            _panel(bundle, chosen, search, found)


def _count(bundle: Bundle, search: Search, found: Results | None, shown: int) -> None:
    """How many features the table holds, of how many, and why the others are not there."""
    if found is None:
        said, of = "", count_of(bundle.d_sae, "feature")
        checked = f"those whose labels a person checked ({CHECKED}), then " if bundle.human_labels else ""
        help_text = f"First {checked}the features with clear labels that are not too common. A click on a column's head sorts by it."
    else:
        said, of = f" {found.said}", count_of(len(found.found), "feature")
        help_text = "The best ones first. A click on a column's head sorts by it."
    st.markdown(f"**{shown:,} of {of}**{said}" + _hidden(bundle, search, found, shown), help=help_text)
    if found is not None and found.more:
        st.caption(found.more)


def _hidden(bundle: Bundle, search: Search, found: Results | None, shown: int) -> str:
    """What the filters do, in words."""
    summary, parts = bundle.manifest["features"], []
    if found is None:
        if search.show == "live" and summary["dead"]:
            parts.append(f"{summary['dead']:,} dead")
        if not search.dense and summary["dense"]:
            parts.append(f"{summary['dense']:,} dense")
        said = f"; {' and '.join(parts)} ones are hidden" if parts else ""
    else:
        hidden = len(found.found) - shown
        said = f"; {hidden:,} {'is' if hidden == 1 else 'are'} hidden by the filters" if hidden else ""
    set_now = find_filters.words(search)
    return said + (f". Filters: {set_now}" if set_now else "")


def _columns(ranked: bool) -> list[str]:
    """Columns beside those that are always there, by choice."""
    titles = _BY_CHOICE | {f"score_{name}": score.title for name, score in SCORES.items()}
    if not ranked:
        del titles["confidence"]  # it is there
    with st.popover("Columns and scores", icon=":material/view_column:"):
        return st.pills(
            "More columns",
            list(titles),
            format_func=titles.get,
            selection_mode="multi",
            wrap=True,
            key="browse_columns_found" if ranked else "browse_columns",
            help="A click on a column's head sorts by it. Each score lies between 0 and 1; the filters have a slider for each.",
            **_STAY,
        )


# ---- table and chart ---------------------------------------------------------------------------------------------------


def _table(frame: pd.DataFrame, rows: np.ndarray, extra: dict | None, columns: list[str], *, key: int) -> int | None:
    """The table; returns the selected feature. Its key changes with the search, so that a selection never means another row.

    `extra` are the columns that the search brings, in front of the chosen ones and in the place of the confidence; None for no search.
    """
    always = ["confidence", "density"] if extra is None else ["density"]
    extra = extra or {}
    scores = [column for column in columns if column.startswith("score_")]
    shown = frame.loc[rows, [*COLUMNS, *scores]].assign(**{f"found_{name}": column for name, column in extra.items()})
    shown["density"] = shown["density"] * 100
    shown["kind"] = shown["kind"].map(KIND_WORDS)
    order = [*(f"found_{name}" for name in extra), *columns, *always]
    config = _CONFIG | find_results.config()
    label = max(_LABEL_LEAST, _WIDTH - sum(config[column]["width"] for column in ("feature", *order)))
    event = st.dataframe(
        shown,
        hide_index=True,
        column_order=("feature", "label", *order),
        column_config=config | {"label": _label_column(label)},
        placeholder="–",  # scores that the bundle lacks
        key=f"browse_table_{abs(key)}",
        on_select="rerun",
        selection_mode="single-row",
        height="content" if len(rows) <= _ROWS else _HEIGHT,
        alt="Features with label, density and the figures of the search",
    )
    picked = event["selection"]["rows"]
    return int(rows[picked[0]]) if picked and picked[0] < len(rows) else None


def _label_column(width: int) -> dict:
    return st.column_config.TextColumn("Label", width=width, help="Automatic: what the strongest examples have in common.")


def _nothing(search: Search, filters: Search) -> None:
    """An empty result says what was asked, and what to try."""
    asked = f"No feature matches “{md(search.query)}”" if search.query else "No feature is left"
    advice = (
        "Widen the filters or reset them." if filters != find_filters.NO_SEARCH else "Try a shorter piece of text, or another way to find."
    )
    st.info(f"{asked} under these filters. {advice}", icon=":material/search_off:")


def _panel(bundle: Bundle, feature: int, search: Search, found: Results | None) -> None:
    """The selected feature, on the phrase too where one was searched for, and what can be done with it."""
    trace = None if found is None else found.trace
    with st.container(border=True):
        if trace is not None:
            _on_phrase(bundle, feature, trace)
        feature_panel(bundle, feature, trace=trace)
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button("Features like it", icon=":material/join:", on_click=find_fields.open_similar, args=(feature,))
            try:
                notes_widgets.list_editor(bundle, feature, own_notes.notes_of(bundle))
            except ExploreError:
                st.caption("Your lists cannot be read; the page Lists says why.")


def _on_phrase(bundle: Bundle, feature: int, trace: TextTrace) -> None:
    """The phrase, coloured by the feature, and a link to it on the page of a text."""
    tokens = trace.tokens
    maximum = float(bundle.maxima[feature]) or float(trace.rows.column(feature).max())
    st.html(spans.run_html(tokens.texts, trace.rows.column(feature), trace.ignored, maximum, data=tokens.bytes, feature=feature))
    query = links.query_of(bundle=bundle.name, feature=feature, text=trace.text)
    st.page_link(addresses.page_named("text"), label="The phrase on the page Text", icon=":material/arrow_forward:", query_params=query)


def _note(bundle: Bundle, search: Search) -> str:
    """For a list: where its features come from."""
    return f"Found with: {urlencode(links.query_of(bundle=bundle.name, search=search))}"


def _density(frame: pd.DataFrame, wanted: Filter) -> None:
    density = frame["density"].to_numpy()
    low, high = wanted.density
    narrowed = (low, high) != ANY
    high = min(high, 1.0)
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
