"""Every number of the page Quality by brute force: dense activations, plain matrices, transformers' own hidden states and losses."""

import json
import shutil

import numpy as np
import pytest
import torch
from app_driver import figure, numbers, open_page, texts_of, unescaped

from sae_explore.bundles.bundle import Bundle, open_bundle
from sae_explore.drawing import figures_quality
from sae_explore.features import quality
from sae_explore.files.bundle_files import MANIFEST, _checksum, read_manifest
from sae_explore.files.tensor_file import read_tensors
from sae_explore.models.model_structure import blocks_of
from sae_explore.models.windows import windows_of
from sae_explore.texts.dataset import is_held_out

pytest_plugins = ["bundle_fixtures"]


@pytest.fixture(params=["tiny", "planted"])
def bundle(app_cache, request) -> Bundle:
    return open_bundle(request.param)


def dense(bundle: Bundle) -> np.ndarray:
    """(counted tokens, d_sae) activations."""
    out = np.zeros((bundle.store.n_tokens, bundle.d_sae))
    for token in range(bundle.store.n_tokens):
        features, values = bundle.store.rows(token, token + 1).row(0)
        out[token, features] = values
    return out[~np.asarray(bundle.ignored, bool)]


def shown(at) -> dict[str, tuple[str, str]]:
    """{name: (value, measured on)} of the page's figures."""
    from html import unescape
    from re import findall

    found = {}
    pattern = r'<div class="n">(.*?)</div><div><div class="h">(.*?)</div><div class="d">(.*?)</div><div class="m">(.*?)</div>'
    for block in at.get("html"):
        for value, name, definition, on in findall(pattern, block.proto.body):
            assert definition.endswith(".")
            found[name] = unescape(value).replace("\u00a0", " "), unescape(on)
    return found


# ---- sparsity and directions -------------------------------------------------------------------------------------------


def test_sparsity_by_brute_force(bundle):
    active = dense(bundle) > 0
    l0, count = active.sum(1), active.sum(0)
    at = open_page("quality", bundle.name)
    rows = shown(at)
    on = f"{len(active):,} tokens, all texts"
    assert rows["L0"] == (f"{l0.mean():.1f}", on)
    assert rows["Dead features"][0].split()[0] == f"{(count == 0).sum()}"
    assert rows["Rare features"][0].split()[0] == f"{((count > 0) & (count < 10)).sum()}"
    assert rows["Dense features"][0].split()[0] == f"{(count / len(active) > 0.1).sum()}"
    assert f"({100 * (count == 0).mean():.2g} %)" in rows["Dead features"][0]
    drawn = figure(at, "Histogram of active features")
    assert numbers(drawn.data[0].y) == np.bincount(l0).tolist()
    assert numbers(drawn.data[0].x) == list(range(l0.max() + 1))
    drawn = figure(at, "Histogram: how many features fire how often")
    assert sum(numbers(drawn.data[0].y)) == (count > 0).sum()
    logs, widths = np.log10(count[count > 0] / len(active)), numbers(drawn.data[0].width)
    for x, y, width in zip(numbers(drawn.data[0].x), numbers(drawn.data[0].y), widths, strict=True):
        assert abs(y - ((logs >= x - width / 2) & (logs < x + width / 2)).sum()) <= 1  # densities are kept in 32 bits


def test_quantiles_of_l0(app_cache):
    found = quality.store_quality(open_bundle("tiny"))
    l0 = np.repeat(np.arange(len(found.l0)), found.l0)
    assert found.tokens == len(l0)
    for share in (0.05, 0.5, 0.95):
        assert found.l0_quantile(share) == np.sort(l0)[int(np.ceil(share * len(l0))) - 1]


def test_the_pass_over_the_store_does_not_depend_on_its_step(bundle, monkeypatch):
    whole = quality.store_quality(bundle)
    monkeypatch.setattr(quality, "_TOKENS", 7)
    assert np.array_equal(quality.store_quality(bundle).l0, whole.l0)


