"""Plotly figures of one text: plain arrays in, a figure out."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from sae_explore.drawing import spans

ROW = 38  # pixels a feature: a line of words above a line of cells
CELL = 18
MOST_TICKS = 64  # tokens that fit under the axis; more are numbered
_SCALE = 68  # pixels of the colour scale
_LONGEST_LABEL = 90
_TICKS = (0.05, 0.25, 0.5, 1.0)
_ORANGE = "245,124,32"  # as in spans, so that a cell has the colour of its token


def plotly_text(text: str) -> str:
    """A string for plotly, which reads tags and entities in labels."""
    return escape(text, quote=False)


def token_feature_heatmap(
    tokens: Sequence[str],
    features: Sequence[int],
    labels: Sequence[str],
    values: np.ndarray,
    shares: np.ndarray,
    ignored: np.ndarray,
    *,
    start: int = 0,
) -> go.Figure:
    """Where the features fire: a row a feature, best one on top, a column a token.

    `tokens` are (n,) strings for people, the first one at position `start` of the text; `values` and `shares` (features, n),
    `ignored` (n,) bool. Colours follow the scale of the tokens in the text: each feature by its own maximum.
    """
    n = len(tokens)
    strength = np.asarray([[spans.strength(float(s), 1.0) for s in row] for row in shares]).reshape(len(features), n)
    names = [plotly_text(t) for t in tokens]
    heads = [f"<b>{f}</b>  {plotly_text(_shortened(label))}" for f, label in zip(features, labels, strict=True)]
    hover = [
        [f"{head}<br>token {start + i}: {names[i]}<br>{row[i]:.2f}, {part[i]:.0%} of its maximum" if row[i] > 0 else "" for i in range(n)]
        for head, row, part in zip(heads, values, shares, strict=True)
    ]
    few = n <= MOST_TICKS
    positions = np.arange(start, start + n)
    figure = go.Figure(
        go.Heatmap(
            x=positions,
            y=np.arange(len(features)),
            z=np.where(strength > 0, strength, np.nan),
            zmin=0,
            zmax=1,
            text=hover,
            hoverinfo="text",
            hoverongaps=False,
            xgap=1 if few else 0,
            ygap=ROW - CELL,
            colorscale=[[0, f"rgba({_ORANGE},0.06)"], [1, f"rgba({_ORANGE},0.95)"]],
            colorbar={
                "title": {"text": "Share of the feature's maximum", "side": "top", "font": {"size": 12}},
                "orientation": "h",
                "thickness": 10,
                "lenmode": "pixels",
                "len": 260,
                "x": 0,
                "xanchor": "left",
                "y": 1,
                "yanchor": "bottom",
                "yref": "paper",
                "xpad": 0,
                "ypad": 12,
                "outlinewidth": 0,
                "tickvals": [spans.strength(t, 1.0) for t in _TICKS],
                "ticktext": [f"{t:.0%}" for t in _TICKS],
            },
        )
    )
    for row, head in enumerate(heads):
        figure.add_annotation(
            x=0,
            xref="paper",
            xanchor="left",
            y=row,
            yref="y",
            yanchor="bottom",
            yshift=CELL / 2 - 2,
            text=head,
            showarrow=False,
            align="left",
            font={"size": 12},
        )
    for i in np.flatnonzero(ignored):
        figure.add_vrect(x0=start + i - 0.5, x1=start + i + 0.5, fillcolor="rgba(128,128,128,0.18)", line_width=0, layer="below")
    ticks = {"tickvals": positions, "ticktext": names, "tickangle": -90} if few else {"title": {"text": "Position of the token"}}
    figure.update_xaxes(range=[start - 0.5, start + n - 0.5], showgrid=False, zeroline=False, **ticks)
    figure.update_yaxes(range=[len(features) - 0.5, -0.6], showticklabels=False, showgrid=False, zeroline=False)
    top, bottom = 10, 84 if few else 48  # plotly itself makes room on top for the scale
    figure.update_layout(
        height=_SCALE + ROW * len(features) + bottom,
        margin={"l": 0, "r": 0, "t": top, "b": bottom},
        dragmode=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    return figure


def _shortened(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"
