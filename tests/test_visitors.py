"""The visitors of `soak/visitors.py`, few of them: answers beside others, and beside a build, are those given alone; caches are bounded."""

import ast
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "soak"))

import bundles
import long_life
import visitors
from bundles import Held
from visit import Answer

pytest_plugins = ["bundle_fixtures"]
PACKAGE = Path(__file__).resolve().parents[1] / "sae_explore"


@pytest.mark.skipif(os.name == "nt", reason="counts open files")
def test_six_visitors_at_once_see_what_each_sees_alone(tiny_cache, gpt2_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cache = shutil.copytree(tiny_cache, tmp_path / "cache")
    with bundles.running(cache) as server:
        found = visitors.soak(
            server, cache, gpt2_folder.parent, visitors=6, seconds=0, seed=2, steps=2, texts=visitors.texts_of(60)
        )  # fmt: skip
    assert found["problems"] == []
    assert found["bundles"] == ["planted", "tiny"]
    assert found["beside_build"]["answers"] == found["answers_alone"] >= 12


def test_another_answer_is_noticed_and_the_note_that_a_build_runs_is_not():
    alone = Answer({(0, 1): b"text", (1, 0): b"model", (1, 4): b"offer"}, ())
    assert Answer({**alone.elements, (1, 4): b"A bundle is being built: 3%", (1, 5): b"more"}, ()).differs_from(alone) == []
    assert Answer({**alone.elements, (0, 1): b"texts"}, ()).differs_from(alone) == ["0.1: b'texts' instead of b'text'"]
    assert Answer({**alone.elements, (0, 2): b"x"}, ()).differs_from(alone) == ["0.2: b'x' instead of nothing"]
    assert Answer({**alone.elements, (1, 0): b"x"}, ()).differs_from(alone) == ["1.0: b'x' instead of b'model'"]


def test_what_grows_is_noticed():
    flat = [Held(100 + (i % 3), 12, 50) for i in range(20)]
    assert abs(long_life.slope(flat, 100)) < 0.5
    assert long_life.slope([Held(100 + 2 * i, 12, 50) for i in range(20)], 50) == 4.0
    assert long_life.slope([Held(300 if i < 10 else 400, 12, 50) for i in range(20)], 100) == 0.0  # caches that fill in the first half
    assert long_life.left(Held(1, 12, 50), Held(900, 13, 50)) == []
    assert long_life.left(Held(1, 12, 50), Held(1, 12, 51)) == ["after all visits there are 51 open files, before there were 50"]
    assert long_life.left(Held(1, 12, 50), Held(1, 15, 50)) == ["after all visits there are 15 threads, before there were 12"]


def test_every_cache_is_bounded():
    """`st.cache_*` with max_entries, `lru_cache` with maxsize; `cache` only on what has no arguments."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for function in (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef)):
            for decorator in map(ast.unparse, function.decorator_list):
                name, _, options = decorator.partition("(")
                kind = name.split(".")[-1]
                if kind in ("cache_data", "cache_resource", "lru_cache", "cache"):
                    wanted = {"lru_cache": "maxsize=", "cache": None}.get(kind, "max_entries=")
                    found.append((path.name, function.name))
                    bounded = wanted in options and "=None" not in options if wanted else not function.args.args
                    assert bounded, f"{path.name}: {function.name}"
    assert len(found) > 20
