"""The README's Python example runs as it stands, and `import sae_explore` stays cheap."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sae_explore

pytest_plugins = ["bundle_fixtures"]
ROOT = Path(__file__).resolve().parents[1]


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_has_an_example():
    assert len(examples()) == 1
    assert "from sae_explore import" in examples()[0]


def test_the_example_runs(tiny_cache, tmp_path, monkeypatch, capsys):
    shutil.copytree(tiny_cache / "tiny", tmp_path / "cache" / "demo")
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(compile(examples()[0], "README.md", "exec"), scope)
    bundle, card = scope["bundle"], scope["card"]
    said = capsys.readouterr().out
    assert bundle.label(card.ref.feature) in said
    assert f"{card.top[0].max:.2f}" in said
    assert card.positive[0].token in said
    assert str(scope["trace"].hits()[0].feature) in said
    assert len(scope["table"]) == 64
    assert "<h2>Feature" in (tmp_path / "features.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import sae_explore; sae_explore.__version__, dir(sae_explore)", "numpy pandas torch streamlit pyarrow"),
        ("from sae_explore import open_bundle", "torch transformers streamlit plotly"),
        ("import sae_explore.notebook.notes, sae_explore.features.quality", "torch streamlit plotly"),
    ],
)
def test_importing_is_cheap(code, absent):
    check = f"import sys; {code}; print([m for m in {absent.split()!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_sleep_unless_that_is_chosen(given, expected):
    """It must be said before PyTorch is loaded, which `import sae_explore` never does."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"} | (
        {"OMP_WAIT_POLICY": given} if given else {}
    )
    code = "import os, sys, sae_explore; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{expected} False\n"


def test_names_are_found_and_others_refused():
    assert sae_explore.open_bundle is sys.modules["sae_explore.bundles.bundle"].open_bundle
    assert {"Bundle", "Tracer", "open_bundle"} <= set(dir(sae_explore))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = sae_explore.nothing
