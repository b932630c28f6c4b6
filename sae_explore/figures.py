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

ACCENT, COOL, GREY = "#D9590D", "#3B6EA8", "rgba(128,128,128,0.75)"
CONFIG = {"displayModeBar": False, "scrollZoom": False}
"""For `st.plotly_chart(config=...)`."""

_BAND_COLOURS = ("rgba(217,89,13,.32)", "rgba(217,89,13,.52)", "rgba(217,89,13,.75)", "rgba(217,89,13,1)")  # trace ... strong
_DIVERGING = [[0.0, COOL], [0.5, "#F1EFEA"], [1.0, ACCENT]]  # opaque: the numbers stand on it, on light and dark pages alike
_DARK, _WHITE = "#1F2328", "#FFFFFF"
_GRID = "rgba(128,128,128,.18)"
_BAR = 23  # pixels a horizontal bar takes
_ROOM = 1.12  # the axis beyond the longest bar, for the number of a bar too short to hold it


def axis_text(token: str) -> str:
    """A token or label for plotly: white space visible, nothing left that plotly would read as markup."""
    return dotted(token).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def lens_bars(tokens: Sequence[LensToken], *, baseline: float | None = None, end: float = 0.0) -> go.Figure:
    """Logit-lens tokens as horizontal bars, the first on top, negative ones to the right too.

    `baseline` is what random directions reach (of the bars' sign); `end` the longest bar of charts that stand beside this one.
    """
    values = np.asarray([t.logit for t in tokens], float)
    suppressed = bool(len(values)) and values[0] < 0
    figure = go.Figure(
        go.Bar(
            x=values, y=np.arange(len(tokens)), orientation="h", marker_color=COOL if suppressed else ACCENT,
            text=[f"{v:+.2f}" for v in values], textposition="auto", insidetextanchor="end", insidetextfont_color=_WHITE, cliponaxis=False,
            customdata=[[axis_text(t.token), t.id] for t in tokens],
            hovertemplate="%{customdata[0]}<br>logit %{x:+.3f}<br>token id %{customdata[1]}<extra></extra>",
        )
    )  # fmt: skip
    end = max([*np.abs(values), abs(baseline or 0), end, 1e-9]) * _ROOM
    figure.update_xaxes(range=[0, -end if suppressed else end], visible=False)
    _rows(figure, [axis_text(t.token) for t in tokens])
    figure.update_yaxes(tickfont_family="monospace")
    if baseline is not None:
        _mark(figure, baseline, f"random {baseline:+.2f}")
    return _styled(figure, height=_BAR * max(len(tokens), 1) + (34 if baseline is None else 48), top=2 if baseline is None else 20)


def activation_histogram(edges: np.ndarray, counts: np.ndarray) -> go.Figure:
    """Positive activations in equal bins over (0, max], coloured by band; dotted lines where a band ends."""
    edges, counts = np.asarray(edges, float), np.asarray(counts)
    maximum, centres = float(edges[-1]), (edges[:-1] + edges[1:]) / 2
    band = band_of_bins(len(counts))
    figure = go.Figure(
        go.Bar(
            x=centres, y=counts, width=np.diff(edges), marker_color=[_BAND_COLOURS[b] for b in band], marker_line_width=0,
            customdata=np.stack([edges[:-1], edges[1:], [BANDS[b + 1][0] for b in band]], axis=1) if len(counts) else None,
            hovertemplate="%{y:,} tokens between %{customdata[0]:.2f} and %{customdata[1]:.2f}<br>%{customdata[2]}<extra></extra>",
        )
    )  # fmt: skip
    for name, end in BANDS[1:-1]:
        figure.add_vline(end * maximum, line={"color": GREY, "width": 1, "dash": "dot"}, name=name)
    figure.update_xaxes(range=[0, maximum or 1], title_text="activation", showgrid=False, zeroline=False)
    figure.update_yaxes(title_text="tokens", gridcolor=_GRID, rangemode="tozero", zeroline=False, tickformat=",d", nticks=5)
    return _styled(figure, height=230, bargap=0)


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
    at = np.arange(len(names))
    texts = [axis_text(n) for n in names]
    figure = go.Figure(
        [
            go.Bar(x=shares, y=at, orientation="h", marker_color=ACCENT, name="this feature's firings", customdata=texts,
                   hovertemplate="%{customdata}: %{x:.1%} of this feature's firings<extra></extra>"),
            go.Scatter(x=corpus, y=at, mode="markers", name="the corpus", customdata=texts,
                       marker={"symbol": "line-ns", "size": 13, "line": {"width": 3, "color": GREY}, "color": GREY},
                       hovertemplate="%{customdata}: %{x:.1%} of the corpus<extra></extra>"),
        ]
    )  # fmt: skip
    figure.update_xaxes(tickformat=".0%", gridcolor=_GRID, rangemode="tozero", zeroline=False, nticks=6)
    _rows(figure, texts)
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 1.0, "xanchor": "left", "yanchor": "bottom"})
    return _styled(figure, height=_BAR * max(len(names), 1) + 76, legend=True, top=30)


