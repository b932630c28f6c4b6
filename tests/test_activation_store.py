"""The store against brute force on random sparse data."""

import numpy as np
import pytest

from sae_explore.activations.activation_store import INTERVALS, KEEP_PER_INTERVAL, KEEP_TOP, ActivationStore, StoreWriter, interval_of
from sae_explore.errors import BundleError
from sae_explore.files.tensor_file import read_tensors, write_tensors

D = 30


def sparse(n: int, seed: int, dense_feature: int | None = None) -> list[list[tuple[int, float]]]:
    """For each token its (feature, value) pairs, strongest first; values tie often; features 0 and 1 and one in eight tokens are silent."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        chosen = [] if rng.random() < 0.12 else rng.choice(np.arange(2, D), rng.integers(0, 6), replace=False)
        if dense_feature is not None:
            chosen = np.union1d(chosen, [dense_feature]).astype(int)
        rows.append(sorted(((int(f), float(rng.integers(1, 9)) / 4) for f in chosen), key=lambda p: -p[1]))
    return rows


def write(writer: StoreWriter, rows, part_size: int = 23, **options) -> None:
    for part, a in enumerate(range(0, len(rows), part_size)):
        piece = rows[a : a + part_size]
        pairs = [p for row in piece for p in row]
        offsets = np.concatenate([[0], np.cumsum([len(r) for r in piece])])
        writer.write_part(part, offsets, np.array([f for f, _ in pairs], np.int64), np.array([v for _, v in pairs], np.float32), **options)


@pytest.fixture(params=[1 << 20, 40, 7])
def chunk(request, monkeypatch):
    """Entries worked on at once: all, or so few that features and parts straddle the chunks."""
    monkeypatch.setattr("sae_explore.activations.activation_store._CHUNK", request.param)


@pytest.fixture
def made(tmp_path, chunk):
    rows = sparse(200, 1)
    writer = StoreWriter(tmp_path / "work", D)
    write(writer, rows)
    shares = []
    totals = writer.finish(tmp_path / "store", progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    return rows, totals, ActivationStore(tmp_path / "store", D)


def firings_of(rows, feature: int) -> list[tuple[int, float]]:
    """(token, value), strongest first, earlier tokens first among equals."""
    found = [(t, v) for t, row in enumerate(rows) for f, v in row if f == feature]
    return sorted(found, key=lambda p: (-p[1], p[0]))


def test_token_major_rows(made):
    rows, _, store = made
    assert store.n_tokens == 200
    for start, stop in ((0, 200), (0, 0), (17, 18), (20, 70), (199, 200)):
        found = store.rows(start, stop)
        assert len(found) == stop - start
        for i in range(stop - start):
            features, values = found.row(i)
            assert list(zip(features.tolist(), values.tolist(), strict=True)) == rows[start + i]


def test_feature_major_ranks(made):
    rows, _, store = made
    for feature in range(D):
        expected = firings_of(rows, feature)
        tokens, values = store.firings(feature)
        assert list(zip(tokens.tolist(), values.tolist(), strict=True)) == expected
        assert store.kept(feature) == len(expected)
        tokens, values = store.firings(feature, 2, 5)
        assert list(zip(tokens.tolist(), values.tolist(), strict=True)) == expected[2:5]
        assert len(store.firings(feature, 10_000, 10_020)[0]) == 0
    assert store.kept(0) == store.kept(1) == 0  # dead


def test_values_of_one_feature_on_a_stretch(made):
    rows, _, store = made
    for feature in (0, 2, 7, 29):
        for start, stop in ((0, 200), (17, 18), (20, 70), (5, 5)):
            expected = [dict(row).get(feature, 0.0) for row in rows[start:stop]]
            assert store.values_of(feature, start, stop).tolist() == expected
            assert store.rows(start, stop).column(feature).tolist() == expected


def test_rank_of_value(made):
    rows, _, store = made
    for feature in (0, 2, 7, 29):
        values = [v for _, v in firings_of(rows, feature)]
        for value in (0.0, 0.25, 1.0, 1.1, 2.0, 99.0):
            assert store.rank_of_value(feature, value) == sum(v > value for v in values)


def test_totals(made):
    rows, totals, _ = made
    for feature in range(D):
        values = np.array([v for _, v in firings_of(rows, feature)])
        assert totals.count[feature] == len(values)
        assert totals.max[feature] == (values.max() if len(values) else 0)
        for power, name in enumerate(("sum", "sum_squares", "sum_cubes", "sum_fourths"), start=1):
            assert getattr(totals, name)[feature] == pytest.approx((values**power).sum())


def test_ignored_tokens_are_remembered(tmp_path):
    writer = StoreWriter(tmp_path, D)
    writer.write_part(0, np.array([0, 0, 1]), np.array([3]), np.array([1.0]), np.array([True, False]))
    writer.write_part(1, np.array([0, 0]), np.array([], int), np.array([], np.float32))
    assert writer.ignored().tolist() == [True, False, False]


@pytest.mark.parametrize("cap", [50, 120, 199])
def test_a_dense_feature_keeps_its_strongest_and_some_of_each_interval(tmp_path, chunk, cap):
    """Feature 5 fires on all 200 tokens; what is kept is ranked, a subset, and holds the strongest; other features are whole."""
    rows = sparse(200, 2, dense_feature=5)
    for seed in (0, 1):
        writer = StoreWriter(tmp_path / f"work{seed}", D, cap=cap)
        write(writer, rows)
        totals = writer.finish(tmp_path / f"store{seed}", seed=seed)
    stores = [ActivationStore(tmp_path / f"store{seed}", D) for seed in (0, 1)]
    assert totals.count[5] == 200
    everything = firings_of(rows, 5)
    kept = [list(zip(*(a.tolist() for a in store.firings(5)), strict=True)) for store in stores]
    for found in kept:
        assert len(found) == cap
        assert found == [p for p in everything if p in set(found)]
        assert found[: cap * 4 // 9] == everything[: cap * 4 // 9]
        levels = set(interval_of(np.array([v for _, v in found]), 2.0).tolist())
        assert levels == set(interval_of(np.array([v for _, v in everything]), 2.0).tolist())
    assert kept[0] != kept[1] or cap == 199  # drawn with the seed
    writer.finish(tmp_path / "again", seed=1)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "store1").read_bytes()
    for feature in (4, 6):
        assert stores[0].firings(feature)[0].tolist() == [t for t, _ in firings_of(rows, feature)]


def test_past_the_cap_as_many_are_kept_as_the_module_says(tmp_path):
    n, target = 12_000, KEEP_TOP + INTERVALS * KEEP_PER_INTERVAL
    writer = StoreWriter(tmp_path / "work", 3, cap=10_000)
    values = np.linspace(0.001, 4, n, dtype=np.float32)
    writer.write_part(0, np.arange(n + 1), np.full(n, 1), values)
    writer.finish(tmp_path / "store")
    tokens, found = ActivationStore(tmp_path / "store", 3).firings(1)
    assert len(tokens) == target
    ranked = sorted(range(n), key=lambda t: (-np.float16(values[t]), t))
    assert tokens[:KEEP_TOP].tolist() == ranked[:KEEP_TOP]
    counts = np.bincount(interval_of(found[KEEP_TOP:], 4.0), minlength=INTERVALS)
    assert counts[:4].tolist() == [KEEP_PER_INTERVAL] * 4
    assert min(counts[4:7]) >= KEEP_PER_INTERVAL  # filled up with the next strongest; the intervals above lie among the first


def test_equal_width_intervals_worked_by_hand():
    assert interval_of(np.array([0.01, 0.1, 0.11, 0.95, 1.0], np.float32), 1.0).tolist() == [0, 1, 1, 9, 9]  # fp32's .1 is above a tenth
    assert interval_of(np.array([2.5, 5.0, 7.5, 10, 25], np.float16), 25.0).tolist() == [0, 1, 2, 3, 9]


def test_an_empty_store(tmp_path):
    writer = StoreWriter(tmp_path / "work", D)
    writer.write_part(0, np.zeros(4, np.int64), np.array([], np.int64), np.array([], np.float32))
    writer.finish(tmp_path / "store")
    store = ActivationStore(tmp_path / "store", D)
    assert (store.n_tokens, store.kept(3), len(store.rows(0, 3))) == (3, 0, 3)
    assert store.rank_of_value(3, 0.5) == 0


@pytest.mark.parametrize(("d_sae", "kind"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_the_index_type_fits_the_number_of_latents(tmp_path, d_sae, kind):
    writer = StoreWriter(tmp_path / "work", d_sae)
    writer.write_part(0, np.array([0, 2]), np.array([d_sae - 1, 0]), np.array([2.0, 1.0]))
    writer.finish(tmp_path / "store")
    store = ActivationStore(tmp_path / "store", d_sae)
    assert store.token_features.dtype == kind
    assert store.rows(0, 1).features.tolist() == [d_sae - 1, 0]
    assert store.firings(d_sae - 1)[0].tolist() == [0]


@pytest.mark.parametrize("value", [65_600.0, np.inf, np.nan])
def test_values_beyond_fp16_are_refused(tmp_path, value):
    with pytest.raises(BundleError, match="does not fit into fp16"):
        StoreWriter(tmp_path, D).write_part(0, np.array([0, 2]), np.array([1, 2]), np.array([1.0, value], np.float32))
    assert list(tmp_path.iterdir()) == []


def test_tiny_positive_values_stay_positive(tmp_path):
    writer = StoreWriter(tmp_path / "work", D)
    writer.write_part(0, np.array([0, 1]), np.array([3]), np.array([1e-12], np.float32))
    writer.finish(tmp_path / "store")
    assert ActivationStore(tmp_path / "store", D).rows(0, 1).values[0] > 0


def test_more_entries_than_can_be_numbered_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sae_explore.activations.activation_store._MAX_ENTRIES", 100)
    writer = StoreWriter(tmp_path / "work", D)
    write(writer, sparse(200, 1))
    with pytest.raises(BundleError, match="explore fewer texts"):
        writer.finish(tmp_path / "store")
    assert not (tmp_path / "store").exists()


DAMAGE = {
    "a last offset too large": lambda t: t["token_offsets"].__setitem__(-1, 10**6),
    "a first offset not 0": lambda t: t["token_offsets"].__setitem__(0, 1),
    "offsets that fall": lambda t: t["feature_offsets"].__setitem__(3, 10**5),
    "offsets of another type": lambda t: t.update(token_offsets=t["token_offsets"].astype(np.int32)),
    "offsets in a table": lambda t: t.update(feature_offsets=t["feature_offsets"][:, None]),
    "offsets that are one number": lambda t: t.update(token_offsets=np.array(0)),
    "no offsets": lambda t: t.update(token_offsets=np.zeros(0, np.int64)),
    "values cut short": lambda t: t.update(token_values=t["token_values"][:-1]),
    "values of another type": lambda t: t.update(token_values=t["token_values"].astype(np.float32)),
    "entries cut short": lambda t: t.update(feature_entries=t["feature_entries"][:-1]),
    "a tensor missing": lambda t: t.pop("token_features"),
    "a latent too few": lambda t: t.update(feature_offsets=np.delete(t["feature_offsets"], 0)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_stores_are_refused_in_one_sentence(tmp_path, damage):
    writer = StoreWriter(tmp_path / "work", D)
    write(writer, sparse(60, 3))
    writer.finish(tmp_path / "store")
    tensors = {name: np.array(array) for name, array in read_tensors(tmp_path / "store").items()}
    DAMAGE[damage](tensors)
    write_tensors(tmp_path / "damaged", tensors)
    with pytest.raises(BundleError) as caught:
        ActivationStore(tmp_path / "damaged", D)
    assert "\n" not in str(caught.value)


def test_entries_that_point_outside_are_refused_when_read(tmp_path):
    writer = StoreWriter(tmp_path / "work", D)
    write(writer, sparse(60, 3))
    writer.finish(tmp_path / "store")
    tensors = {name: np.array(array) for name, array in read_tensors(tmp_path / "store").items()}
    tensors["feature_entries"][:] = 10**6
    write_tensors(tmp_path / "damaged", tensors)
    store = ActivationStore(tmp_path / "damaged", D)
    with pytest.raises(BundleError, match="points feature 7 outside itself"):
        store.firings(7)
