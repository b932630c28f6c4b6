"""Commands run in this process over the tiny bundles: `pytest_plugins = ["bundle_fixtures", "cli_fixtures"]` in a test module."""

import io
import sys

import pytest

from sae_explore import command_line
from sae_explore.__main__ import main


@pytest.fixture
def cli(tiny_cache, monkeypatch, capsys):
    """A function: run a command over the tiny bundles; (exit code, stdout, stderr)."""
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tiny_cache))

    def run(*arguments: object, stdin: bytes | None = None, entry=main) -> tuple[int, str, str]:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = command_line.run(entry, [str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def refused(cli):
    """A function: run a command that must be refused; its message."""

    def run(*arguments: object, **options) -> str:
        code, out, err = cli(*arguments, **options)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert err.rstrip("\n").isprintable()
        return err

    return run
