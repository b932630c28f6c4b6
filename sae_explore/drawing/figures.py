"""Plotly figures, each a pure function from arrays to a `go.Figure`: no Streamlit, no state, transparent, readable on light and dark.

Strings from outside (tokens, labels, categories) go through `axis_text`, because plotly reads a small HTML in all its texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from sae_explore.drawing.figures_html import ROOM, short_name
from sae_explore.drawing.spans import dotted
from sae_explore.types import LensToken

ACCENT, COOL, GREY = "#D9590D", "#3B6EA8", "#8C8C8C"
CONFIG = {"displayModeBar": False, "scrollZoom": False}
"""For `st.plotly_chart(config=...)`."""

_DIVERGING = [[0.0, COOL], [0.5, "rgba(128,128,128,.1)"], [1.0, ACCENT]]  # 0 is hardly seen, on light and dark pages alike
_WHITE = "#FFFFFF"
NUMBER = {"textposition": "auto", "insidetextanchor": "end", "insidetextfont": {"color": _WHITE}, "textfont": {"size": 11},
           "constraintext": "none", "cliponaxis": False}  # fmt: skip
GRID = "rgba(128,128,128,.18)"
COUNTS = {"gridcolor": GRID, "showgrid": True, "rangemode": "tozero", "tickformat": ",d"}
_SPAN = {"xref": "x", "yref": "paper", "y0": 0, "y1": 1}  # of the plot's whole height
_BAR = 23  # pixels a horizontal bar takes


def axis_text(token: str) -> str:
    """A token or label for plotly: white space visible, nothing left that plotly would read as markup."""
    return _escaped(dotted(token))


def axis_name(token: str) -> str:
    """The same for an axis, of which a token must leave something to its bars."""
    return _escaped(short_name(token))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def lens_bars(tokens: Sequence[LensToken], *, baseline: float | None = None, end: float = 0.0) -> go.Figure:
    """Logit-lens tokens as horizontal bars, the first on top, negative ones to the right too.

    `baseline` is what random directions reach (of the bars' sign); `end` the longest bar of charts that stand beside this one.
    """
    values = np.asarray([t.logit for t in tokens], float)
    suppressed = bool(len(values)) and values[0] < 0
    names = [axis_text(t.token) for t in tokens]
    end = max([*np.abs(values), abs(baseline or 0), end, 1e-9]) * ROOM
    bars = {
        "type": "bar", "x": values, "y": np.arange(len(tokens)), "orientation": "h", "marker": {"color": COOL if suppressed else ACCENT},
        "text": [f"{v:+.2f}" for v in values], "customdata": [[name, t.id] for name, t in zip(names, tokens, strict=True)],
        "hovertemplate": "%{customdata[0]}<br>logit %{x:+.3f}<br>token id %{customdata[1]}<extra></extra>", **NUMBER,
    }  # fmt: skip
    return make_figure(
        [bars],
        height=_BAR * max(len(tokens), 1) + (34 if baseline is None else 48),
        top=2 if baseline is None else 20,
        xaxis={"range": [0, -end if suppressed else end], "visible": False},
        yaxis={**row_axis([axis_name(t.token) for t in tokens]), "tickfont": {"family": "monospace"}},
        **({} if baseline is None else _mark(baseline, f"random {baseline:+.2f}", end)),
    )


def density_histogram(
    density: np.ndarray, *, low: float | None = None, high: float | None = None, dense_above: float | None = None
) -> go.Figure:
    """How many features fire how often, on a log10 axis (dead ones are not in it); the chosen range low to high is shaded."""
    logs = np.log10(density[density > 0])
    start = float(min(np.floor(logs.min() * 4) / 4, -1.0)) if len(logs) else -4.0
    edges = np.linspace(start, 0.0, round(-start * 8) + 1)  # eight bins a power of ten
    counts = np.histogram(logs, edges)[0]
    bars = {
        "type": "bar", "x": (edges[:-1] + edges[1:]) / 2, "y": counts, "width": np.diff(edges),
        "marker": {"color": ACCENT, "line": {"width": 0}}, "customdata": np.stack([10 ** edges[:-1], 10 ** edges[1:]], axis=1).tolist(),
        "hovertemplate": "%{y:,} features fire on %{customdata[0]:.2g} to %{customdata[1]:.2g} of tokens<extra></extra>",
    }  # fmt: skip
    shapes = []
    if low is not None or high is not None:
        left, right = (start if not low else max(float(np.log10(low)), start)), (0.0 if high is None else float(np.log10(high)))
        shapes.append({**_SPAN, "type": "rect", "x0": left, "x1": right, "fillcolor": "rgba(128,128,128,.16)", "line": {"width": 0},
                       "layer": "below", "name": "chosen range"})  # fmt: skip
    if dense_above:
        shapes.append(vertical_line(float(np.log10(dense_above)), "dense"))
    powers = np.arange(np.ceil(start), 1)
    return make_figure(
        [bars],
        height=200,
        bargap=0.04,
        xaxis={"range": [start, 0], **_ticks(powers, [f"{10**-p:,.0f}" for p in powers]), "title": {"text": "fires on one in … tokens"}},
        yaxis={"title": {"text": "features"}, **COUNTS, "nticks": 4},
        shapes=shapes,
    )


def similarity_heatmap(matrix: np.ndarray, names: Sequence[str]) -> go.Figure:
    """Decoder cosines between features, with the numbers in the cells; the scale runs from -1 to 1."""
    n, at, texts = len(names), np.arange(len(names)), [axis_text(name) for name in names]
    cells = {
        "type": "heatmap", "z": np.round(matrix, 4), "x": at, "y": at, "zmin": -1, "zmax": 1, "colorscale": _DIVERGING, "showscale": False,
        "xgap": 2, "ygap": 2, "customdata": [[[a, b] for b in texts] for a in texts],
        "hovertemplate": "features %{customdata[0]} and %{customdata[1]}: cosine %{z:.3f}<extra></extra>",
    }  # fmt: skip
    numbers = [
        {"x": j, "y": i, "text": f"{matrix[i, j]:.2f}", "showarrow": False,
         "font": {"size": 12, **({"color": _WHITE} if abs(matrix[i, j]) > 0.8 else {})}}
        for i in range(n) for j in range(n)
    ]  # fmt: skip
    return make_figure(
        [cells],
        height=42 * n + 50,
        top=30,
        xaxis={**_ticks(at, texts), "side": "top", "range": [-0.5, n - 0.5]},
        yaxis=row_axis(texts),
        annotations=numbers,
    )


def strength_bars(names: Sequence[str], strengths: Sequence[float], *, baseline: float) -> go.Figure:
    """Direction strength of features as horizontal bars, with the mean of random unit directions as a line."""
    values, texts = np.asarray(strengths, float), [axis_text(n) for n in names]
    end = max([*values, baseline, 1e-9]) * ROOM
    bars = {
        "type": "bar", "x": values, "y": np.arange(len(names)), "orientation": "h", "marker": {"color": ACCENT},
        "text": [f"{v:.3f}" for v in values],
        "customdata": [[t, float(v) / max(baseline, 1e-12)] for t, v in zip(texts, values, strict=True)],
        "hovertemplate": "feature %{customdata[0]}<br>strength %{x:.3f}, %{customdata[1]:.2f} times a random direction's<extra></extra>",
        **NUMBER,
    }  # fmt: skip
    return make_figure(
        [bars],
        height=30 * max(len(names), 1) + 56,
        top=20,
        xaxis={"range": [0, end], "visible": False},
        yaxis=row_axis(texts),
        **_mark(baseline, f"random {baseline:.3f}", end),
    )


# ---- parts -------------------------------------------------------------------------------------------------------------


def _ticks(at: np.ndarray, texts: Sequence[str]) -> dict:
    return {"tickmode": "array", "tickvals": at, "ticktext": list(texts), "ticks": ""}


def row_axis(texts: Sequence[str]) -> dict:
    """A y axis of one row a text, the first on top: by number, so that equal texts stay apart."""
    return {**_ticks(np.arange(len(texts)), texts), "range": [len(texts) - 0.5, -0.5]}


def vertical_line(x: float, name: str, *, dash: str = "dot", width: float = 1, colour: str = GREY) -> dict:
    return {**_SPAN, "type": "line", "x0": x, "x1": x, "line": {"color": colour, "width": width, "dash": dash}, "name": name}


def _mark(x: float, text: str, end: float) -> dict:
    """A dashed vertical line with a word above the plot, which stays inside it; the axis goes from 0 to `end`, or to its negative."""
    word = {"x": x, "y": 1, "yref": "paper", "yanchor": "bottom", "text": text, "showarrow": False, "font": {"size": 11, "color": GREY},
            "xanchor": "right" if abs(x) > 0.75 * end else "center"}  # fmt: skip
    line = vertical_line(x, "random directions", dash="dash", width=1.5)
    return {"shapes": [{**line, "layer": "below"}], "annotations": [word]}  # behind the bars: the numbers in them stay readable


def one_in(power: float) -> str:
    """10^power of tokens as a tick: `1 in 1,000`."""
    return "all" if power == 0 else f"1 in {10**-power:,.0f}"


def make_figure(traces: list[dict], *, height: int, xaxis: dict, yaxis: dict, top: int = 6, bargap: float = 0.28, **layout) -> go.Figure:
    """All in one call, and unchecked: plotly's check of every property takes longer than all else on a page. The tests have it checked."""
    fixed = {"fixedrange": True, "automargin": True, "zeroline": False, "showgrid": False}
    return go.Figure(
        traces,
        {
            "height": height, "margin": {"l": 0, "r": 6, "t": top, "b": 4}, "showlegend": False, "bargap": bargap, "dragmode": False,
            "hoverlabel": {"align": "left"}, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": {**fixed, **xaxis}, "yaxis": {**fixed, **yaxis}, **layout,
        },
        _validate=False,
    )  # fmt: skip
