"""One process that opens a bundle and asks for cards, without torch: python -m benchmarks.open_cards FOLDER N

Prints one line of JSON: when the first card was there (seconds since the epoch), seconds to open, milliseconds of each of N random
cards, each asked once, and of the densest one, and the memory that this process holds alone after the first card and at the end.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import private_memory
from sae_explore.bundles.bundle import Bundle


def main(folder: str, n: str) -> None:
    start = time.perf_counter()
    bundle = Bundle(Path(folder))
    opened = time.perf_counter() - start
    count = bundle.features["count"].to_numpy()
    live = np.flatnonzero(count > 0)
    bundle.card(int(live[0]))
    found = {"first_card_at": time.time(), "open_s": opened, "memory_first": private_memory()}
    chosen = np.random.default_rng(0).permutation(live[1:])[: int(n)].tolist()
    found["cards_ms"] = [_milliseconds(bundle, f) for f in chosen]
    found["densest_ms"] = _milliseconds(bundle, int(np.argmax(count)))
    found["memory"], found["torch"] = private_memory(), "torch" in sys.modules
    sys.stdout.write(json.dumps(found) + "\n")


def _milliseconds(bundle: Bundle, feature: int) -> float:
    start = time.perf_counter()
    bundle.card(feature)
    return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    main(*sys.argv[1:])
