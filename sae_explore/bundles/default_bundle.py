"""Which bundle opens first: the one that was built last, else GPT-2, else the demo, else the first by name."""

from __future__ import annotations

import os
from pathlib import Path

from sae_explore.files.bundle_files import bundle_names

FILE = ".default"  # in the cache folder: the name of the bundle that was built last
PREFERRED = ("gpt2", "demo")


def ordered_names(cache: Path) -> list[str]:
    """Names of the bundles in a cache folder, the one that opens first in front."""
    first = (_built_last(cache), *PREFERRED)
    return sorted(bundle_names(cache), key=lambda name: (first.index(name) if name in first else len(first), name))


def make_default(cache: Path, name: str) -> None:
    """Let this bundle open first from now on."""
    partial = cache / f"{FILE}.partial"
    partial.write_text(name + "\n", encoding="utf-8")
    os.replace(partial, cache / FILE)


def _built_last(cache: Path) -> str:
    try:
        return (cache / FILE).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
