"""Numbers about features against brute force over a small random store."""

import numpy as np
import pytest

from sae_explore.activations import feature_stats
from sae_explore.activations.activation_store import ActivationStore, StoreWriter
from sae_explore.activations.feature_stats import (
    COACTIVE,
    EXAMPLE_INTERVALS,
    HISTOGRAM_BINS,
    NONE,
    PER_INTERVAL,
    RANDOM_EXAMPLES,
    TOP_EXAMPLES,
    choose_examples,
    coactivation,
    group_counts,
    histograms,
    moments,
)

D, UNIT = 16, 10


def store_of(folder, dense: np.ndarray):
    """(store, totals) of a dense (tokens, features) array."""
    writer = StoreWriter(folder / "work", dense.shape[1])
    order = np.argsort(-dense, axis=1, kind="stable")
    features = [f for row, at in zip(dense, order, strict=True) for f in at if row[f] > 0]
    values = [row[f] for row, at in zip(dense, order, strict=True) for f in at if row[f] > 0]
    offsets = np.concatenate([[0], (dense > 0).sum(1).cumsum()])
    writer.write_part(0, offsets, np.array(features, np.int64), np.array(values, np.float32))
    totals = writer.finish(folder / "store")
    return ActivationStore(folder / "store", dense.shape[1]), totals


@pytest.fixture(scope="module")
def dense() -> np.ndarray:
    """400 tokens; feature 0 is dead, 1 fires once, 2 always; 3 and 4 fire together, 5 never with them; the rest at random."""
    rng = np.random.default_rng(0)
    out = np.where(rng.random((400, D)) < 0.2, rng.exponential(1, (400, D)) + 0.05, 0)
    out[:, 0] = out[:, 1] = 0
    out[77, 1] = 2.5
    out[:, 2] = 1 + rng.random(400)
    together = rng.random(400) < 0.15
    out[:, 3], out[:, 4], out[:, 5] = together * 1.5, together * (rng.random(400) < 0.9) * 3.0, ~together * (rng.random(400) < 0.3) * 1.0
    out[::23] = 0  # tokens on which nothing fires, as ignored ones
    return out.astype(np.float16).astype(np.float64)


@pytest.fixture(scope="module")
def made(dense, tmp_path_factory):
    return store_of(tmp_path_factory.mktemp("store"), dense)


@pytest.fixture(params=[1 << 20, 37])
def chunk(request, monkeypatch):
    monkeypatch.setattr(feature_stats, "_CHUNK", request.param)


def test_moments(dense, made):
    found = moments(made[1])
    for f in range(D):
        x = dense[:, f][dense[:, f] > 0]
        if not len(x):
            assert all(np.isnan(column[f]) for column in found)
            continue
        assert found.mean[f] == pytest.approx(x.mean())
        assert found.std[f] == pytest.approx(x.std(), abs=1e-9)
        shaped = x.std() > 1e-6
        z = (x - x.mean()) / x.std() if shaped else 0 * x
        assert found.skew[f] == pytest.approx((z**3).mean(), abs=1e-6)
        assert found.kurtosis[f] == pytest.approx((z**4).mean() - 3 if shaped else 0, abs=1e-6)


def test_histograms(dense, made, chunk):
    store, totals = made
    found = histograms(store, totals.max)
    assert found.sum(1).tolist() == totals.count.tolist()
    for f in range(D):
        x, top = dense[:, f][dense[:, f] > 0], dense[:, f].max()
        expected = [int(((x > top * b / HISTOGRAM_BINS) & (x <= top * (b + 1) / HISTOGRAM_BINS)).sum()) for b in range(HISTOGRAM_BINS)]
        assert np.abs(found[f] - expected).sum() <= 2  # a value on an edge may fall on either side
    assert found[1].tolist() == [0] * (HISTOGRAM_BINS - 1) + [1]


def test_group_counts(dense, made, chunk):
    group = np.random.default_rng(1).integers(0, 3, 400)
    expected = [[int(((dense[:, f] > 0) & (group == g)).sum()) for g in range(3)] for f in range(D)]
    assert group_counts(made[0], group, 3).tolist() == expected


