"""The command line: JSON with the promised keys, and harmless output for people."""

import io
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from sae_explore import command_line
from sae_explore.bundles.bundle import Bundle, open_bundle
from sae_explore.errors import BundleError
from sae_explore.files.bundle_files import MANIFEST
from sae_explore.models import tokens
from sae_explore.terminal import clean

pytest_plugins = ["bundle_fixtures", "cli_fixtures"]
ROOT = Path(__file__).parents[1]
METRICS = {"tokens_train", "tokens_eval", "explained_variance_train", "explained_variance", "l0", "latents", "dead", "ce_clean", "ce_sae",
           "ce_zero", "ce_mean", "ce_recovered"}  # fmt: skip
FEATURE = {"bundle", "feature", "density", "max", "label", "histogram", "positive_logits", "negative_logits", "examples", "neighbours"}
HOSTILE = "\x1b[31m\x07\x9b\u202e\u2028<b>\r\n\t"


# ---- JSON --------------------------------------------------------------------------------------------------------------


def test_text_as_json(cli, tiny_cache):
    text = "The parrot — 🦜 — said:\n\t“hello”."
    code, out, err = cli("text", "tiny", text, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert set(found) == {"bundle", "hook", "units", "tokens", "activations", "top_features"}
    assert (found["bundle"], found["hook"]) == ("tiny", "blocks.1.hook_resid_post")
    assert set(found["tokens"][0]) == {"position", "id", "text", "bytes", "special", "ignored"}
    assert [t["position"] for t in found["tokens"]] == list(range(len(found["tokens"])))
    assert "".join(t["text"] for t in found["tokens"]) == text
    assert bytes.fromhex("".join(t["bytes"] for t in found["tokens"])).decode() == text
    assert [a["position"] for a in found["activations"]] == [t["position"] for t in found["tokens"] if not t["ignored"]]
    values = {}
    for row in found["activations"]:
        assert set(row) == {"position", "features", "values"}
        assert row["values"] == sorted(row["values"], reverse=True)
        assert 1 <= len(row["features"]) <= 6
        for feature, value in zip(row["features"], row["values"], strict=True):
            values.setdefault(feature, {})[row["position"]] = value
    bundle = open_bundle("tiny", cache=tiny_cache)
    for hit in found["top_features"]:
        assert set(hit) == {"feature", "max", "sum", "position", "label"}
        mine = values[hit["feature"]]
        assert hit["max"] == max(mine.values()) == mine[hit["position"]]
        assert hit["sum"] == pytest.approx(sum(mine.values()), abs=1e-2)
        assert hit["label"] == bundle.label(hit["feature"])
    assert len(found["top_features"]) == min(50, len(values))
    assert [h["max"] for h in found["top_features"]] == sorted((h["max"] for h in found["top_features"]), reverse=True)


def test_text_from_standard_input_is_the_same(cli):
    text = "Nobody knows why.\n"
    assert cli("text", "tiny", "-", "--json", stdin=text.encode()) == cli("text", "tiny", text, "--json")


def test_feature_as_json(cli, tiny_cache):
    bundle = open_bundle("tiny", cache=tiny_cache)
    feature = int(np.argmax(bundle.features["count"].to_numpy()))
    code, out, err = cli("feature", "tiny", feature, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert set(found) >= FEATURE
    row = bundle.row(feature)
    assert [found[k] for k in ("feature", "density", "max", "label")] == [feature, row["density"], row["max"], row["label"]]
    assert len(found["histogram"]["edges"]) == len(found["histogram"]["counts"]) + 1
    assert sum(found["histogram"]["counts"]) == row["count"]
    assert set(found["positive_logits"][0]) == {"id", "token", "logit"}
    assert found["positive_logits"][0]["logit"] > 0 > found["negative_logits"][0]["logit"]
    assert len(found["neighbours"]) == 10
    assert set(found["neighbours"][0]) == {"feature", "cosine"}
    kinds = set()
    for example in found["examples"]:
        assert set(example) >= {"document", "start", "peak", "interval", "tokens", "values"}
        kinds.add((example["kind"], example["interval"] is None))
        document = bundle.find_document(example["document"])
        stored = bundle.document_trace(document)
        stop = example["start"] + len(example["tokens"])
        assert list(stored.tokens.texts[example["start"] : stop]) == example["tokens"]
        np.testing.assert_allclose(stored.rows.column(feature)[example["start"] : stop], example["values"], atol=1e-4)
        assert example["values"][example["peak"] - example["start"]] > 0
        if example["interval"] is not None:
            peak = example["values"][example["peak"] - example["start"]]
            assert example["interval"] * row["max"] / 5 < peak + 1e-3 <= (example["interval"] + 1) * row["max"] / 5 + 2e-3
    assert kinds == {("top", True), ("interval", False), ("random", True)}


def test_a_feature_that_never_fires(cli):
    code, out, _ = cli("feature", "planted", 0, "--json")
    found = json.loads(out)
    assert (code, found["density"], found["max"], found["examples"]) == (0, 0.0, 0.0, [])
    assert set(found["histogram"]["counts"]) == {0}
    code, out, _ = cli("feature", "planted", 0)
    assert code == 0
    assert "it never fires on this corpus" in out


def test_metrics_as_json_and_measured_again(cli, tiny_cache):
    code, out, _ = cli("metrics", "tiny", "--json")
    kept = json.loads(out)
    assert code == 0
    assert set(kept) >= METRICS | {"bundle"}
    code, out, err = cli("metrics", "tiny", "--recompute", "--json")
    again = json.loads(out)
    assert (code, err) == (0, "")
    assert set(again) == set(kept)
    for name in METRICS:
        assert again[name] == pytest.approx(kept[name], rel=1e-4), name


def test_bundles_as_json(cli, tiny_cache):
    code, out, _ = cli("bundles", "--json")
    rows = {row["bundle"]: row for row in json.loads(out)}
    assert code == 0
    assert set(rows) == {"tiny", "planted"}
    assert rows["tiny"] | {"model": "", "explained_variance": 0} == {
        "bundle": "tiny", "model": "", "hook": "blocks.1.hook_resid_post", "latents": 64, "texts": 40,
        "tokens": len(open_bundle("tiny", cache=tiny_cache).ids), "explained_variance": 0,
    }  # fmt: skip


def test_a_damaged_bundle_does_not_hide_the_others(cli, tiny_cache, tmp_path, monkeypatch):
    shutil.copytree(tiny_cache / "tiny", tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / MANIFEST).write_text("{")
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path))
    code, out, _ = cli("bundles", "--json")
    bad, good = json.loads(out)
    assert (code, good["bundle"], bad["bundle"]) == (0, "good", "bad")
    assert "cannot be read" in bad["error"]
    code, out, _ = cli("bundles")
    assert (code, len(out.splitlines())) == (0, 2)