def test_directions_by_brute_force(bundle):
    rows = np.asarray(read_tensors(bundle.files / "sae" / "sae_weights.safetensors")["W_dec"], np.float64)
    norms = np.linalg.norm(rows, axis=1)
    cosine = rows @ rows.T / np.outer(norms, norms)
    np.fill_diagonal(cosine, -2)
    nearest = cosine.max(1)
    at = open_page("quality", bundle.name)
    drawn = figure(at, "Histogram of the cosine")
    edges = np.linspace(min(0, np.floor(nearest.min() * 20) / 20), 1, 51)
    assert abs(np.asarray(numbers(drawn.data[0].y)) - np.histogram(nearest, edges)[0]).sum() <= 2  # cosines are kept in 16 bits
    assert sum(numbers(drawn.data[0].y)) == 64
    assert sum(numbers(drawn.data[1].y)[::2]) == pytest.approx(64, abs=0.5)
    said = texts_of(at)
    assert f"mean {nearest.mean():.2f}; line: what 64 random directions in 32 dimensions" in said
    assert f"{(nearest > 0.9).sum()} features have a neighbour above 0.9" in said
    drawn = figure(at, "Histogram of the lengths")
    assert sum(numbers(drawn.data[0].y)) == 64
    assert f"from {norms.min():.3f} to {norms.max():.3f}, median {np.median(norms):.3f}" in said


