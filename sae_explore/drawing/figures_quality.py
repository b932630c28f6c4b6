"""Plotly figures of the Quality page: plain arrays in, a figure out. The look is that of `figures`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from sae_explore.drawing.figures import ACCENT, COOL, COUNTS, GREY, GRID, NUMBER, axis_text, make_figure, row_axis

_BINS = 60
_HEIGHT = 230
_LOSS_COLOURS = {"clean": GREY, "sae": ACCENT, "mean": COOL, "zero": COOL}


def l0_histogram(l0: np.ndarray) -> go.Figure:
    """On how many tokens so many features are active: `l0` (most + 1,) tokens by number of features."""
    step = max(1, -(-len(l0) // _BINS))  # whole numbers of features in a bar
    edges = np.arange(0, len(l0) + step, step)
    counts = np.add.reduceat(l0, edges[:-1])
    shown = [f"{a}" if step == 1 else f"{a} to {a + step - 1}" for a in edges[:-1]]
    bars = {
        "type": "bar", "x": (edges[:-1] + edges[1:] - 1) / 2, "y": counts, "width": np.full(len(counts), step * 0.94),
        "marker": {"color": ACCENT, "line": {"width": 0}}, "customdata": shown,
        "hovertemplate": "%{y:,} tokens with %{customdata} active features<extra></extra>",
    }  # fmt: skip
    return make_figure(
        [bars],
        height=_HEIGHT,
        xaxis={"range": [-0.5, edges[-1] + 1], "title": {"text": "active features on a token"}, "nticks": 8},
        yaxis={"title": {"text": "tokens"}, **COUNTS, "nticks": 5},
    )


def norm_bins(norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(edges, counts) of the lengths of decoder rows; where all are as good as equal, a range around them."""
    low, high = float(norms.min()), float(norms.max())
    room = max(0.05 * high - (high - low), 0.0) / 2
    edges = np.linspace(low - room, max(high + room, 1e-9), 41)
    return edges, np.histogram(norms, edges)[0]


def norm_histogram(norms: np.ndarray) -> go.Figure:
    """How many features have a decoder row of which length."""
    edges, counts = norm_bins(norms)
    return _histogram(
        edges, counts, axis="length of the decoder row", words="%{y:,} features of length %{customdata[0]:.3f} to %{customdata[1]:.3f}"
    )


def cosine_edges(nearest: np.ndarray) -> np.ndarray:
    """Edges of fifty equal bins from where both the features and chance begin to 1."""
    return np.linspace(min(0.0, float(np.floor(nearest.min() * 20) / 20)), 1.0, 51)


def nearest_histogram(nearest: np.ndarray, chance: np.ndarray) -> go.Figure:
    """Cosine of each feature with its nearest one (bars) beside what as many random directions give: `chance` in the same bins (line)."""
    edges = cosine_edges(nearest)
    counts = np.histogram(np.clip(nearest, edges[0], 1.0), edges)[0]
    line = {
        "type": "scatter", "x": np.repeat(edges, 2)[1:-1], "y": np.repeat(chance, 2), "mode": "lines", "name": "random directions",
        "line": {"color": COOL, "width": 2, "shape": "linear"}, "hoverinfo": "skip",
    }  # fmt: skip
    return _histogram(
        edges,
        counts,
        axis="cosine with the nearest other feature",
        words="%{y:,} features whose nearest is at %{customdata[0]:.2f} to %{customdata[1]:.2f}",
        more=[line],
        name="features",
    )


def loss_bars(names: Sequence[str], keys: Sequence[str], losses: Sequence[float]) -> go.Figure:
    """Cross entropies as horizontal bars, the first on top."""
    texts = [axis_text(name) for name in names]
    bars = {
        "type": "bar", "x": np.asarray(losses, float), "y": np.arange(len(texts)), "orientation": "h",
        "marker": {"color": [_LOSS_COLOURS[key] for key in keys]}, "text": [f"{loss:.3f}" for loss in losses], "customdata": texts,
        "hovertemplate": "%{customdata}: %{x:.3f} nats a token<extra></extra>", **NUMBER,
    }  # fmt: skip
    return make_figure(
        [bars],
        height=30 * len(texts) + 24,
        xaxis={"visible": False, "rangemode": "tozero"},
        yaxis=row_axis(texts),
    )


def _histogram(edges: np.ndarray, counts: np.ndarray, *, axis: str, words: str, more: Sequence[dict] = (), name: str = "") -> go.Figure:
    bars = {
        "type": "bar", "x": (edges[:-1] + edges[1:]) / 2, "y": counts, "width": np.diff(edges), "name": name,
        "marker": {"color": ACCENT, "line": {"width": 0}}, "customdata": np.stack([edges[:-1], edges[1:]], axis=1).tolist(),
        "hovertemplate": words + "<extra></extra>",
    }  # fmt: skip
    legend = {"showlegend": True, "legend": {"orientation": "h", "x": 0, "y": 1.0, "xanchor": "left", "yanchor": "bottom"}} if more else {}
    return make_figure(
        [bars, *more],
        height=_HEIGHT + (24 if more else 0),
        top=30 if more else 6,
        bargap=0.04,
        xaxis={"range": [float(edges[0]), float(edges[-1])], "title": {"text": axis}, "nticks": 7, "gridcolor": GRID},
        yaxis={"title": {"text": "features"}, **COUNTS, "nticks": 5},
        **legend,
    )