def test_numbers_that_are_not_finite_are_null(capsys):
    command_line.print_json({"a": [float("nan"), 1.5, (float("inf"),)], "b": "NaN"})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5, [None]], "b": "NaN"}


def test_json_where_the_terminal_knows_no_unicode(monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="latin-1"))
    assert command_line.run(lambda _: command_line.print_json({"t": "🦜 é"}), []) == 0
    assert json.loads(out.getvalue()) == {"t": "🦜 é"}
    assert command_line.run(lambda _: print("🦜"), []) == 0
    assert b"U0001f99c" in out.getvalue()


# ---- for people --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ("text", "tiny", "one\x1b[31m two\r\n\u202eeruht\x07"), ("feature", "tiny", 7), ("metrics", "tiny"), ("bundles",),
    ],
)  # fmt: skip
def test_nothing_can_steer_the_terminal(cli, monkeypatch, command):
    """Tokens, labels, categories and names that hold control characters come out escaped."""
    monkeypatch.setattr(Bundle, "token_texts", lambda _self, _document, start, stop: (HOSTILE,) * (stop - start))
    monkeypatch.setattr(Bundle, "label", lambda _self, _feature: HOSTILE)
    monkeypatch.setattr(tokens, "readable", lambda _data: HOSTILE)
    monkeypatch.setattr("sae_explore.bundles.bundle.readable", lambda _data: HOSTILE)
    code, out, err = cli(*command)
    assert (code, err) == (0, "")
    assert len(out) > 50
    assert {c for c in out if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")} == {"\n"}


def test_cleaned_text_keeps_what_can_be_seen():
    assert clean("a\tb\nc\rd") == "a⇥b↵c␍d"
    assert clean("é 🦜 क्षि 👩\u200d👩 …“x”") == "é 🦜 क्षि 👩\u200d👩 …“x”"
    assert clean("\x1b[0m\x00\u202e\ud800") == "\\u001b[0m\\u0000\\u202e\\ud800"


def test_a_feature_for_people(cli, tiny_cache):
    bundle = open_bundle("tiny", cache=tiny_cache)
    feature = int(np.argmax(bundle.features["count"].to_numpy()))
    _, out, _ = cli("feature", "tiny", feature)
    row = bundle.row(feature)
    assert f"fires on {row['count']:,} tokens ({row['density']:.3%}), maximum {row['max']:.2f}" in out
    assert out.count("»") == out.count("«") == len(bundle.top_examples(feature)) > 0


def test_a_text_for_people(cli, tiny_cache):
    code, out, _ = cli("text", "planted", "The parrot knows.", "--top", 3)
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 4)
    assert "of its own maximum, " in lines[1]
    assert any(f", {band}) on “" in lines[1] for band in ("trace", "weak", "moderate", "strong"))