@pytest.mark.parametrize(("n", "dimensions"), [(64, 32), (500, 16), (2_000, 64)])
def test_chance_by_simulation(n, dimensions):
    rng, found = np.random.default_rng(0), []
    for _ in range(10):
        rows = rng.standard_normal((n, dimensions)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        cosine = rows[:200] @ rows.T
        cosine[np.arange(min(n, 200)), np.arange(min(n, 200))] = -2
        found.append(cosine.max(1))
    nearest, edges = np.concatenate(found), np.linspace(-0.2, 1, 25)
    assert quality.mean_by_chance(n=n, dimensions=dimensions) == pytest.approx(nearest.mean(), abs=0.005)
    expected = quality.nearest_by_chance(edges, n=n, dimensions=dimensions)
    assert np.allclose(expected / n, np.histogram(nearest, edges)[0] / len(nearest), atol=0.05)
    assert expected.sum() == pytest.approx(n, rel=1e-6)


def test_chance_by_hand():
    """In three dimensions a cosine is uniform over -1 to 1, so that the largest of m has the mean (m - 1) / (m + 1)."""
    for m in (1, 2, 9):
        assert quality.mean_by_chance(n=m + 1, dimensions=3) == pytest.approx((m - 1) / (m + 1), abs=1e-4)
    assert quality.nearest_by_chance(np.array([-1, 0, 1]), n=3, dimensions=3) == pytest.approx([0.75, 2.25], abs=1e-3)


# ---- what is rebuilt, and what it costs --------------------------------------------------------------------------------


def evaluated(bundle: Bundle) -> list[int]:
    documents = range(bundle.n_documents)
    return [i for i in documents if bundle.manifest["metrics"]["evaluated_set"] == "all" or is_held_out(bundle.document_text(i))]


def by_window(bundle: Bundle, full, documents, *, overlap: bool):
    """(document, window, prompt with BOS, hidden states after block 1) of every window."""
    for d in documents:
        ids = np.asarray(bundle.ids[bundle.doc_offsets[d] : bundle.doc_offsets[d + 1]], np.int64)
        for w in windows_of(len(ids), bundle.manifest["context"] - 1, overlap=overlap):
            prompt = torch.from_numpy(np.r_[0, ids[w.start : w.stop]])[None]
            yield d, w, prompt, full(prompt, output_hidden_states=True, use_cache=False).hidden_states[2][0]


def rebuilt(bundle: Bundle, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(reconstruction, activations) of rows, by the equation of a TopK SAE."""
    w = {k: torch.from_numpy(np.array(v)).double() for k, v in read_tensors(bundle.files / "sae" / "sae_weights.safetensors").items()}
    values, at = torch.topk((x.double() - w["b_dec"]) @ w["W_enc"] + w["b_enc"], bundle.manifest["sae"]["k"])
    acts = torch.zeros(len(x), bundle.d_sae, dtype=torch.float64).scatter(1, at, values.clamp_min(0))
    return acts @ w["W_dec"] + w["b_dec"], acts


@torch.inference_mode()
def test_explained_variance_by_brute_force(bundle, gpt2_full):
    rows, names, limit = [], [], 5 * bundle.manifest["median_norm"]
    categories = bundle.documents["category"].to_pylist()
    for d, w, _, hidden in by_window(bundle, gpt2_full, evaluated(bundle), overlap=True):
        kept = hidden[1 + w.keep - w.start :]
        rows.append(kept[kept.norm(dim=-1) <= limit])
        names += [categories[d]] * len(rows[-1])
    x, names = torch.cat(rows), np.asarray(names)
    x_hat, acts = rebuilt(bundle, x)

    def variance(of: np.ndarray) -> float:
        own = x[of].double()
        return 1 - float(((own - x_hat[of]) ** 2).sum() / ((own - own.mean(0)) ** 2).sum())

    at = open_page("quality", bundle.name)
    name, (value, on) = next((n, row) for n, row in shown(at).items() if n.startswith("Explained variance"))
    assert float(value) == pytest.approx(variance(np.ones(len(names), bool)), abs=2e-3, rel=1e-6)
    assert on.startswith(f"{len(x):,} tokens: {bundle.manifest['metrics']['evaluated_on']}")
    assert (
        name.split(", ")[1]
        == {"held_out": "held out", "all": "these texts" if bundle.name == "planted" else "in-sample"}[
            bundle.manifest["metrics"]["evaluated_set"]
        ]
    )
    table = next(frame.value for frame in at.dataframe).set_index("Category")
    for category in set(names):
        of = names == category
        assert table.loc[category, "Tokens"] == of.sum()
        assert table.loc[category, "Explained variance"] == pytest.approx(variance(of), abs=2e-3, rel=1e-6)
        assert table.loc[category, "L0"] == pytest.approx(float((acts[torch.from_numpy(of)] > 0).sum(1).double().mean()), abs=0.02)


@torch.inference_mode()
def test_losses_by_brute_force(bundle, gpt2_full):
    """With torch's own forward hooks and transformers' logits, window by window."""
    documents, limit = evaluated(bundle), 5 * bundle.manifest["median_norm"]
    mean = torch.cat([h[1 + w.keep - w.start :] for _, w, _, h in by_window(bundle, gpt2_full, documents, overlap=True)])
    mean = mean[mean.norm(dim=-1) <= limit].mean(0)
    categories = bundle.documents["category"].to_pylist()
    found: dict[str, dict[str, list]] = {}
    for d, _, prompt, hidden in by_window(bundle, gpt2_full, documents, overlap=False):
        counted = hidden.norm(dim=-1) <= limit
        counted[0] = False
        variants = {"clean": hidden, "sae": rebuilt(bundle, hidden)[0].float(), "mean": mean.expand_as(hidden), "zero": 0 * hidden}
        for key, rows in variants.items():
            replaced = torch.where(counted[:, None], rows, hidden)[None]
            handle = blocks_of(gpt2_full)[1].register_forward_hook(lambda *_, replaced=replaced: replaced)
            try:
                logs = gpt2_full(prompt, use_cache=False).logits[0].log_softmax(-1)
            finally:
                handle.remove()
            losses = -logs[:-1].gather(1, prompt[0, 1:, None])[:, 0]
            found.setdefault(categories[d], {}).setdefault(key, []).append(losses[counted[:-1]])
    ce = {k: {key: float(torch.cat(v).double().mean()) for key, v in of.items()} for k, of in found.items()}
    whole = {
        key: float(torch.cat([loss for of in found.values() for loss in of[key]]).double().mean())
        for key in ("clean", "sae", "mean", "zero")
    }
    at = open_page("quality", bundle.name)
    drawn = figure(at, "Cross entropy in nats")
    assert list(drawn.layout.yaxis.ticktext) == ["Clean", "With the SAE", "Mean-ablated", "Zero-ablated"]
    assert numbers(drawn.data[0].x) == pytest.approx([whole[key] for key in ("clean", "sae", "mean", "zero")], abs=2e-3)
    rows = shown(at)
    assert float(rows["Increase of the loss"][0].split()[0]) == pytest.approx(whole["sae"] - whole["clean"], abs=4e-3)
    for name, base in (("mean", "mean"), ("zero", "zero")):
        share = (whole[base] - whole["sae"]) / (whole[base] - whole["clean"])
        assert float(rows[f"Recovered, against {name} ablation"][0].split()[0]) == pytest.approx(100 * share, abs=abs(share) * 2 + 0.5)
    assert rows["Increase of the loss"][1] == f"{sum(len(loss) for of in found.values() for loss in of['clean']):,} predictions"
    table = next(frame.value for frame in at.dataframe).set_index("Category")
    for category, own in ce.items():
        for column, key in (("Clean", "clean"), ("With the SAE", "sae"), ("Mean-ablated", "mean"), ("Zero-ablated", "zero")):
            assert table.loc[category, column] == pytest.approx(own[key], abs=3e-3)
        assert table.loc[category, "Increase"] == pytest.approx(own["sae"] - own["clean"], abs=4e-3)


def test_in_sample_and_held_out_figures_are_named_as_such(app_cache, tmp_path, monkeypatch):
    """The manifest's figures one by one, on a copy whose figures are known."""
    shutil.copytree(app_cache / "tiny", tmp_path / "tiny")
    manifest = read_manifest(tmp_path / "tiny")
    manifest["metrics"] |= {"explained_variance": 0.5, "explained_variance_train": 0.75, "tokens_eval": 1_234, "ce_recovered": float("nan")}
    held_out = {"<b>x": {"tokens": 9, "explained_variance": 0.1, "l0": 2.0}}
    manifest["metrics"]["held_out_of_training_sources"] = {"explained_variance": 0.625, "tokens": 4_321, "by_category": held_out}
    manifest["train"]["tokens_evaluated"] = 777
    (tmp_path / "tiny" / MANIFEST).write_text(json.dumps({**manifest, "checksum": _checksum(manifest)}))
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path))
    at = open_page("quality")
    rows = shown(at)
    first = next(name for name in rows if name.startswith("Explained variance"))
    assert rows[first][0] == "0.500"
    assert rows[first][1].startswith("1,234 tokens: ")
    assert rows["Explained variance, training tokens (in-sample)"] == ("0.750", f"777 of {manifest['train']['tokens']:,} training tokens")
    assert rows["Explained variance, training sources held out"] == ("0.625", "4,321 held-out tokens")
    assert rows["Recovered, against zero ablation"][0] == "not defined"
    assert at.dataframe[1].value["Category"].tolist() == ["<b>x"]
    assert "Clean" not in at.dataframe[1].value.columns  # nothing was measured
    assert "<b>x" not in texts_of(at)


