"""Both methods: which features are chosen, what is said about them, and that it follows from the evidence."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from sae_explore import command_line, decoder_analysis, max_activating_examples, methods
from sae_explore.bundles.bundle import open_bundle
from sae_explore.errors import InputError
from sae_explore.features.diverse import clarity, cosine_matrix
from sae_explore.files.bundle_files import bundle_names
from sae_explore.files.tensor_file import read_tensors
from sae_explore.max_activating_examples import interpretation
from sae_explore.types import Example

pytest_plugins = ["bundle_fixtures"]


@pytest.fixture
def tiny(tiny_cache):
    return open_bundle("tiny", cache=tiny_cache)


@pytest.fixture
def run(tiny_cache, monkeypatch, capsys):
    """A function: run a method's command; (exit code, stdout, stderr)."""
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tiny_cache))

    def call(module, *arguments: object) -> tuple[int, str, str]:
        code = command_line.run(module.main, [str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


# ---- which features ----------------------------------------------------------------------------------------------------


def table(**columns) -> pa.Table:
    n = len(columns["confidence"])
    return pa.table({"count": [100] * n, "lens_kurtosis": [0.0] * n, **columns})


def test_clear_and_rare_comes_before_clear_and_trivial():
    """confidence * min(1, log10(1 / density) / 3): "the" on 5 % of the tokens, a word on 0.05 %, a very rare one."""
    found = clarity(table(confidence=[0.95, 0.6, 0.6, 0.3], density=[0.05, 0.0005, 1e-5, 1e-4]), 0.1)
    np.testing.assert_allclose(found, [0.95 * np.log10(20) / 3, 0.6, 0.6, 0.3], atol=1e-6)
    assert np.argsort(-found, kind="stable").tolist() == [1, 2, 0, 3]


def test_among_equals_the_sharper_lens():
    found = clarity(table(confidence=[0.5, 0.5, 0.502], density=[1e-3] * 3, lens_kurtosis=[0.0, 30.0, 0.0]), 0.1)
    assert found.argmax() == 2  # a clearer label always wins
    assert found[1] > found[0]


def test_what_shows_nothing_is_never_chosen():
    found = clarity(table(confidence=[1.0, 1.0, 1.0, 1.0], density=[0.0, 0.2, 0.1, 1e-3], count=[0, 999, 99, 9]), 0.1)
    assert np.isnan(found).tolist() == [True, True, False, True]


def test_three_diverse_features_unless_told(tiny):
    chosen = methods.chosen_features(tiny, None)
    assert len(set(chosen)) == 3
    rows = tiny.W_dec[chosen].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = rows @ rows.T
    np.testing.assert_allclose(cosine_matrix(tiny.W_dec[chosen]), cosine, atol=1e-12)
    assert np.abs(cosine[np.triu_indices(3, 1)]).max() < 0.7
    scores = clarity(tiny.features, tiny.manifest["features"]["dense_above"])
    assert scores[chosen[0]] == np.nanmax(scores)
    assert scores[chosen].tolist() == sorted(scores[chosen], reverse=True)
    assert methods.chosen_features(tiny, [5, 2]) == [5, 2]
    with pytest.raises(InputError, match="there is no feature 64"):
        methods.chosen_features(tiny, [5, 64])


def test_where_nothing_can_be_chosen(tiny):
    poor = tiny.features.set_column(tiny.features.column_names.index("count"), "count", pa.array([3] * 64))
    bundle = SimpleNamespace(name="b", W_dec=tiny.W_dec, features=poor, manifest=tiny.manifest)
    with pytest.raises(InputError, match="no feature of bundle 'b' fires often enough to be chosen for you; name some with --features"):
        methods.chosen_features(bundle, None)


# ---- what the examples have in common ----------------------------------------------------------------------------------


def example(*tokens: str, peak: int = 1, category: str = "news") -> Example:
    values = np.zeros(len(tokens), np.float32)
    values[peak] = 2
    return Example(0, "d/0", "s", category, 0, peak, "top", None, tokens, values, np.zeros(len(tokens), bool))


SHARE = {"news": 0.6, "law": 0.2, "art": 0.2}


@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        ([], "it never fires on this corpus, so there is nothing to read"),
        ([example("a", " cat", "b")], "its only peak is on “cat”"),
        (
            [example("x", " cat", "y"), example("z", "Cat", "w"), example("u", " dog", "v")],
            "it peaks on “cat” (2 of 3)",
        ),
        (
            [example(f"w{i}", f" t{i}", " of") for i in range(3)] + [example("w9", " t9", "to")],
            "its peaks are all on different tokens: “t0”, “t1”, “t2”, “t9”; mostly before “of” (3 of 4)",
        ),
        (
            [example(" the", f" t{i}", f"e{i}", category="law") for i in range(2)],
            "its peaks are all on different tokens: “t0”, “t1”; mostly after “the” (2 of 2); 2 of 2 in law texts (20% of the corpus)",
        ),
        ([example(" cat", f"e{i}", peak=0, category="news") for i in range(2)], "it peaks on “cat” (2 of 2)"),
        ([example("\x1b[1m", "\n", peak=1), example("q", "\n", peak=1)], "it peaks on “↵” (2 of 2)"),
    ],
)
def test_the_reading_follows_from_the_evidence(examples, expected):
    assert interpretation(examples, SHARE) == expected


def test_a_category_counts_only_above_chance():
    examples = [example("a", f" t{i}", f"b{i}", category=c) for i, c in enumerate(["news", "news", "news", "law"])]
    assert "news" not in interpretation(examples, SHARE)  # 3 of 4, where most of the corpus is news
    assert "3 of 4 in news texts (30% of the corpus)" in interpretation(examples, SHARE | {"news": 0.3})