# ---- examples ----------------------------------------------------------------------------------------------------------


def unit_peaks(dense, feature: int) -> dict[int, tuple[int, float]]:
    """unit -> (token, value) of its strongest token, the earliest among equals, where the feature fires in it at all."""
    found = {}
    for u in range(len(dense) // UNIT):
        values = dense[u * UNIT : (u + 1) * UNIT, feature]
        if values.max() > 0:
            found[u] = (u * UNIT + int(values.argmax()), float(values.max()))
    return found


def around(ids, token: int) -> tuple:
    """What stands around a token: 8 before and 3 after it, within its unit."""
    start, end = token - token % UNIT, token - token % UNIT + UNIT
    return token - max(start, token - 8), tuple(ids[max(start, token - 8) : min(end, token + 4)])


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    """Tokens in units of 10; every fourth unit repeats the one before it, so that there are examples to drop."""
    found = np.random.default_rng(2).integers(0, 50, 400)
    for u in range(3, 40, 4):
        found[u * UNIT : (u + 1) * UNIT] = found[(u - 1) * UNIT : u * UNIT]
    return found.astype(np.uint16)


@pytest.fixture(scope="module")
def repeated(dense, ids) -> np.ndarray:
    """The same for the activations: what repeats fires alike."""
    found = dense.copy()
    for u in range(3, 40, 4):
        found[u * UNIT : (u + 1) * UNIT] = found[(u - 1) * UNIT : u * UNIT]
    return found


@pytest.fixture(scope="module")
def examples(repeated, ids, tmp_path_factory):
    store, _ = store_of(tmp_path_factory.mktemp("store"), repeated)
    units = np.arange(400) // UNIT
    chosen = choose_examples(store, ids, units, seed=4)
    again = choose_examples(store, ids, units, seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(chosen, again, strict=True))
    assert not np.array_equal(chosen.random, choose_examples(store, ids, units, seed=5).random)
    return chosen


def present(tokens) -> list[int]:
    listed = [int(t) for t in tokens if t != NONE]
    assert all(t == NONE for t in tokens[len(listed) :])  # none after a gap
    return listed


@pytest.mark.parametrize("feature", range(D))
def test_top_examples(repeated, ids, examples, feature):
    """Units' peaks by falling value, ties in order; of examples that read alike the first; at most one a unit."""
    expected, seen = [], set()
    for token, _value in sorted(unit_peaks(repeated, feature).values(), key=lambda p: (-p[1], p[0])):
        if around(ids, token) not in seen:
            seen.add(around(ids, token))
            expected.append(token)
    assert present(examples.top[feature]) == expected[:TOP_EXAMPLES]


@pytest.mark.parametrize("feature", range(D))
def test_interval_examples_lie_in_their_own_peaks_interval(repeated, ids, examples, feature):
    peaks = dict(unit_peaks(repeated, feature).values())
    highest = max(peaks.values(), default=0)
    top = set(present(examples.top[feature]))
    for i in range(EXAMPLE_INTERVALS):
        listed = present(examples.interval[feature, i])
        among = [t for t, v in peaks.items() if highest * i / EXAMPLE_INTERVALS < v <= highest * (i + 1) / EXAMPLE_INTERVALS]
        assert set(listed) <= set(among)
        assert len({around(ids, t) for t in listed}) == len(listed)
        assert [peaks[t] for t in listed] == sorted((peaks[t] for t in listed), reverse=True)
        if len(set(among) - top) >= PER_INTERVAL:  # enough that are not shown above already
            assert not set(listed) & top
        assert listed or not among
    everywhere = [t for i in range(EXAMPLE_INTERVALS) for t in present(examples.interval[feature, i])]
    assert len(set(everywhere)) == len(everywhere)  # each in one interval only


@pytest.mark.parametrize("feature", range(D))
def test_random_examples_are_units_peaks(repeated, ids, examples, feature):
    peaks = {token for token, _ in unit_peaks(repeated, feature).values()}
    listed = present(examples.random[feature])
    assert set(listed) <= peaks
    distinct = {around(ids, t) for t in peaks}
    assert len({around(ids, t) for t in listed}) == len(listed) <= RANDOM_EXAMPLES
    assert len(listed) >= min(RANDOM_EXAMPLES // 2, len(distinct))


def test_the_same_text_after_other_documents_is_one_example(tmp_path):
    """Three units read 7 8 9 and the feature fires on the first token of each; what stands before them belongs to others."""
    ids = np.array([1, 2, 3, 7, 8, 9, 4, 5, 6, 7, 8, 9, 3, 2, 1, 7, 8, 9])
    dense = np.zeros((18, 2))
    dense[[3, 9, 15], 1] = (1, 3, 2)
    dense[1, 1] = 0.5
    store, _ = store_of(tmp_path, dense)
    assert present(choose_examples(store, ids, np.arange(18) // 3).top[1]) == [9, 1]


def test_intervals_worked_by_hand(tmp_path):
    """Ten units of one firing each, at tenths of the maximum: two lie in each fifth, the one on the limit in the fifth below it."""
    dense = np.zeros((100, 1))
    dense[::10, 0] = np.arange(1, 11)
    store, _ = store_of(tmp_path, dense)
    chosen = choose_examples(store, np.arange(100), np.arange(100) // UNIT)
    assert [present(row) for row in chosen.interval[0]] == [[10, 0], [30, 20], [50, 40], [70, 60], [90, 80]]


# ---- co-activation -----------------------------------------------------------------------------------------------------


def by_correlation(dense, feature: int) -> list[tuple[int, float, float, int]]:
    """(other, share of this feature's tokens, phi, tokens with both), by falling correlation of the two firing patterns."""
    fires = dense > 0
    found = []
    for other in range(D):
        both = int((fires[:, feature] & fires[:, other]).sum())
        spread = fires[:, feature].std() * fires[:, other].std()
        if other != feature and both and spread > 0:
            phi = np.corrcoef(fires[:, feature], fires[:, other])[0, 1]
            if phi > 1e-12:
                found.append((other, both / int(fires[:, feature].sum()), phi, both))
    return sorted(found, key=lambda r: -r[2])[:COACTIVE]


def test_coactivation(dense, made):
    store, totals = made
    found = coactivation(store, totals.count, 400)
    for f in range(D):
        expected = by_correlation(dense, f)
        n = len(expected)
        assert found.feature[f, :n].tolist() == [r[0] for r in expected]
        assert found.feature[f, n:].tolist() == [-1] * (COACTIVE - n)
        np.testing.assert_allclose(found.probability[f, :n], [r[1] for r in expected], rtol=1e-5)
        np.testing.assert_allclose(found.correlation[f, :n], [r[2] for r in expected], rtol=1e-4)
        assert found.count[f, :n].tolist() == [r[3] for r in expected]
    assert found.feature[3, 0] == 4
    assert found.feature[4, 0] == 3
    assert 5 not in found.feature[3]


def test_coactivation_of_frequent_features_is_estimated_from_a_sample(dense, made, monkeypatch):
    monkeypatch.setattr(feature_stats, "COACTIVE_TOKENS", 25)
    store, totals = made
    a, b = (coactivation(store, totals.count, 400, seed=s) for s in (0, 1))
    assert a.feature[3, 0] == b.feature[3, 0] == 4
    assert a.probability[3, 0] == pytest.approx(by_correlation(dense, 3)[0][1], abs=0.15)
    assert a.count[3, 0] == round(a.probability[3, 0] * totals.count[3])
    assert not np.array_equal(a.feature, b.feature)


def test_coactivation_counts_no_token_on_which_nothing_can_fire(dense, tmp_path):
    """Ignored tokens hold nothing in the store: as if they were not there."""
    store, totals = store_of(tmp_path, np.vstack([dense, np.zeros((300, D))]))
    found = coactivation(store, totals.count, 400)
    for f in range(D):
        expected = by_correlation(dense, f)
        assert found.feature[f, : len(expected)].tolist() == [r[0] for r in expected]
        np.testing.assert_allclose(found.correlation[f, : len(expected)], [r[2] for r in expected], rtol=1e-4)