# ---- figures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0, 1, 59, 60, 61, 400])
def test_every_token_is_in_one_bar(most):
    l0 = np.random.default_rng(most).integers(0, 50, most + 1)
    drawn = figures_quality.l0_histogram(l0).data[0]
    assert sum(drawn.y) == l0.sum()
    assert len(drawn.y) <= 61
    step = max(1, -(-(most + 1) // 60))
    assert drawn.y[0] == l0[:step].sum()


def test_equal_norms_have_a_range_and_all_norms_are_counted():
    for norms in (np.ones(9), np.array([0.5, 3.0, 3.1]), np.zeros(4), np.array([1.0, 1.0 + 1e-7])):
        edges, counts = figures_quality.norm_bins(norms)
        assert counts.sum() == len(norms)
        assert (np.diff(edges) > 0).all()


def test_the_page_escapes_what_the_manifest_says(app_cache, tmp_path, monkeypatch):
    hostile = "<img src=x> **b** [l](javascript:1)"
    shutil.copytree(app_cache / "tiny", tmp_path / "tiny")
    manifest = read_manifest(tmp_path / "tiny")
    manifest["metrics"]["evaluated_on"], manifest["warnings"] = hostile, [hostile]
    (tmp_path / "tiny" / MANIFEST).write_text(json.dumps({**manifest, "checksum": _checksum(manifest)}))
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path))
    at = open_page("quality")
    assert "<img" not in "".join(block.proto.body for block in at.get("html"))
    assert "**b**" not in texts_of(at)
    assert hostile in unescaped(texts_of(at))


def test_no_name_of_a_loss_is_markup():
    (bars,) = figures_quality.loss_bars(["<b>x", "a&b"], ["clean", "sae"], [1.0, 2.0]).data
    assert list(bars.customdata) == ["&lt;b&gt;x", "a&amp;b"]


def test_ignored_tokens_are_no_tokens_without_features(bundle, monkeypatch):
    """As many as fire nowhere must not lower L0. (The tiny model's own tokens are all counted.)"""
    ignored = np.random.default_rng(0).random(bundle.store.n_tokens) < 0.3
    active = np.diff(bundle.store.token_offsets)
    monkeypatch.setattr(bundle, "ignored", ignored)
    found = quality.store_quality(bundle)
    assert found.tokens == (~ignored).sum()
    assert found.mean_l0 == pytest.approx(active[~ignored].mean())
