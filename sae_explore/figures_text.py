"""Plotly figures of one text: plain arrays in, a figure out."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from sae_explore import spans

ROW = 40  # pixels a feature: a line of words above a line of cells
MOST_TICKS = 64  # tokens that fit under the axis; more are numbered
_LONGEST_LABEL = 90
_TICKS = (0.05, 0.25, 0.5, 1.0)
_ORANGE = "245,124,32"  # as in spans, so that a cell has the colour of its token


def plotly_text(text: str) -> str:
    """A string for plotly, which reads tags and entities in labels."""
    return escape(text, quote=False)


def token_feature_heatmap(
    tokens: Sequence[str], features: Sequence[int], labels: Sequence[str], values: np.ndarray, shares: np.ndarray, ignored: np.ndarray
) -> go.Figure:
    """Where the features fire: a row a feature, best one on top, a column a token.

    `tokens` are (n,) strings for people, `values` and `shares` (features, n), `ignored` (n,) bool. Colours follow the scale of
    the tokens in the text: each feature by its own maximum.
    """
    n = len(tokens)
    strength = np.asarray([[spans.strength(float(s), 1.0) for s in row] for row in shares]).reshape(len(features), n)
    cells = np.where(strength > 0, strength, np.nan)
    names = [plotly_text(t) for t in tokens]
    heads = [f"<b>{f}</b>  {plotly_text(_shortened(label))}" for f, label in zip(features, labels, strict=True)]
    hover = [[f"{head}<br>token {i}: {name}<br>{value:.2f}, {share:.0%} of its maximum" for i, (name, value, share) in enumerate(zip(names, row, part, strict=True))]
             for head, row, part in zip(heads, values, shares, strict=True)]  # fmt: skip
    figure = go.Figure(
        go.Heatmap(
            x=np.arange(n), y=np.arange(len(features)), z=cells, zmin=0, zmax=1, text=hover, hoverinfo="text", hoverongaps=False, xgap=1, ygap=ROW - 18,
            colorscale=[[0, f"rgba({_ORANGE},0.06)"], [1, f"rgba({_ORANGE},0.95)"]],
            colorbar={"title": {"text": "share of the feature's maximum", "side": "top"}, "orientation": "h", "thickness": 10, "len": 0.6, "x": 0, "xanchor": "left",
                      "y": 1, "yanchor": "bottom", "yref": "paper", "ypad": 4, "tickvals": [spans.strength(t, 1.0) for t in _TICKS], "ticktext": [f"{t:.0%}" for t in _TICKS]},
        )
    )  # fmt: skip
    for row, head in enumerate(heads):
        figure.add_annotation(x=0, xref="paper", xanchor="left", y=row, yref="y", yanchor="bottom", yshift=8, text=head, showarrow=False, align="left")
    for i in np.flatnonzero(ignored):
        figure.add_vrect(x0=i - 0.5, x1=i + 0.5, fillcolor="rgba(128,128,128,0.18)", line_width=0, layer="below")
    ticks = {"tickvals": np.arange(n), "ticktext": names, "tickangle": -90} if n <= MOST_TICKS else {"title": {"text": "token"}}
    figure.update_xaxes(range=[-0.5, n - 0.5], showgrid=False, zeroline=False, **ticks)
    figure.update_yaxes(range=[len(features) - 0.5, -0.75], showticklabels=False, showgrid=False, zeroline=False)
    figure.update_layout(height=110 + ROW * len(features) + 60, margin={"l": 4, "r": 4, "t": 60, "b": 70}, dragmode=False,
                         paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")  # fmt: skip
    return figure


def _shortened(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"
