"""Charts of changed predictions hold the arrays, on one scale, and read no token as markup."""

import numpy as np
import pytest

from sae_explore.drawing.figures_effects import probability_bars

TOKENS = [" the", "<b>bold</b>", " the", "&lt;"]
BEFORE, AFTER = np.array([0.2, 0.05, 0.0004, 0.0]), np.array([0.4, 0.1, 0.002, 0.0001])


def test_two_bars_a_token_hold_the_probabilities():
    figure = probability_bars(TOKENS, BEFORE, AFTER, end=0.5, up=True)
    without, after = figure.data
    np.testing.assert_array_equal(without.x, BEFORE)
    np.testing.assert_array_equal(after.x, AFTER)
    assert list(without.y) == list(after.y) == [0, 1, 2, 3]  # by number: equal tokens stay apart
    assert list(without.text) == ["20\u00a0%", "5.0\u00a0%", "0.040\u00a0%", "0\u00a0%"]
    assert list(figure.layout.yaxis.ticktext) == ["·the", "&lt;b&gt;bold&lt;/b&gt;", "·the", "&amp;lt;"]
    assert list(without.customdata) == list(after.customdata) == list(figure.layout.yaxis.ticktext)  # under the pointer
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]  # the first on top
    assert figure.layout.xaxis.range[0] == 0
    assert figure.layout.xaxis.range[1] > 0.5


@pytest.mark.parametrize("n", [0, 1, 4])
def test_the_height_grows_with_the_tokens(n):
    heights = [probability_bars(TOKENS[:k], BEFORE[:k], AFTER[:k], end=0.0, up=False).layout.height for k in (n, n + 1)]
    assert heights[1] >= heights[0] > 60


def test_gains_and_losses_differ_in_colour():
    gain, loss = (probability_bars(TOKENS, BEFORE, AFTER, end=1.0, up=up).data for up in (True, False))
    assert gain[0].marker.color == loss[0].marker.color
    assert gain[1].marker.color != loss[1].marker.color
