"""Driving the app with Streamlit's AppTest, from its entry point, and reading what it shows."""

import base64
import re
from pathlib import Path

import numpy as np
import plotly.io
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash

APP = str(Path(__file__).resolve().parents[1] / "streamlit_app.py")


def open_page(name: str, bundle: str = "tiny", **params: str) -> AppTest:
    at = AppTest.from_file(APP, default_timeout=20)
    at._page_hash = calc_hash(name)  # the pages are functions, and `switch_page` knows files only
    for key, value in {"bundle": bundle, **params}.items():
        at.query_params[key] = value
    return run(at)


def run(at) -> AppTest:
    at = at.run()
    assert not at.exception
    return at


def address(at: AppTest) -> dict[str, str]:
    """The query parameters of the page's address."""
    found = {key: at.query_params[key] for key in at.query_params}
    return {key: value if isinstance(value, str) else value[-1] for key, value in found.items()}


def figure(at: AppTest, alt: str):
    """The chart whose description begins so."""
    found = [chart.proto.spec for chart in at.get("plotly_chart") if chart.proto.alt.startswith(alt)]
    assert len(found) == 1, [chart.proto.alt for chart in at.get("plotly_chart")]
    return plotly.io.from_json(found[0])


def drawn(at: AppTest, alt: str) -> str:
    """The same for a chart made of HTML."""
    found = [block.proto.body for block in at.get("html") if f'aria-label="{alt}' in block.proto.body]
    assert len(found) == 1, len(found)
    return found[0]


def bins_of(chart: str) -> list[int]:
    """The counts of a histogram made of HTML, as its bars tell them."""
    return [int(n.replace(",", "")) for n in re.findall(r'data-tip="([\d,]+) tokens between', chart)]


def numbers(drawn) -> list:
    """A chart's numbers, which travel as base64."""
    if isinstance(drawn, dict):
        shape = [int(n) for n in str(drawn.get("shape", "-1")).split(",")]
        drawn = np.frombuffer(base64.b64decode(drawn["bdata"]), drawn["dtype"]).reshape(shape)
    return np.asarray(drawn).tolist()


def select_row(at: AppTest, row: int) -> AppTest:
    """Select a row of the table of all features."""
    key = re.search(r"browse_table_\d+", at.dataframe[0].proto.id)[0]
    at.session_state[key] = {"selection": {"rows": [row], "columns": [], "cells": []}}
    return run(at)


def values_of(at: AppTest) -> list[float]:
    """Peak activations of the examples on the page."""
    return [float(v) for block in at.get("html") for v in re.findall(r'<div class="v">([\d.]+)</div>', block.proto.body)]


def texts_of(at: AppTest) -> str:
    """All that is shown as markdown."""
    return "\n".join(
        e.value
        for kind in ("markdown", "caption", "title", "header", "subheader", "info", "warning", "error", "success")
        for e in getattr(at, kind)
    )


def unescaped(text: str) -> str:
    """Markdown escapes taken away."""
    return re.sub(r"\\(.)", r"\1", text).replace("\u2060", "").replace("\u00a0", " ")
