"""What the command line cannot do is one line on stderr, exit code 2 and no traceback."""

import json
import random
import shutil
from pathlib import Path

import pytest

from sae_explore.bundles.bundle import Bundle
from sae_explore.errors import BundleError
from sae_explore.files.bundle_files import MANIFEST, read_manifest

pytest_plugins = ["bundle_fixtures", "cli_fixtures"]


@pytest.mark.parametrize("command", [("text", "nope", "x"), ("feature", "nope", 0), ("metrics", "nope"), ("bench", "nope", "--quick")])
def test_an_unknown_bundle(refused, command):
    assert "there is no bundle 'nope'" in refused(*command)


@pytest.mark.parametrize("name", ["../tiny", "", "a b", "x" * 70, "models"])
def test_a_name_that_is_none(refused, name):
    assert "is no bundle name" in refused("feature", name, 0)


@pytest.mark.parametrize("index", [-1, 64, 10**30])
def test_a_feature_that_is_not_there(refused, index):
    assert f"bundle 'tiny' has features 0 to 63; there is no feature {index}" in refused("feature", "tiny", index)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["feature", "tiny", "seven"], "argument index: invalid int value: 'seven'; see"),
        (["feature", "tiny"], "the following arguments are required: index"),
        (["fly"], "invalid choice: 'fly'"),
        ([], "the following arguments are required: COMMAND"),
        (["text", "tiny", "x", "--top", "0"], "argument --top: 0 is not at least 1"),
        (["text", "tiny", "x", "--what"], "unrecognized arguments: --what"),
        (["build", "x", "--preset", "other"], "argument --preset: invalid choice: 'other'"),
        (["build", "x", "--k", "many"], "argument --k: invalid int value"),
        (["build", "x", "--force", "--resume"], "not allowed with argument"),
        (["build", "tiny"], "there is a bundle 'tiny' already; --force builds it again"),
        (["build", "tiny", "--resume"], "there is a bundle 'tiny' and no unfinished build of it"),
        (["build", "x/y"], "is no bundle name"),
        (["build", "x", "--latents", "10", "--k", "11"], "k = 11 is more than the number of latents, 10"),
        (["build", "x", "--texts", "nowhere.txt"], "there is no file 'nowhere.txt'"),
        (["build", "x", "--hook", "layer 6"], "hook 'layer 6' is not understood"),
        (["build", "x", "--sae", "/nowhere"], "there is no SAE folder '/nowhere'"),
    ],
)
def test_wrong_arguments(refused, command, message):
    assert message in refused(*command)


@pytest.mark.parametrize("verbose", [[], ["--json"]])
def test_a_layer_that_the_model_lacks(refused, gpt2_folder, verbose):
    error = refused("build", "x", "--model", gpt2_folder, "--texts", "embedded", "--max-texts", 3, "--hook", "transformer.h.4", *verbose)
    assert "has 4 blocks (0 to 3); there is no blocks.4.hook_resid_post" in error


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the text is empty"),
        (b" \n\t ", "the text is empty"),
        ("\u2003\u00a0".encode(), "the text is empty"),
        (b"word " * 210_000, "longer than 40,000 characters"),
        (b"x" * 50_000, "50,000 characters, the limit here is 40,000"),
        (b"a b " * 9_000, "tokens, the limit here is 4,096"),
        (bytes(range(256)), "is no UTF-8 text (byte 128)"),
        (b"text\0" * 100, "binary data"),
        (b"half a pair \xed\xa0\x80", "is no UTF-8 text (byte 12)"),
    ],
)
def test_texts_that_cannot_be_read(refused, data, message):
    assert message in refused("text", "tiny", "-", stdin=data)


@pytest.mark.parametrize("text", ["", "  ", "half a pair \ud800", "\udcff\udcfe"])
def test_arguments_that_are_no_text(refused, text):
    assert ("empty" if not text.strip() else "lone surrogate") in refused("text", "tiny", text)


def flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


DAMAGE = {
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-7]),
    "gone": lambda p: p.unlink(),
    "flipped early": lambda p: flip(p, 0.01),
    "flipped late": lambda p: flip(p, 0.7),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damaged_file_is_noticed(refused, tiny_cache, tmp_path, monkeypatch, damage):
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path))
    files = read_manifest(tiny_cache / "tiny")["files"]
    for i, name in enumerate(files):
        copy = tmp_path / f"b{i}"
        shutil.copytree(tiny_cache / "tiny", copy)
        DAMAGE[damage](copy / read_manifest(copy)["folder"] / name)
        command = (("feature", copy.name, 1), ("metrics", copy.name), ("text", copy.name, "hello"))[i % 3]
        error = refused(*command)
        assert name in error
        assert "build it again with --force" in error


def test_a_flipped_bit_of_the_manifest_is_noticed(tiny_cache, tmp_path):
    shutil.copytree(tiny_cache / "tiny", tmp_path / "tiny")
    path, rng = tmp_path / "tiny" / MANIFEST, random.Random(0)
    whole = path.read_bytes()
    kept, noticed = json.loads(whole), 0
    for _ in range(150):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            found = Bundle(tmp_path / "tiny").manifest
        except BundleError as error:
            noticed += "\n" not in str(error)
        else:  # white space, or the key "checksum" itself
            assert {**found, "checksum": ""} == {**kept, "checksum": ""}
    assert noticed > 100
