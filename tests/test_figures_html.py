"""Charts as HTML against the arrays they are made of: heights, places and words; and no string from outside is read as markup."""

import re
from html import unescape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_explore.drawing import figures_html
from sae_explore.strength import BANDS, band_of, band_of_bins, band_shares
from sae_explore.types import LensToken

HOSTILE = ["<b>bold</b>", "<a href='javascript:x'>l</a>", "&lt;", "a\nb", '"onload="x', " the", "   "]
TAG = r"<(?!/?(?:div|span)[ >])"


def widths(chart: str) -> list[float]:
    return [float(w) for w in re.findall(r'class="bar" style="width:([\d.]+)%"', chart)]


def heights(chart: str) -> list[float]:
    return [float(h) for h in re.findall(r'style="--y:([\d.]+)%"', chart)]


def lines(chart: str, kind: str = "") -> list[float]:
    """Places of the vertical lines, as shares of the width."""
    return [float(x) / 100 for x in re.findall(rf'class="line {kind}" style="left:([\d.]+)%"', chart)]


# ---- bars --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_lens_bars_are_as_long_as_their_logits_and_end_before_the_numbers(sign):
    tokens = [LensToken(i, text, sign * (2.0 - 0.25 * i)) for i, text in enumerate(HOSTILE)]
    chart = figures_html.lens_bars(tokens, baseline=sign * 0.7, alt="Promotes: all")
    logits = np.array([abs(t.logit) for t in tokens])
    assert np.array(widths(chart)) / widths(chart)[0] == pytest.approx(logits / logits[0], abs=1e-3)
    assert max(widths(chart)) < 100
    assert lines(chart)[0] == pytest.approx(0.7 / 2.0 * widths(chart)[0] / 100, abs=1e-3)
    assert [unescape(name) for name in re.findall(r'class="name"[^>]*>([^<]*)<', chart)] == [figures_html.short_name(t) for t in HOSTILE]
    assert re.findall(r'class="(?:in|out)">([^<]*)<', chart) == [f"{t.logit:+.2f}" for t in tokens]
    assert ("cool" in chart.split(">")[0]) == (sign < 0)
    assert not re.search(TAG, chart)


def test_a_bar_too_short_for_its_number_has_it_beside():
    chart = figures_html.lens_bars([LensToken(0, "a", 2.0), LensToken(1, "b", 0.1)], baseline=0.5, alt="")
    assert re.findall(r'class="(in|out)"', chart) == ["in", "out"]


def test_category_bars_hold_shares_and_marks():
    chart = figures_html.category_bars(["arts", "<i>x</i>"], [0.75, 0.25], [0.5, 0.5], alt="")
    first, second = widths(chart)
    assert first == pytest.approx(3 * second, abs=0.02)
    marks = [float(x) for x in re.findall(r'class="mark" style="left:([\d.]+)%"', chart)]
    assert marks == pytest.approx([first * 0.5 / 0.75] * 2, abs=0.02)
    assert "arts: 75.0% of this feature's firings, 50.0% of the corpus" in unescape(chart)
    ticks = re.findall(r'left:([\d.]+)%">(\d+)%<', chart)
    assert [word for _, word in ticks] == ["0", "20", "40", "60"]
    assert [float(x) for x, _ in ticks] == pytest.approx([first * t / 75 for t in (0, 20, 40, 60)], abs=0.02)
    assert not re.search(TAG, chart)


@given(st.text(max_size=60))
def test_a_name_beside_a_bar_is_short_and_keeps_both_ends(text):
    whole, shown = figures_html.dotted(text), figures_html.short_name(text)
    assert len(shown) <= 22
    assert shown == whole if len(whole) <= 22 else (whole.startswith(shown[:16]) and whole.endswith(shown[17:]) and shown[16] == "…")


# ---- histograms --------------------------------------------------------------------------------------------------------


def test_activation_histogram_holds_the_counts_and_the_bands():
    values = np.random.default_rng(0).gamma(2, 1, 500)
    edges = np.linspace(0, values.max(), 41)
    counts = np.histogram(values, edges)[0]
    chart = figures_html.activation_histogram(edges, counts, alt="Histogram of activations")
    assert [int(n) for n in re.findall(r'data-tip="(\d+) tokens', chart)] == counts.tolist()
    assert np.array(heights(chart)) / max(heights(chart)) == pytest.approx(counts / counts.max(), abs=1e-3)
    assert max(heights(chart)) < 100
    assert lines(chart, "dot") == pytest.approx([0.05, 0.25, 0.5])
    assert not lines(chart, "here")
    bands = [BANDS[1 + int(b)][0] for b in re.findall(r'<span class="b(\d)"', chart)]
    assert bands == [band_of((i + 0.5) / 40) for i in range(40)]


