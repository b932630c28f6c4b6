"""Plotly figures, each a pure function from arrays to a `go.Figure`: no Streamlit, no state, transparent, readable on light and dark.

Strings from outside (tokens, labels, categories) go through `axis_text`, because plotly reads a small HTML in all its texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from sae_explore.spans import dotted
from sae_explore.strength import BANDS
from sae_explore.types import LensToken

ACCENT, COOL, GREY = "#D9590D", "#3B6EA8", "#8C8C8C"
CONFIG = {"displayModeBar": False, "scrollZoom": False}
"""For `st.plotly_chart(config=...)`."""

_BAND_COLOURS = ("rgba(217,89,13,.32)", "rgba(217,89,13,.52)", "rgba(217,89,13,.75)", "rgba(217,89,13,1)")  # trace ... strong
_DIVERGING = [[0.0, COOL], [0.5, "#F1EFEA"], [1.0, ACCENT]]  # opaque: the numbers stand on it, on light and dark pages alike
_DARK, _WHITE = "#1F2328", "#FFFFFF"
NUMBER = {"textposition": "auto", "insidetextanchor": "end", "insidetextfont": {"color": _WHITE}, "textfont": {"size": 11},
           "constraintext": "none", "cliponaxis": False}  # fmt: skip
GRID = "rgba(128,128,128,.18)"
COUNTS = {"gridcolor": GRID, "showgrid": True, "rangemode": "tozero", "tickformat": ",d"}
_SPAN = {"xref": "x", "yref": "paper", "y0": 0, "y1": 1}  # of the plot's whole height
_BAR = 23  # pixels a horizontal bar takes
_LONGEST = 22  # characters of a token on an axis
_ROOM = 1.12  # the axis beyond the longest bar, for the number of a bar too short to hold it


def axis_text(token: str) -> str:
    """A token or label for plotly: white space visible, nothing left that plotly would read as markup."""
    return _escaped(dotted(token))


def axis_name(token: str) -> str:
    """The same for an axis, of which a token must leave something to its bars: rows of dashes and the like lose their middle."""
    shown = dotted(token)
    return _escaped(shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 6]}…{shown[-5:]}")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def lens_bars(tokens: Sequence[LensToken], *, baseline: float | None = None, end: float = 0.0) -> go.Figure:
    """Logit-lens tokens as horizontal bars, the first on top, negative ones to the right too.

    `baseline` is what random directions reach (of the bars' sign); `end` the longest bar of charts that stand beside this one.
    """
    values = np.asarray([t.logit for t in tokens], float)
    suppressed = bool(len(values)) and values[0] < 0
    names = [axis_text(t.token) for t in tokens]
    end = max([*np.abs(values), abs(baseline or 0), end, 1e-9]) * _ROOM
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


def activation_histogram(edges: np.ndarray, counts: np.ndarray, *, here: float | None = None) -> go.Figure:
    """Positive activations in equal bins over (0, max], coloured by band; dotted lines where a band ends.

    `here`: the activation on the text that one looks at, marked; above the maximum the axis grows to hold it.
    """
    edges, counts = np.asarray(edges, float), np.asarray(counts)
    maximum, band = float(edges[-1]), band_of_bins(len(counts))
    bars = {
        "type": "bar", "x": (edges[:-1] + edges[1:]) / 2, "y": counts, "width": np.diff(edges),
        "marker": {"color": [_BAND_COLOURS[b] for b in band], "line": {"width": 0}},
        "customdata": [[float(a), float(b), BANDS[i + 1][0]] for a, b, i in zip(edges[:-1], edges[1:], band, strict=True)],
        "hovertemplate": "%{y:,} tokens between %{customdata[0]:.2f} and %{customdata[1]:.2f}<br>%{customdata[2]}<extra></extra>",
    }  # fmt: skip
    limits = [vertical_line(end * maximum, name) for name, end in BANDS[1:-1]]
    end = max(maximum or 1, 1.03 * (here or 0))
    return make_figure(
        [bars],
        height=230 if here is None else 246,
        top=6 if here is None else 22,
        bargap=0,
        xaxis={"range": [0, end], "title": {"text": "activation"}},
        yaxis={"title": {"text": "tokens"}, **COUNTS, "nticks": 5},
        **_marks([] if here is None else [(here, f"this text {here:.2f}", COOL)], (0, end), lines=limits),
    )


def lens_histogram(edges: np.ndarray, counts: np.ndarray, *, baseline: float, here: tuple[float, str] | None = None) -> go.Figure:
    """What the feature's direction writes into the logit of every token of the vocabulary, on a log scale, because the few at the ends matter.

    Dashed: what random directions reach, up and down. `here`: logit and name of a token to mark.
    """
    edges, counts = np.asarray(edges, float), np.asarray(counts)
    middle = (edges[:-1] + edges[1:]) / 2
    end = 1.03 * max(abs(edges[0]), abs(edges[-1]), abs(baseline), abs(here[0]) if here else 0, 1e-9)
    bars = {
        "type": "bar", "x": middle, "y": counts, "width": np.diff(edges), "marker": {"color": np.where(middle < 0, COOL, ACCENT).tolist(),
        "line": {"width": 0}}, "customdata": np.stack([edges[:-1], edges[1:]], axis=1).tolist(),
        "hovertemplate": "%{y:,} tokens between %{customdata[0]:+.2f} and %{customdata[1]:+.2f}<extra></extra>",
    }  # fmt: skip
    chance = [vertical_line(sign * baseline, "random directions", dash="dash", width=1.5) for sign in (-1, 1)]
    powers = 10 ** np.arange(0, int(np.log10(max(counts.max(initial=1), 1))) + 1)
    return make_figure(
        [bars],
        height=190 if here is None else 206,
        top=6 if here is None else 22,
        bargap=0,
        xaxis={"range": [-end, end], "title": {"text": "logit"}, "nticks": 7},
        yaxis={"type": "log", "range": [-0.3, float(np.log10(max(counts.max(initial=1), 1))) + 0.15], "title": {"text": "tokens"},
               "gridcolor": GRID, "showgrid": True, **_ticks(powers, [f"{p:,}" for p in powers])},
        **_marks([(here[0], axis_text(here[1]), GREY)] if here else [], (-end, end), lines=chance),
    )  # fmt: skip


def band_of_bins(bins: int) -> np.ndarray:
    """(bins,) index of the band (0 trace ... 3 strong) in which each of the equal bins over (0, max] lies, by its upper end."""
    upper = np.arange(1, bins + 1) / bins
    return np.searchsorted([end for _, end in BANDS[1:-1]], upper - 1e-9, side="right")


def band_shares(counts: np.ndarray) -> dict[str, float]:
    """Share of a histogram's firings in each band; a firing exactly on a limit counts with the band below it."""
    totals = np.bincount(band_of_bins(len(counts)), weights=np.asarray(counts, float), minlength=len(BANDS) - 1)
    whole = max(float(totals.sum()), 1.0)
    return {name: float(n) / whole for (name, _), n in zip(BANDS[1:], totals, strict=True)}


def category_bars(names: Sequence[str], shares: Sequence[float], corpus: Sequence[float]) -> go.Figure:
    """Where a feature fires: each category's share of its firings (bars) beside that category's share of the corpus (marks)."""
    at, texts = np.arange(len(names)), [axis_text(n) for n in names]
    bars = {
        "type": "bar", "x": shares, "y": at, "orientation": "h", "marker": {"color": ACCENT}, "customdata": texts,
        "name": "this feature's firings",
        "hovertemplate": "%{customdata}: %{x:.1%} of this feature's firings<extra></extra>",
    }  # fmt: skip
    marks = {
        "type": "scatter", "x": corpus, "y": at, "mode": "markers", "name": "the corpus", "customdata": texts,
        "marker": {"symbol": "line-ns", "size": 13, "line": {"width": 3, "color": COOL}, "color": COOL},
        "hovertemplate": "%{customdata}: %{x:.1%} of the corpus<extra></extra>",
    }  # fmt: skip
    return make_figure(
        [bars, marks],
        height=_BAR * max(len(names), 1) + 76,
        top=30,
        xaxis={"tickformat": ".0%", "gridcolor": GRID, "showgrid": True, "rangemode": "tozero", "nticks": 6},
        yaxis=row_axis(texts),
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.0, "xanchor": "left", "yanchor": "bottom"},
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
        xaxis={"range": [start, 0], **_ticks(powers, [one_in(p) for p in powers]), "title": {"text": "fires on … tokens"}},
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
         "font": {"size": 12, "color": _WHITE if abs(matrix[i, j]) > 0.6 else _DARK}}
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
    end = max([*values, baseline, 1e-9]) * _ROOM
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
    return {"shapes": [vertical_line(x, "random directions", dash="dash", width=1.5)], "annotations": [word]}


def _marks(marks: Sequence[tuple[float, str, str]], limits: tuple[float, float], *, lines: list[dict]) -> dict:
    """Solid lines at (x, word above it, colour) beside other lines; a word near an end of the axis turns to the other side."""
    words = [
        {"x": x, "y": 1, "yref": "paper", "yanchor": "bottom", "text": text, "showarrow": False, "font": {"size": 11, "color": colour},
         "xanchor": "right" if (x - limits[0]) / (limits[1] - limits[0]) > 0.7 else "left"}
        for x, text, colour in marks
    ]  # fmt: skip
    solid = [vertical_line(x, text, dash="solid", width=2, colour=colour) for x, text, colour in marks]
    return {"shapes": [*lines, *solid], "annotations": words}


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
