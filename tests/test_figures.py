"""Figures against brute force: what is drawn is what the arrays hold, and no string from outside is read as markup."""

import html

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_explore.drawing import figures
from sae_explore.drawing.figures_effects import probability_bars
from sae_explore.strength import band_of
from sae_explore.types import LensToken
from sae_explore.wording import band_range, confidence_words, count_of, density_words, percent

HOSTILE = ["<b>bold</b>", "<a href='javascript:x'>l</a>", "&lt;", "a\nb", "\t", " the", "   ", "<br>"]


def bars(figure):
    return next(trace for trace in figure.data if trace.type == "bar")


def lines(figure):
    """Places of the vertical lines."""
    return [shape.x0 for shape in figure.layout.shapes if shape.type == "line"]


# ---- text --------------------------------------------------------------------------------------------------------------


@given(st.text(max_size=20))
def test_axis_text_leaves_no_markup(text):
    shown = figures.axis_text(text)
    assert "<" not in shown
    assert ">" not in shown
    assert "\n" not in shown


def test_axis_text_by_hand():
    assert [figures.axis_text(t) for t in ("<b>", "a&b", " cat", "\n", "  ")] == ["&lt;b&gt;", "a&amp;b", "·cat", "↵", "··"]


@given(st.text(max_size=60))
def test_a_name_on_an_axis_is_short_and_keeps_both_ends(text):
    whole, shown = (html.unescape(f(text)) for f in (figures.axis_text, figures.axis_name))
    assert len(shown) <= 22
    assert shown == whole if len(whole) <= 22 else (whole.startswith(shown[:16]) and whole.endswith(shown[17:]) and shown[16] == "…")


# ---- lens --------------------------------------------------------------------------------------------------------------


def test_lens_bars_hold_the_list_in_order():
    tokens = [LensToken(i, text, 2.0 - 0.1 * i) for i, text in enumerate(HOSTILE)]
    figure = figures.lens_bars(tokens, baseline=0.7)
    assert bars(figure).x.tolist() == [t.logit for t in tokens]
    assert bars(figure).y.tolist() == list(range(len(tokens)))
    assert list(figure.layout.yaxis.ticktext) == [figures.axis_name(t) for t in HOSTILE]
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]  # the first on top
    assert lines(figure) == [0.7]
    assert list(bars(figure).text)[:2] == ["+2.00", "+1.90"]
    assert figure.layout.xaxis.range[1] >= 2.0


def test_lens_bars_keep_equal_tokens_apart():
    figure = figures.lens_bars([LensToken(1, "a", 2.0), LensToken(2, "a", 1.0)])
    assert len(set(bars(figure).y)) == 2
    assert not lines(figure)


def test_suppressed_tokens_grow_to_the_right_of_zero():
    figure = figures.lens_bars([LensToken(1, "a", -2.0), LensToken(2, "b", -1.0)], baseline=-2.5)
    assert figure.layout.xaxis.range[0] == 0
    assert figure.layout.xaxis.range[1] <= -2.5
    assert bars(figure).marker.color == figures.COOL


def test_charts_side_by_side_share_their_scale():
    ends = [figures.lens_bars([LensToken(1, "a", v)], end=3.0).layout.xaxis.range[1] for v in (0.5, 3.0)]
    assert ends[0] == ends[1]


# ---- histograms --------------------------------------------------------------------------------------------------------


def test_density_histogram_counts_every_live_feature_once():
    density = np.r_[np.zeros(7), 10 ** np.random.default_rng(2).uniform(-5, 0, 300), 1.0]
    figure = figures.density_histogram(density, low=1e-3, high=1e-1, dense_above=0.1)
    assert sum(bars(figure).y) == 301
    box = next(shape for shape in figure.layout.shapes if shape.type == "rect")
    assert (box.x0, box.x1) == pytest.approx((-3, -1))
    assert lines(figure) == pytest.approx([-1])
    for low, high, count in zip(*(np.asarray(bars(figure).customdata).T), bars(figure).y, strict=True):
        assert count == np.sum(
            (density >= low * (1 - 1e-12)) & (density < high * (1 - 1e-12) if high < 1 else density >= low * (1 - 1e-12))
        )


def test_density_histogram_of_a_dead_sae_is_empty():
    assert sum(bars(figures.density_histogram(np.zeros(5))).y) == 0


def test_range_without_a_lower_limit_is_shaded_from_the_start():
    figure = figures.density_histogram(np.array([1e-4, 1e-2]), low=0.0, high=1e-2)
    box = next(shape for shape in figure.layout.shapes if shape.type == "rect")
    assert (box.x0, box.x1) == pytest.approx((figure.layout.xaxis.range[0], -2))


# ---- similarity, strength ----------------------------------------------------------------------------------------------


def test_similarity_heatmap_shows_the_numbers():
    rows = np.random.default_rng(3).normal(size=(4, 8))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    matrix = unit @ unit.T
    figure = figures.similarity_heatmap(matrix, list("abcd"))
    assert np.allclose(figure.data[0].z, matrix, atol=1e-4)
    assert {(a.x, a.y): a.text for a in figure.layout.annotations} == {(j, i): f"{matrix[i, j]:.2f}" for i in range(4) for j in range(4)}
    assert (figure.data[0].zmin, figure.data[0].zmax) == (-1, 1)


def test_strength_bars_and_their_baseline():
    figure = figures.strength_bars(["1", "2"], [0.3, 0.1], baseline=0.2)
    assert bars(figure).x.tolist() == [0.3, 0.1]
    assert lines(figure) == [0.2]


@pytest.mark.parametrize(
    "figure",
    [
        figures.lens_bars([LensToken(0, "a", 1.0)]),
        probability_bars(["a"], np.array([0.1]), np.array([0.2]), end=0.2, up=True),
        figures.density_histogram(np.array([0.1])),
        figures.similarity_heatmap(np.eye(2), ["1", "2"]),
        figures.strength_bars(["1"], [1.0], baseline=0.5),
    ],
)
def test_every_figure_is_transparent_of_known_height_and_valid(figure):
    go.Figure(figure.to_dict())  # plotly's own check, which the app leaves out
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert figure.layout.height > 0


# ---- words -------------------------------------------------------------------------------------------------------------


def test_numbers_in_words():
    assert [percent(s).replace("\u00a0", " ") for s in (0, 0.45, 0.0325, 0.0022, 0.000043, 1)] == [
        "0 %",
        "45 %",
        "3.2 %",
        "0.22 %",
        "0.0043 %",
        "100 %",
    ]
    assert [density_words(d) for d in (0, 1 / 450, 1 / 3, 1 / 123456)] == [
        "on no token",
        "1 in 450 tokens",
        "1 in 3.0 tokens",
        "1 in 123,456 tokens",
    ]
    assert [count_of(n, "token") for n in (0, 1, 2000)] == ["0 tokens", "1 token", "2,000 tokens"]
    assert [confidence_words(c) for c in (1, 0.8, 0.79, 0.5, 0.3, 0)] == [
        "clear",
        "clear",
        "fairly clear",
        "fairly clear",
        "rough",
        "unclear",
    ]


def test_band_ranges_of_fifths():
    ranges = [band_range(i / 5, (i + 1) / 5) for i in range(5)]
    assert ranges == ["trace to weak", "weak to moderate", "moderate to strong", "strong", "strong"]


@given(st.floats(0, 0.99), st.floats(0.001, 1))
def test_band_range_names_the_bands_at_both_ends(low, width):
    high = min(1.0, low + width)
    words = band_range(low, high)
    assert band_of(high) in words
    assert band_of(low + 1e-9) in words