# ---- the commands ------------------------------------------------------------------------------------------------------


def test_method_one(run, tiny):
    code, out, err = run(max_activating_examples, "--bundle", "tiny", "--json", "--top", 4)
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert [f["feature"] for f in found] == methods.chosen_features(tiny, None)
    for feature in found:
        top = [e for e in feature["examples"] if e["kind"] == "top"]
        assert 1 <= len(top) <= 4
        examples = max_activating_examples.max_activating_examples(tiny, feature["feature"], 4)
        assert feature["interpretation"] == interpretation(examples, tiny.category_share())
        peaks = [e["values"][e["peak"] - e["start"]] for e in top]
        assert peaks == sorted(peaks, reverse=True)
        assert peaks[0] == pytest.approx(feature["max"], abs=1e-3)
    code, out, _ = run(max_activating_examples, "--bundle", "tiny", "--features", 3, 9, "--top", 2)
    assert code == 0
    for feature in (3, 9):
        row = tiny.row(feature)
        assert f"\nfeature {feature}: " in out
        assert f"  fires on {row['count']:,} tokens ({row['density']:.3%}), up to {row['max']:.2f}" in out
    assert out.count("  reading: ") == 2
    assert out.count("»") == sum(len(tiny.top_examples(f, 2)) for f in (3, 9))


def test_method_one_on_a_silent_feature(run):
    code, out, _ = run(max_activating_examples, "--bundle", "planted", "--features", 0)
    assert code == 0
    assert "fires on 0 tokens (0.000%), silent\n  reading: it never fires on this corpus" in out


def test_method_two(run, tiny):
    code, out, err = run(decoder_analysis, "--bundle", "tiny", "--features", 1, 2, 8, "--top", 5, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    np.testing.assert_allclose(found["cosine"], cosine_matrix(tiny.W_dec[[1, 2, 8]]), atol=1e-4)
    lens = read_tensors(tiny.files / "lens.safetensors")
    random = tiny.manifest["lens"]["random"]
    for feature in found["features"]:
        number = feature["feature"]
        assert set(feature["lens"]) == {"folded", "raw"}
        for convention, lists in feature["lens"].items():
            assert [t["id"] for t in lists["positive"]] == lens[f"{convention}.positive_ids"][number, :5].tolist()
            assert [t["logit"] for t in lists["negative"]] == pytest.approx(lens[f"{convention}.negative"][number, :5].tolist(), abs=1e-4)
            assert lists["random_top_logit"] == random["top_logit"][convention] > 0
        row = tiny.row(number)
        assert (feature["strength"], feature["label"]) == (row["strength"], row["label"])
        assert feature["strength_ratio"] == pytest.approx(row["strength"] / random["strength"], rel=1e-4)
        assert feature["neighbours"][0]["feature"] == tiny.neighbours(number)[0][0]
    code, out, _ = run(decoder_analysis, "--bundle", "tiny")
    assert code == 0
    assert out.count("direction strength") == 3
    assert out.count("promotes") == out.count("suppresses") == 6
    assert "256 unit directions" in out
    assert "chosen so that none reaches 0.7" in out
    assert "+1.000" in out


def test_random_directions_are_the_yardstick(tiny):
    """Unit directions drawn anew give the strength and the top logits that the manifest calls chance."""
    found = decoder_analysis.decoder_analysis(tiny, 4)
    assert 0.3 < found.strength_ratio < 3
    assert found.top_logit["folded"] == found.lens["folded"][0][0].logit


@pytest.mark.parametrize("module", [max_activating_examples, decoder_analysis])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "nope"], "there is no bundle 'nope'"),
        (["--bundle", "tiny", "--features", "64"], "there is no feature 64"),
        (["--bundle", "tiny", "--features", "-1"], "there is no feature -1"),
        (["--bundle", "tiny", "--top", "0"], "0 is not at least 1"),
        (["--bundle", "tiny", "--latents", "8"], "there is a bundle 'tiny' already; leave out the build options"),
        (["--k", "9", "--latents", "8"], "k = 9 is more than the number of latents, 8"),
    ],
)
def test_wrong_arguments(run, module, arguments, message):
    code, out, err = run(module, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_without_any_bundle(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path))
    code, _, err = run(decoder_analysis)
    assert code == 2
    assert "there is no bundle in" in err
    assert "python -m sae_explore build gpt2" in err


def test_the_best_bundle_is_taken(run, tiny_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path))
    for name in ("zebra", "demo", "gpt2"):
        (tmp_path / name).symlink_to(tiny_cache / "tiny")
    for name in ("gpt2", "demo", "zebra"):
        _, out, _ = run(decoder_analysis, "--json", "--features", 0)
        assert json.loads(out)["bundle"] == name
        (tmp_path / name).unlink()


def test_build_options_train_first_and_once(run, gpt2_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path))
    options = [
        "--model",
        gpt2_folder,
        "--hook",
        "blocks.0.hook_resid_post",
        "--texts",
        "embedded",
        "--max-texts",
        12,
        "--latents",
        24,
        "--k",
        3,
        "--epochs",
        1,
        "--context",
        32,
        "--json",
    ]
    code, out, _ = run(max_activating_examples, *options)
    (name,) = bundle_names(tmp_path)
    assert (code, json.loads(out)[0]["bundle"]) == (0, name)
    assert name.startswith("run-")
    made = (tmp_path / name / "manifest.json").stat().st_mtime_ns
    code, out, _ = run(decoder_analysis, *options)
    assert (code, json.loads(out)["bundle"]) == (0, name)
    assert (tmp_path / name / "manifest.json").stat().st_mtime_ns == made