# ---- building ----------------------------------------------------------------------------------------------------------


def test_build_prints_what_it_made(cli, gpt2_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path))
    options = ["--model", gpt2_folder, "--hook", "transformer.h.1", "--texts", "embedded", "--max-texts", 12, "--latents", 24, "--k", 2,
               "--epochs", 1, "--context", 32, "--seed", 3, "--weights", "float16"]  # fmt: skip
    code, out, _ = cli("build", "mine", *options, "--json")
    found = json.loads(out)
    assert code == 0
    assert set(found) >= METRICS | {"bundle", "folder"}
    assert (found["bundle"], found["latents"], found["folder"]) == ("mine", 24, str(tmp_path / "mine"))
    request = open_bundle("mine", cache=tmp_path).manifest["request"]
    assert {k: request[k] for k in ("hook", "k", "seed", "weights", "context", "max_texts")} == {
        "hook": "blocks.1.hook_resid_post", "k": 2, "seed": 3, "weights": "float16", "context": 32, "max_texts": 12,
    }  # fmt: skip
    code, out, err = cli("build", "mine", *options, "--force")
    assert code == 0
    assert out.startswith("bundle mine: 24 features over 12 texts\n")
    assert "explained variance" in out
    assert all(line.startswith("warning: ") for line in err.splitlines())


def test_bench_without_bundles_measures_none(cli, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path))
    monkeypatch.setattr("sae_explore.bench.run_bench", lambda bundle, **options: seen.append((bundle, options)) or [{"what": "x"}])
    code, out, _ = cli("bench", "--json", "--quick")
    assert (code, json.loads(out), seen) == (0, [{"what": "x"}], [(None, {"quick": True, "report": None})])


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "cancelled; the same command goes on where this stopped\n"),
        (PermissionError(13, "Permission denied", "/x/y"), 2, "error: Permission denied: /x/y\n"),
        (BundleError("two\nlines \x1b[1m"), 2, "error: two lines \\u001b[1m\n"),
    ],
)
def test_how_a_command_ends(capsys, error, code, message):
    def fail(_argv):
        raise error

    assert command_line.run(fail, []) == code
    assert capsys.readouterr() == ("", message)


def test_errors_of_the_program_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        command_line.run(lambda _argv: 1 / 0, [])


# ---- as processes ------------------------------------------------------------------------------------------------------


def process(*command: object, cache: Path, stdin: bytes = b"") -> subprocess.CompletedProcess:
    environment = {**os.environ, "SAE_EXPLORE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", *map(str, command)], capture_output=True, input=stdin, cwd=ROOT, env=environment)


def test_processes(tiny_cache):
    done = process("sae_explore", "text", "tiny", "-", "--json", cache=tiny_cache, stdin="Nobody knows — why.".encode())
    assert (done.returncode, done.stderr) == (0, b"")
    assert "".join(t["text"] for t in json.loads(done.stdout)["tokens"]) == "Nobody knows — why."
    done = process("sae_explore", "text", "tiny", b"\xff\xfe".decode("utf-8", "surrogateescape"), cache=tiny_cache)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: the text holds a lone surrogate")
    assert done.stderr.count(b"\n") == 1


def test_one_feature_needs_no_torch(tiny_cache):
    code = "import sys; from sae_explore import command_line; from sae_explore.__main__ import main; "
    code += (
        "command_line.run(main, ['feature', 'tiny', '1']); command_line.run(main, ['bundles']); assert 'torch' not in sys.modules, 'torch'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=ROOT, env={**os.environ, "SAE_EXPLORE_CACHE": str(tiny_cache)}
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"feature 1 of tiny")
