"""Warnings about a poor SAE: said with its figures, and only then."""

import pytest

from sae_explore.building.diagnosis import warnings_for
from sae_explore.strength import BANDS, band_of

GOOD = {
    "explained_variance": 0.8,
    "tokens_train": 50_000,
    "latents": 1_000,
    "k": 32,
    "dead": 10,
    "counted_tokens": 9_000,
    "kinds": {"token": 690, "mixed": 300, "dead": 10},
    "l0": 31.9,
}


def test_nothing_is_said_where_all_is_well():
    assert warnings_for(**GOOD) == []
    assert warnings_for(**GOOD | {"tokens_train": None, "k": None, "l0": 80.0}) == []
    assert warnings_for(**GOOD | {"l0": 47.0, "architecture": "batchtopk", "d_in": 768}) == []


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            {"explained_variance": 0.4999},
            ("explained variance is 0.50, below 0.5", "1,000 latents, k 32, trained on 50,000 tokens", "--epochs"),
        ),
        ({"explained_variance": -2.5, "tokens_train": None}, ("explained variance is -2.50", "not trained here", "centring")),
        ({"dead": 201}, ("201 of 1,000 latents (20%) never fire on the 9,000 tokens", "fewer --latents")),
        ({"kinds": {"mixed": 700}}, ("71% of the live features show no clear pattern", "smaller --k", "later layer")),
        ({"explained_variance": float("nan")}, ("explained variance could not be measured", "give more texts")),
        ({"l0": 32.1}, ("32.1 latents are active on a token, more than k = 32",)),
        ({"l0": 49.0, "architecture": "batchtopk"}, ("49.0 latents are active on a token, more than k = 32",)),
        ({"l0": 769.0, "k": None, "architecture": "standard", "d_in": 768}, ("769 latents", "(768)", "this standard SAE", "TopK")),
    ],
)
def test_each_trouble_is_said_with_its_figures(change, parts):
    (warning,) = warnings_for(**GOOD | change)
    for part in parts:
        assert part in warning


@pytest.mark.parametrize(
    "change", [{"explained_variance": 0.5}, {"dead": 200}, {"kinds": {"mixed": 594}}, {"l0": 32.0}, {"dead": 0, "kinds": {}}]
)
def test_limits_themselves_are_well(change):
    assert warnings_for(**GOOD | change) == []


def test_all_troubles_at_once():
    assert len(warnings_for(**GOOD | {"explained_variance": 0.1, "dead": 1_000, "kinds": {"mixed": 3}, "l0": 64.0})) == 4


@pytest.mark.parametrize(
    ("share", "band"),
    [
        (-1, "absent"),
        (0, "absent"),
        (1e-9, "trace"),
        (0.0499, "trace"),
        (0.05, "weak"),
        (0.2499, "weak"),
        (0.25, "moderate"),
        (0.4999, "moderate"),
        (0.5, "strong"),
        (1, "strong"),
        (7, "strong"),
    ],
)
def test_bands_are_shares_of_a_features_own_maximum(share, band):
    assert band_of(share) == band
    assert band in dict(BANDS)
