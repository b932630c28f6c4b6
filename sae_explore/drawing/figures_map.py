"""The map of the dictionary as a plotly figure: a point a feature, coloured, with marks over it. Pure, as in `figures`.

Each point of the map carries its feature's number as `customdata`, which a click brings back (see `picked_features`). Marks carry
nothing and are passed over by the pointer.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from sae_explore.drawing.figures import ACCENT, GREY, axis_text, make_figure, one_in
from sae_explore.drawing.map_colours import OTHERS, Colours
from sae_explore.wording import percent

CONFIG = {
    "displayModeBar": True,
    "displaylogo": False,
    "scrollZoom": True,
    "modeBarButtonsToRemove": ["zoom2d", "autoScale2d", "toImage"],
}
HEIGHT = 620  # pixels
_SCALE = [[0.0, "#3F78BA"], [0.35, "#7E9CB4"], [0.6, "#C9A37A"], [0.8, "#EE8433"], [1.0, "#D9480F"]]  # seen on light and dark pages alike
_PALETTE = (
    "#D9590D", "#3B6EA8", "#5E8C4A", "#8B6BB1", "#B8860B", "#2E9C9C",
    "#C94F7C", "#7A9E1F", "#6C7BD9", "#A0603A", "#3DA35D", "#C05FC0",
)  # fmt: skip
_TEXT_MARK = "#8B5CF6"
_FAINT = 0.1  # opacity of points that are not meant, while others are
_LINE = 46  # characters of a label on one line under the pointer


class Points(NamedTuple):
    """What of the map stays the same whatever is chosen, (d_sae, ...) arrays."""

    xy: np.ndarray  # (d_sae, 2) float32
    said: np.ndarray  # what stands under the pointer, for plotly, escaped
    density: np.ndarray  # share of tokens
    dead: np.ndarray  # bool


def points_of(xy: np.ndarray, labels: Sequence[str], density: np.ndarray) -> Points:
    """Points from places (d_sae, 2), labels as they are, and densities."""
    said = [_said(label, share) for label, share in zip(labels, density.tolist(), strict=True)]
    return Points(np.asarray(xy, np.float32), np.asarray(said, object), density, density <= 0)


def renamed(points: Points, labels: Mapping[int, str]) -> Points:
    """The points with other labels for some features."""
    said = points.said.copy()
    for feature, label in labels.items():
        said[feature] = _said(label, float(points.density[feature]))
    return points._replace(said=said)


def _said(label: str, density: float) -> str:
    """A label in lines that fit on a phone, and how often the feature fires."""
    lines = textwrap.wrap(label, _LINE) if len(label) > _LINE else [label]
    return "<br>".join([*map(axis_text, lines), f"fires on {percent(density)} of tokens"])


def dictionary_map(
    points: Points,
    colours: Colours,
    *,
    meant: np.ndarray | None = None,
    on_text: Sequence[int] = (),
    chosen: int | None = None,
) -> go.Figure:
    """All features. `meant` (d_sae,) bool: the others step back; those `on_text` are ringed, and the `chosen` one more strongly."""
    traces = _cloud(points, points.dead, meant, name="dead", opacity=0.25, color=GREY)
    traces += _by_number(points, colours, meant) if colours.kinds is None else _by_kind(points, colours, meant)
    if len(on_text):
        traces.append(_rings(points, on_text, 13, 2, _TEXT_MARK, name="fires on the current text"))
    if chosen is not None:
        traces.append(_rings(points, [chosen], 21, 4, ACCENT, name=f"feature {chosen}"))
    axis = {"visible": False, "fixedrange": False, "range": [-1.06, 1.06]}
    return make_figure(
        traces,
        height=HEIGHT,
        xaxis=axis,
        yaxis=axis,
        showlegend=any(trace["showlegend"] for trace in traces),
        legend={"orientation": "h", "x": 0, "y": -0.01, "xanchor": "left", "yanchor": "top", "itemsizing": "constant"},
        dragmode="pan",
        clickmode="event+select",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": ACCENT},
    )


def _by_number(points: Points, colours: Colours, meant: np.ndarray | None) -> list[dict]:
    known = ~points.dead & np.isfinite(colours.values)
    traces = _cloud(points, ~points.dead & ~known, meant, name="not known", opacity=0.5, color=GREY)
    if not known.any():
        return traces
    values = colours.values[known]
    low, high = (float(values.min()), float(values.max())) if colours.log else (0.0, 1.0)
    scale = {"colorscale": _SCALE, "cmin": low, "cmax": max(high, low + 1e-6)}
    bar = {"thickness": 10, "outlinewidth": 0, "orientation": "h", "x": 0.5, "y": 1, "xanchor": "center", "yanchor": "bottom", "len": 0.9,
           "tickangle": 0, "tickfont": {"size": 10}}  # fmt: skip
    if colours.log:
        ticks = np.arange(np.ceil(low), np.floor(high) + 1) if np.floor(high) >= np.ceil(low) else np.asarray([low, high])
        bar |= {"tickvals": ticks, "ticktext": [one_in(t) if colours.shares else _plain_number(10**t) for t in ticks]}
    found = _cloud(points, known, meant, name=axis_text(colours.title), color=colours.values.astype(np.float32), **scale)
    found[-1]["marker"] |= {"showscale": True, "colorbar": bar}
    return traces + found


def _by_kind(points: Points, colours: Colours, meant: np.ndarray | None) -> list[dict]:
    traces = []
    for i, name in enumerate(colours.names):
        colour = GREY if name == OTHERS else _PALETTE[i % len(_PALETTE)]
        here = ~points.dead & (colours.kinds == i)
        traces += _cloud(points, here, meant, name=axis_text(name), color=colour)
        if here.any():
            traces.append(_key(axis_text(name), colour))
    return traces + _cloud(points, ~points.dead & (colours.kinds < 0), meant, name="not known", color=GREY)


def _key(name: str, colour: str) -> dict:
    """The entry of a kind in the legend, in its full colour."""
    return {
        "type": "scattergl", "mode": "markers", "x": [None], "y": [None], "hoverinfo": "skip", "marker": {"color": colour, "size": 8},
        "name": name, "legendgroup": name, "showlegend": True,
    }  # fmt: skip


def _cloud(points: Points, here: np.ndarray, meant: np.ndarray | None, *, name: str, opacity: float = 0.85, **marker) -> list[dict]:
    """The features of a mask, those that are meant in front in a trace of their own. A `color` array is of all features."""
    size = _size(len(points.xy))
    parts, traces = [(here, opacity, size, 0.4 * opacity)], []  # mask, opacity, pixels, opacity while others are selected
    if meant is not None:
        parts = [(here & ~meant, _FAINT, size, _FAINT), (here & meant, 1.0, size + 3, 0.7)]
    for mask, shown, pixels, unselected in parts:
        if not (at := np.flatnonzero(mask)).size:
            continue
        colour = marker["color"][at] if isinstance(marker["color"], np.ndarray) else marker["color"]
        traces.append(
            {
                "type": "scattergl",
                "mode": "markers",
                "x": points.xy[at, 0],
                "y": points.xy[at, 1],
                "marker": {**marker, "color": colour, "opacity": shown, "size": pixels, "line": {"width": 0}},
                "selected": {"marker": {"opacity": 1, "size": pixels + 6}},
                "unselected": {"marker": {"opacity": unselected}},
                "customdata": at.astype(np.int32),
                "text": points.said[at],
                "hovertemplate": "feature %{customdata}<br>%{text}<extra></extra>",
                "name": name,
                "legendgroup": name,
                "showlegend": False,
            }
        )
    return traces


def _rings(points: Points, features: Sequence[int], size: float, width: float, colour: str, *, name: str = "") -> dict:
    """Circles around features, in the legend where they have a name."""
    at = np.asarray(features, np.int64)
    return {
        "type": "scattergl", "mode": "markers", "x": points.xy[at, 0], "y": points.xy[at, 1], "hoverinfo": "skip",
        "marker": {"symbol": "circle-open", "size": size, "color": colour, "line": {"width": width, "color": colour}},
        "unselected": {"marker": {"opacity": 1}}, "name": name, "showlegend": bool(name),
    }  # fmt: skip


def _size(n: int) -> float:
    """Pixels of a point: the more there are, the smaller."""
    return 9.0 if n < 500 else 6.0 if n < 3_000 else 4.5 if n < 12_000 else 3.5


def _plain_number(value: float) -> str:
    """0.0001 to 1,000 without an exponent."""
    return f"{value:,.0f}" if value >= 1 else f"{value:.6f}".rstrip("0")


def picked_features(selection: object, d_sae: int) -> list[int]:
    """Features of a selection that the browser has sent, in its order; what is no feature of this dictionary is left out."""
    found = []
    for point in selection.get("points", ()) if hasattr(selection, "get") else ():
        number = point.get("customdata") if hasattr(point, "get") else None
        if type(number) is int and 0 <= number < d_sae:
            found.append(number)
    return list(dict.fromkeys(found))