@pytest.mark.parametrize("bins", [20, 40])
def test_band_of_a_bin_is_that_of_the_values_in_it(bins):
    names = [BANDS[i + 1][0] for i in band_of_bins(bins)]
    assert names == [band_of((i + 0.5) / bins) for i in range(bins)]


def test_band_shares_by_brute_force():
    values = np.random.default_rng(1).uniform(0, 1, 2_000)
    values[0] = 1.0
    counts = np.histogram(values, np.linspace(0, 1, 41))[0]
    brute = {name: float(np.mean([band_of(v) == name for v in values])) for name, _ in BANDS[1:]}
    assert band_shares(counts) == pytest.approx(brute)
    assert sum(band_shares(counts).values()) == pytest.approx(1)


@pytest.mark.parametrize(("here", "end", "side"), [(1.0, 4.0, "left"), (3.9, 4.017, "right"), (8.0, 8.24, "right")])
def test_the_value_on_the_current_text_is_marked(here, end, side):
    chart = figures_html.activation_histogram(np.linspace(0, 4, 41), np.ones(40), here=here, alt="")
    assert lines(chart, "here") == pytest.approx([here / end], abs=1e-4)
    assert f'<span class="word {side}" style="left:{100 * here / end:.2f}%">this text {here:.2f}</span>' in chart
    assert lines(chart, "dot") == pytest.approx([0.2 / end, 1.0 / end, 2.0 / end], abs=1e-4)
    assert f"--to:{100 * (1 - 4 / end):.2f}%" in chart  # the bars end at the maximum, the axis where the mark is


def test_logits_of_the_vocabulary_beside_chance_and_a_token():
    counts = np.array([1, 30, 1000, 0])
    chart = figures_html.lens_histogram(np.linspace(-2, 2, 5), counts, baseline=1.5, here=(-0.5, " <b>x"), alt="")
    one, thirty, thousand, none = heights(chart)
    assert none == 0
    assert (thirty - one) / (thousand - one) == pytest.approx(np.log10(30) / 3, abs=1e-3)  # a log scale
    assert re.findall(r'<span class="(cool|)" style="--y', chart) == ["cool", "cool", "", ""]
    end = 1.03 * 2
    assert lines(chart) == pytest.approx([(x + end) / (2 * end) for x in (-1.5, 1.5)], abs=1e-4)
    assert lines(chart, "here") == pytest.approx([(-0.5 + end) / (2 * end)], abs=1e-4)
    assert ">·&lt;b&gt;x<" in chart
    scale = {word: float(top) for top, word in re.findall(r'top:([\d.]+)%">([\d,]+)<', chart)}
    assert list(scale) == ["1", "10", "100", "1,000"]
    assert scale["1,000"] == pytest.approx(100 - thousand, abs=0.01)
    assert scale["1"] == pytest.approx(100 - one, abs=0.01)


@pytest.mark.parametrize("chart", [
    figures_html.lens_bars([], baseline=0.0, alt=""),
    figures_html.category_bars([], [], [], alt=""),
    figures_html.activation_histogram(np.zeros(3), np.zeros(2), alt=""),
    figures_html.lens_histogram(np.zeros(3), np.zeros(2), baseline=0.0, alt=""),
])  # fmt: skip
def test_charts_of_nothing_are_drawn(chart):
    assert "nan" not in chart
    assert "inf" not in chart


def test_the_alternative_text_is_escaped():
    chart = figures_html.lens_bars([], baseline=1.0, alt='Promotes: "<b>')
    assert 'aria-label="Promotes: &quot;&lt;b&gt;"' in chart


@given(st.floats(-1e4, 1e4), st.floats(0.01, 1e4), st.integers(2, 9))
def test_ticks_are_round_within_the_axis_and_few(low, length, most):
    ticks = np.array(figures_html.nice_ticks(low, low + length, most))
    assert len(ticks) <= most
    assert np.all((ticks >= low - 1e-6 * length) & (ticks <= low + length * (1 + 1e-6)))
    if len(ticks) > 1:
        step = np.diff(ticks)
        assert step == pytest.approx(np.full(len(step), step[0]), rel=1e-6, abs=1e-9)
        assert f"{step[0]:e}"[0] in "1259"  # 9: 0.99999… of a power of ten


def test_ticks_of_counts_are_whole():
    assert figures_html.nice_ticks(0, 2.1, 5, whole=True) == [0, 1, 2]
    assert figures_html.nice_ticks(0, 7.35, 5, whole=True) == [0, 2, 4, 6]
