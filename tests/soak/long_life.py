"""One app for a long time: python tests/soak/long_life.py [--reruns 2000] [--texts 500] [--json]

One process serves visitor after visitor: first texts, all different, then reruns of pages with ever other features and texts. What the
process holds of its own is noted twenty times in each part and must be flat over the last half, when caches are full. In the end, when the
two minutes are over for which Streamlit keeps the session of a closed page (and three files for each), threads and open files must be as
many as in the beginning. Exit status 1 if anything is not so.

Memory is judged by its slope (Theil-Sen: the median over all pairs of notes), because the allocator gives memory back in steps; two
allocator arenas keep it from spreading over as many as there are threads.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]

import bundles  # noqa: E402
from bundles import Held, Server  # noqa: E402
from visit import Visit  # noqa: E402
from visitors import draw_walk, texts_of  # noqa: E402

from sae_explore.bundles.bundle import open_bundle  # noqa: E402

NOTES = 20  # of each part
MOST_SLOPE = 1.0  # megabytes per 100 reruns or texts
KEPT = 125.0  # seconds after which Streamlit has no more use for a closed page's session
MORE_THREADS = 2  # one that is just ending, and one of the server's pool
PAGES = ("", "feature", "lens", "browse", "quality", "whatif", "lists", "about")
PER_VISIT = 50  # reruns or texts of one visitor


def slope(held: list[Held], every: float) -> float:
    """Megabytes per 100, over the last half of the notes."""
    last = [note.megabytes for note in held[len(held) // 2 :]]
    pairs = [(b - a) / (j - i) for (i, a), (j, b) in itertools.combinations(enumerate(last), 2)]
    return statistics.median(pairs) * 100 / every if pairs else 0.0


def texts(server: Server, name: str, n: int, note: Callable[[int], None]) -> list[str]:
    """Have `n` different texts read on a bundle; what the pages complained of."""
    problems: list[str] = []
    words = [word for text in texts_of() for word in text.split()]
    rng = random.Random(0)
    for first in range(0, n, PER_VISIT):
        with Visit(server.url) as visit:
            problems += visit.open("", bundle=name).problems
            for i in range(first, min(n, first + PER_VISIT)):
                problems += visit.submit(f"{i} " + " ".join(rng.choices(words, k=40))).problems
                note(i + 1)
    return problems


def reruns(server: Server, cache: Path, n: int, note: Callable[[int], None]) -> list[str]:
    """Have pages drawn `n` times: walks over all pages, with ever other features and texts."""
    problems: list[str] = []
    opened = [open_bundle(p.parent.name, cache=cache) for p in sorted(cache.glob("*/manifest.json"))]
    rng, said, done = random.Random(1), texts_of(), 0
    while done < n:
        with Visit(server.url) as visit:
            for step in draw_walk(opened, said, min(PER_VISIT, n - done), rng):
                problems += step.take(visit).problems
                done += 1
                note(done)
    return problems


def part(server: Server, n: int, run: Callable[[Callable[[int], None]], list[str]]) -> dict:
    """Run a part and judge what was held meanwhile."""
    every, held = max(1, n // NOTES), []

    def note(done: int) -> None:
        if done % every == 0:
            held.append(server.held())

    problems = run(note)
    found = slope(held, every)
    if found > MOST_SLOPE:
        problems.append(f"memory grows by {found:.2f} MB per 100, more than {MOST_SLOPE}")
    series = [[round(h.megabytes, 1), h.threads, h.files] for h in held]
    return {"number": n, "megabytes_per_100": round(found, 2), "held": series, "problems": problems[:10]}


def one_visit(server: Server, names: list[str]) -> Held:
    """What is held while one visitor has opened every page of every bundle, the second of two: the end of the first lets Streamlit forget
    those before."""
    for _ in range(2):
        with Visit(server.url) as visit:
            for name in names:
                for page in PAGES:
                    visit.open(page, bundle=name, feature="1", text="A first text.")
            held = server.held()
    return held


def left(before: Held, after: Held) -> list[str]:
    """Threads and files that are more after all visits than before them."""
    said = "after all visits there are {} {}, before there were {}"
    found = [said.format(after.files, "open files", before.files)] if after.files > before.files else []
    return found + ([said.format(after.threads, "threads", before.threads)] if after.threads > before.threads + MORE_THREADS else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reruns", type=int, default=2_000, help="of pages (default: 2000)")
    parser.add_argument("--texts", type=int, default=500, help="different ones (default: 500)")
    parser.add_argument("--small", action="store_true", help="tiny bundles only, without the demo, and models on one thread")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse_args()
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="long-life-"))
    os.environ |= {"MALLOC_ARENA_MAX": "2"} | ({"OMP_NUM_THREADS": "1"} if args.small else {})  # of the app that is started here
    try:
        cache = bundles.make_cache(folder, demo=not args.small)
        with bundles.running(cache) as server:
            names = sorted(p.parent.name for p in cache.glob("*/manifest.json"))
            name = "demo" if "demo" in names else names[0]
            before = one_visit(server, names)
            found = {
                "texts": part(server, args.texts, lambda note: texts(server, name, args.texts, note)),
                "reruns": part(server, args.reruns, lambda note: reruns(server, cache, args.reruns, note)),
            }
            time.sleep(KEPT)
            after = one_visit(server, names)
            found["reruns"]["problems"] += left(before, after)
            if "Traceback" in (log := server.log.read_text()):
                found["reruns"]["problems"].append(f"the app's log has a traceback: {log[log.index('Traceback') :][:1_500]}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    problems = [f"{name}: {problem}" for name, of in found.items() for problem in of["problems"]]
    if args.json:
        print(json.dumps({**found, "before": before, "after": after, "seconds": round(time.monotonic() - began, 1)}))
    else:
        for what, of in found.items():
            print(f"{of['number']} {what}: {of['megabytes_per_100']} MB per 100 over the last half, allowed {MOST_SLOPE}")
            print(f"  megabytes, threads, open files: {of['held']}")
        print(f"one visitor before: {before}; after: {after}")
        print("\n".join(problems) or "flat, and nothing left", f"({time.monotonic() - began:.0f} s)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
