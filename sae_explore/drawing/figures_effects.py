"""Plotly figures of changed predictions: plain arrays in, a figure out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from sae_explore.drawing.figures import ACCENT, COOL, axis_name, axis_text, make_figure
from sae_explore.wording import percent

_TOKEN = 40  # pixels: two bars and a gap
_ROOM = 1.25  # the axis beyond the longest bar, for its number
_BEFORE = "rgba(128,128,128,.55)"


def probability_bars(tokens: Sequence[str], before: np.ndarray, after: np.ndarray, *, end: float, up: bool) -> go.Figure:
    """Probabilities of a few tokens without and with a change, two horizontal bars a token, the first one on top.

    `end` is the largest probability of the charts that stand together; `up` says that these are the tokens that gain.
    """
    names, at = [axis_text(t) for t in tokens], np.arange(len(tokens))
    bars = [
        {
            "type": "bar", "orientation": "h", "x": values, "y": at, "name": name, "offsetgroup": name, "marker": {"color": colour},
            "text": [percent(float(v)) for v in values], "textposition": "outside", "textfont": {"size": 11}, "cliponaxis": False,
            "constraintext": "none", "customdata": names, "hovertemplate": f"%{{customdata}}: %{{text}} {name}<extra></extra>",
        }
        for name, values, colour in (("without", before, _BEFORE), ("with the change", after, ACCENT if up else COOL))
    ]  # fmt: skip
    return make_figure(
        bars,
        height=_TOKEN * max(len(names), 1) + 36,
        top=30,
        bargap=0.25,
        xaxis={"range": [0, max(end, 1e-9) * _ROOM], "visible": False},
        yaxis={"tickmode": "array", "tickvals": at, "ticktext": [axis_name(t) for t in tokens], "ticks": "", "range": [len(names) - 0.5, -0.5],
               "tickfont": {"family": "monospace"}},
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom", "traceorder": "normal"},
    )  # fmt: skip
