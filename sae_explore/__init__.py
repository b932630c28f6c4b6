"""What do the features of a sparse autoencoder mean? Bundles, two methods and an explorer.

from sae_explore import Tracer, open_bundle

The names are imported when they are first used: `import sae_explore` costs nothing, and only `Tracer` needs PyTorch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_explore.bundles.bundle import Bundle, open_bundle
    from sae_explore.bundles.tracer import Tracer

# Read by OpenMP when PyTorch is loaded: threads that wait for one another sleep. By default they spin, and where something else runs on
# one of two cores (another visitor's text, a build) each waits for a core that the other one burns: a text took 19 s instead of 3.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["Bundle", "Tracer", "open_bundle"]
__version__ = "0.1.0"

_HOMES = {"Bundle": "sae_explore.bundles.bundle", "open_bundle": "sae_explore.bundles.bundle", "Tracer": "sae_explore.bundles.tracer"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
