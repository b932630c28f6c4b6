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
    reached = reached_from("sae_explore.bundles.bundle")
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


# From the top down; the README has the picture.
PACKAGES = (
    "notebook", "explore", "drawing", "building", "whatif", "features", "bundles", "activations", "texts", "saes", "models", "files",
)  # fmt: skip


def test_packages_import_only_those_below_them():
    assert set(PACKAGES) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"views"}
    for name, path in MODULES.items():
        home = name.split(".")[1]
        if home in PACKAGES:
            used = {i.split(".")[1] for i in imports_of(path) if i.startswith("sae_explore.")} & set(PACKAGES)
            assert not used & set(PACKAGES[: PACKAGES.index(home)]), name


def test_no_module_imports_itself_by_way_of_others():
    uses = {
        name: {f"{i}.__init__" if f"{i}.__init__" in MODULES else i for i in imports_of(path)} & set(MODULES)
        for name, path in MODULES.items()
        if not name.endswith("__init__")
    }
    done: set[str] = set()

    def follow(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name in done:
            return
        for other in sorted(uses.get(name, ())):
            follow(other, (*way, name))
        done.add(name)

    for name in uses:
        follow(name, ())


def test_no_file_is_too_long_to_read_in_one_sitting():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_the_readme_names_every_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = next(action.choices for action in _parser()._actions if hasattr(action, "choices") and isinstance(action.choices, dict))
    assert [c for c in commands if f"python -m sae_explore {c}" not in readme] == []
    for module in ("max_activating_examples", "decoder_analysis"):
        assert f"python -m sae_explore.{module}" in readme


def test_every_cache_is_bounded():
    """`cache` alone, which keeps everything, stands before functions without arguments only."""
    found, unbounded = 0, []
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for decorator in getattr(node, "decorator_list", ()):
                call = decorator if isinstance(decorator, ast.Call) else None
                kind = ast.unparse(call.func if call else decorator).split(".")[-1]
                if kind not in ("cache", "lru_cache", "cache_data", "cache_resource"):
                    continue
                found += 1
                limits = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)} if call else {}
                most = limits.get("maxsize" if kind == "lru_cache" else "max_entries")
                arguments = node.args.args or node.args.kwonlyargs
                if arguments if kind == "cache" else not (type(most) is int and 0 < most <= 4_096):
                    unbounded.append(f"{name}.{node.name}")
    assert found > 20
    assert unbounded == []