def density_histogram(
    density: np.ndarray, *, low: float | None = None, high: float | None = None, dense_above: float | None = None
) -> go.Figure:
    """How many features fire how often, on a log10 axis (dead ones are not in it); the chosen range low to high is shaded."""
    logs = np.log10(density[density > 0])
    start = float(min(np.floor(logs.min() * 4) / 4, -1.0)) if len(logs) else -4.0
    edges = np.linspace(start, 0.0, round(-start * 8) + 1)  # eight bins a power of ten
    counts = np.histogram(logs, edges)[0]
    figure = go.Figure(
        go.Bar(
            x=(edges[:-1] + edges[1:]) / 2, y=counts, width=np.diff(edges), marker_color=ACCENT, marker_line_width=0,
            customdata=np.stack([10 ** edges[:-1], 10 ** edges[1:]], axis=1),
            hovertemplate="%{y:,} features fire on %{customdata[0]:.2g} to %{customdata[1]:.2g} of tokens<extra></extra>",
        )
    )  # fmt: skip
    if low is not None or high is not None:
        left, right = (start if not low else max(np.log10(low), start)), (0.0 if high is None else np.log10(high))
        figure.add_vrect(left, right, fillcolor="rgba(128,128,128,.16)", line_width=0, layer="below", name="chosen range")
    if dense_above:
        figure.add_vline(np.log10(dense_above), line={"color": GREY, "width": 1, "dash": "dot"}, name="dense")
    powers = np.arange(np.ceil(start), 1)
    figure.update_xaxes(
        range=[start, 0], tickmode="array", tickvals=powers, ticktext=[_one_in(p) for p in powers], title_text="fires on … tokens",
        showgrid=False, zeroline=False,
    )  # fmt: skip
    figure.update_yaxes(title_text="features", gridcolor=_GRID, rangemode="tozero", zeroline=False, tickformat=",d", nticks=4)
    return _styled(figure, height=200, bargap=0.04)


def similarity_heatmap(matrix: np.ndarray, names: Sequence[str]) -> go.Figure:
    """Decoder cosines between features, with the numbers in the cells; the scale runs from -1 to 1."""
    n, at = len(names), np.arange(len(names))
    texts = [axis_text(name) for name in names]
    figure = go.Figure(
        go.Heatmap(
            z=np.round(matrix, 4), x=at, y=at, zmin=-1, zmax=1, colorscale=_DIVERGING, showscale=False, xgap=2, ygap=2,
            customdata=[[[a, b] for b in texts] for a in texts],
            hovertemplate="features %{customdata[0]} and %{customdata[1]}: cosine %{z:.3f}<extra></extra>",
        )
    )  # fmt: skip
    for i in at:
        for j in at:
            figure.add_annotation(x=j, y=i, text=f"{matrix[i, j]:.2f}", showarrow=False,
                                  font={"size": 12, "color": _WHITE if abs(matrix[i, j]) > 0.6 else _DARK})  # fmt: skip
    for axis in (figure.update_xaxes, figure.update_yaxes):
        axis(tickmode="array", tickvals=at, ticktext=texts, showgrid=False, zeroline=False, ticks="")
    figure.update_xaxes(side="top", range=[-0.5, n - 0.5])
    figure.update_yaxes(range=[n - 0.5, -0.5])
    return _styled(figure, height=42 * n + 50, top=30)


def strength_bars(names: Sequence[str], strengths: Sequence[float], *, baseline: float) -> go.Figure:
    """Direction strength of features as horizontal bars, with the mean of random unit directions as a line."""
    values, at = np.asarray(strengths, float), np.arange(len(names))
    texts = [axis_text(n) for n in names]
    figure = go.Figure(
        go.Bar(
            x=values, y=at, orientation="h", marker_color=ACCENT, text=[f"{v:.3f}" for v in values], textposition="auto",
            insidetextanchor="end", insidetextfont_color=_WHITE, cliponaxis=False,
            customdata=np.stack([np.asarray(texts, object), values / max(baseline, 1e-12)], axis=1) if len(names) else None,
            hovertemplate="feature %{customdata[0]}<br>strength %{x:.3f}, %{customdata[1]:.2f} times a random direction's<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(range=[0, max([*values, baseline, 1e-9]) * _ROOM], visible=False)
    _rows(figure, texts)
    _mark(figure, baseline, f"random {baseline:.3f}")
    return _styled(figure, height=30 * max(len(names), 1) + 56, top=20)


def _rows(figure: go.Figure, texts: Sequence[str]) -> None:
    """One row a text, the first on top: by number, so that equal texts stay apart."""
    n = len(texts)
    figure.update_yaxes(
        tickmode="array", tickvals=np.arange(n), ticktext=texts, range=[n - 0.5, -0.5], ticks="", showgrid=False, zeroline=False
    )


def _mark(figure: go.Figure, x: float, text: str) -> None:
    """A dashed vertical line with a word above the plot."""
    figure.add_vline(x, line={"color": GREY, "width": 1.5, "dash": "dash"}, name="random directions")
    figure.add_annotation(x=x, y=1, yref="paper", yanchor="bottom", text=text, showarrow=False, font={"size": 11, "color": GREY})


def _one_in(power: float) -> str:
    """10^power of tokens as a tick: `1 in 1,000`."""
    return "all" if power == 0 else f"1 in {10**-power:,.0f}"


def _styled(figure: go.Figure, *, height: int, legend: bool = False, top: int = 6, bargap: float = 0.28) -> go.Figure:
    figure.update_layout(
        height=height, margin={"l": 0, "r": 6, "t": top, "b": 4}, showlegend=legend, bargap=bargap, hoverlabel_align="left",
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", dragmode=False,
    )  # fmt: skip
    figure.update_xaxes(fixedrange=True, automargin=True)
    figure.update_yaxes(fixedrange=True, automargin=True)
    return figure
