"""Rules of the structure: who may import what, which files make HTML or keep caches, and that the README names every command."""

import ast
from pathlib import Path

import pytest

from sae_explore.__main__ import _parser

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sae_explore"
MODULES = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")}
HEAVY = {"torch", "transformers", "datasets", "huggingface_hub"}


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Names of the modules that a file imports, `from a import b` as both a and a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def reached_from(name: str) -> set[str]:
    """Modules that importing this one imports, ours followed, foreign ones by their first name."""
    seen, todo = set(), [name]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        path = MODULES.get(current) or MODULES.get(f"{current}.__init__")
        if path is None:
            seen.add(current.split(".")[0])
            continue
        todo += [
            i
            for i in imports_of(path, top_level_only=True)
            if not i.startswith("sae_explore") or i in MODULES or f"{i}.__init__" in MODULES
        ]
    return seen


def test_only_resources_and_views_import_streamlit():
    users = {name for name, path in MODULES.items() if any(i.split(".")[0] == "streamlit" for i in imports_of(path))}
    allowed = {name for name in MODULES if name == "sae_explore.resources" or name.startswith("sae_explore.views.")}
    assert users <= allowed
    assert "sae_explore.resources" in users


def test_only_resources_keeps_caches():
    using = {name for name, path in MODULES.items() if "st.cache_" in path.read_text(encoding="utf-8")}
    assert using == {"sae_explore.resources"}


@pytest.mark.parametrize("page", sorted(p.stem for p in (PACKAGE / "views").glob("*.py") if p.stem != "__init__"))
def test_the_way_of_one_feature_imports_no_torch(page):
    reached = reached_from(f"sae_explore.views.{page}")
    assert len(reached) > 1
    assert not reached & HEAVY


def test_opening_a_bundle_imports_no_torch_and_no_streamlit():
    reached = reached_from("sae_explore.bundle")
    assert "numpy" in reached
    assert not reached & (HEAVY | {"streamlit"})


def test_imports_point_one_way():
    """The engine does not know the application, and types know nothing but errors."""
    application = {"sae_explore.resources", "sae_explore.__main__", "sae_explore.command_line"} | {n for n in MODULES if ".views" in n}
    for name, path in MODULES.items():
        if name in application or name.endswith(("max_activating_examples", "decoder_analysis", "methods")):
            continue
        assert not imports_of(path) & application, name
    assert {i for i in imports_of(MODULES["sae_explore.types"]) if i.startswith("sae_explore")} <= {
        "sae_explore.errors",
        "sae_explore.errors.InputError",
    }


def test_no_file_is_too_long_to_read_in_one_sitting():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_the_readme_names_every_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = next(action.choices for action in _parser()._actions if hasattr(action, "choices") and isinstance(action.choices, dict))
    assert [c for c in commands if f"python -m sae_explore {c}" not in readme] == []
    for module in ("max_activating_examples", "decoder_analysis"):
        assert f"python -m sae_explore.{module}" in readme
