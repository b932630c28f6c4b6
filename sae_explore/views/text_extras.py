"""Below the text and its tables: the map of tokens and features, and files to take away."""

from __future__ import annotations

import json

import numpy as np
import streamlit as st

from sae_explore import wording
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import spans
from sae_explore.explore import links, text_view
from sae_explore.types import TextTrace
from sae_explore.views import addresses

MAP_FEATURES, MAP_TOKENS = 12, 160


def onward(bundle: Bundle, feature: int | None, *, text: str | None, document: str | None) -> None:
    """Links that take the text along: to change the feature in it, and to compare it with another."""
    query = links.query_of(bundle=bundle.name, text=text, document=document)
    if feature is not None:
        also = {"query_params": query | {"feature": str(feature)}, "help": "Change this feature inside the model while it reads this text."}
        st.page_link(addresses.page_named("whatif"), label="What if it were off here?", icon=":material/experiment:", **also)
    st.page_link(addresses.page_named("compare"), label="Compare with another text", icon=":material/compare:", query_params=query)


def feature_map(bundle: Bundle, trace: TextTrace, rows: text_view.Ranked, position: int | None) -> None:
    """Tokens x features; drawn only while it is open. Of a long text a stretch: around the chosen token, or the best feature's peak."""
    if not len(rows):
        return
    panel = st.expander("Map of tokens and features", icon=":material/grid_on:", key="_map", on_change="rerun")
    if not panel.open:
        return
    from sae_explore.drawing.figures_text import token_feature_heatmap  # plotly takes a while to import

    features = rows.feature[:MAP_FEATURES]
    part = stretch(len(trace.tokens), int(rows.position[0]) if position is None else position)
    values = np.stack([trace.rows.column(int(f))[part] for f in features])
    shares = np.stack([text_view.shares(row, np.full(len(row), bundle.maxima[f])) for row, f in zip(values, features, strict=True)])
    names = [spans.dotted(t, b) for t, b in zip(trace.tokens.texts[part], trace.tokens.bytes[part], strict=True)]
    labels = [spans.plain(label) for label in text_view.labels_of(bundle, features)]
    figure = token_feature_heatmap(names, features.tolist(), labels, values, np.nan_to_num(shares), trace.ignored[part], start=part.start)
    said = f"The first {wording.count_of(len(features), 'feature')} of the table, each on the scale of its own maximum."
    if len(names) < len(trace.tokens):
        said += f" Tokens {part.start} to {part.stop - 1} of {len(trace.tokens):,}: the stretch around the token that you choose."
    alt = f"Heatmap of {len(names)} tokens and {len(features)} features; the table of the text holds the same maxima."
    with panel:
        st.caption(said)
        st.plotly_chart(figure, theme="streamlit", config={"displayModeBar": False}, key="_map_figure", alt=alt)


def stretch(n: int, centre: int) -> slice:
    """At most MAP_TOKENS of `n` tokens, around a position where there is room."""
    start = max(0, min(centre - MAP_TOKENS // 2, n - MAP_TOKENS))
    return slice(start, min(n, start + MAP_TOKENS))


def downloads(bundle: Bundle, trace: TextTrace, name: str, *, by: str) -> None:
    """CSV and JSON, made when they are asked for."""
    from sae_explore.json_output import trace_json

    def as_json() -> str:
        return json.dumps(trace_json(trace, bundle), ensure_ascii=False)

    options = {"on_click": "ignore", "icon": ":material/download:"}
    with st.container(horizontal=True):
        help_csv = "All features that fire on this text, dense ones too, a row each."
        st.download_button("CSV", lambda: text_view.ranked_csv(trace, bundle, by=by), f"{name}.csv", "text/csv", help=help_csv, **options)
        help_json = "Every token with every activation, and the strongest features with their labels."
        st.download_button("JSON", as_json, f"{name}.json", "application/json", help=help_json, **options)
