"""Many visitors of one app at once: python tests/soak/visitors.py [--visitors 16] [--seconds 120] [--seed 0] [--json]

Each visitor walks over pages, own texts, stored texts, features and bundles, in sessions of the app's own protocol (`visit`), again and
again from the beginning. Every walk is made alone before; then the app forgets everything, so that all come while its models are loading
and no answer is one that was kept: each must be the same, element by element. Half of the time another visitor's build runs, and nobody
may wait for it. What the app's process holds is looked at all the while. Exit status 1 if anything was not so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]

import bundles  # noqa: E402
import tiny_models  # noqa: E402
from bundles import Held, Server  # noqa: E402
from visit import Answer, Visit  # noqa: E402

from sae_explore.building import build_jobs  # noqa: E402
from sae_explore.bundles.bundle import Bundle, open_bundle  # noqa: E402

STEPS = 8  # pages of a walk
LOOK = 5.0  # seconds between two looks at what the process holds
MOST_MEGABYTES = 100.0  # that the process may grow by from the second quarter of the visits to the last
PLAIN = ("browse", "quality", "about", "lists")  # pages without anything chosen
BUILD = "built"  # the name of the build that runs meanwhile


class Step(NamedTuple):
    """Open a page with an address, or have a text analysed on the page that is open."""

    page: str
    params: tuple[tuple[str, str], ...] = ()
    submitted: str | None = None

    def take(self, visit: Visit) -> Answer:
        return visit.open(self.page, **dict(self.params)) if self.submitted is None else visit.submit(self.submitted)


class Crowd(NamedTuple):
    """What came of many visitors at once."""

    seconds: list[float]  # that each answer took
    problems: list[str]


# ---- walks -------------------------------------------------------------------------------------------------------------


def draw_walk(opened: list[Bundle], texts: list[str], steps: int, rng: random.Random) -> list[Step]:
    """A walk of at least that many steps. No address comes twice: the app takes one that comes back quickly for the browser's echo."""
    walk: list[Step] = []
    while len(walk) < steps:
        bundle = rng.choice(opened)
        kind = rng.choice(("own", "form", "stored", "feature", "lens", "whatif", "plain"))
        feature, said = str(rng.randrange(bundle.d_sae)), rng.choice(texts)
        if kind == "own":
            step = _step("", bundle, text=said)
        elif kind == "stored":
            document = bundle.documents["id"][rng.randrange(bundle.n_documents)].as_py()
            step = _step("", bundle, doc=document, feature=feature)
        elif kind == "feature":
            step = _step("feature", bundle, feature=feature)
        elif kind == "lens":
            step = _step("lens", bundle, features=f"{feature},{rng.randrange(bundle.d_sae)}")
        elif kind == "whatif":
            step = _step("whatif", bundle, text=said[:120], feature=feature)
        else:
            step = _step("" if kind == "form" else rng.choice(PLAIN), bundle)
        if step not in walk:
            walk += [step, Step("", submitted=said)] if kind == "form" else [step]
    return walk


def _step(page: str, bundle: Bundle, **params: str) -> Step:
    return Step(page, (("bundle", bundle.name), *params.items()))


def alone(url: str, walk: list[Step]) -> list[Answer]:
    """The answers on a walk that nobody else disturbs."""
    with Visit(url) as visit:
        return [step.take(visit) for step in walk]


def crowd(url: str, walks: list[list[Step]], expected: list[list[Answer]], seconds: float) -> Crowd:
    """All walks at once on an app with empty caches, each again and again for that long, and at least once."""
    with Visit(url) as visit:
        visit.forget()
    took: list[float] = []
    problems: list[str] = []
    end, start = time.monotonic() + seconds, threading.Barrier(len(walks))

    def wander(walk: list[Step], answers: list[Answer]) -> None:
        start.wait()
        while True:
            with Visit(url) as visit:
                for step, answer in zip(walk, answers, strict=True):
                    began = time.monotonic()
                    found = step.take(visit)
                    took.append(time.monotonic() - began)
                    problems.extend(f"{step}: {differing}" for differing in found.differs_from(answer)[:3])
            if time.monotonic() > end:
                return

    with ThreadPoolExecutor(len(walks)) as pool:
        for done in [pool.submit(wander, *pair) for pair in zip(walks, expected, strict=True)]:
            done.result()
    return Crowd(took, problems)


# ---- what is held ------------------------------------------------------------------------------------------------------


class Watch:
    """Looks every few seconds at what the app's process holds; use as a context manager."""

    def __init__(self, server: Server):
        self.seen: list[Held] = []
        self._server, self._stop = server, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._stop.is_set():
            self.seen.append(self._server.held())
            self._stop.wait(LOOK)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def growth(self) -> float:
        """Megabytes from the second quarter of the looks to the last."""
        quarter = max(1, len(self.seen) // 4)
        megabytes = [held.megabytes for held in self.seen]
        return statistics.mean(megabytes[-quarter:]) - statistics.mean(megabytes[quarter : 2 * quarter] or megabytes[:1])


# ---- all of it ---------------------------------------------------------------------------------------------------------


def soak(
    server: Server, cache: Path, model: Path, *, visitors: int, seconds: float, seed: int, steps: int = STEPS, texts: list[str]
) -> dict:
    """Walk alone, then all at once: half of the time as it is, half of the time with a build. `seconds` = 0: once, with a build."""
    rng = random.Random(seed)
    names = sorted(p.parent.name for p in cache.glob("*/manifest.json"))
    opened = [open_bundle(name, cache=cache) for name in names]
    walks = [draw_walk(opened, texts, steps, rng) for _ in range(visitors)]
    expected = [alone(server.url, walk) for walk in walks]
    problems = [
        f"alone, {step}: {p}" for w, walk in enumerate(walks) for step, a in zip(walk, expected[w], strict=True) for p in a.problems
    ]
    with Watch(server) as watch:
        without = crowd(server.url, walks, expected, seconds / 2) if seconds else Crowd([], [])
        request = bundles.request_of(BUILD, model, epochs=1_000_000, latents=512)
        build_jobs.start(request, cache=cache)
        beside = crowd(server.url, walks, expected, seconds / 2)
        job = build_jobs.job_named(cache, BUILD)
        build_jobs.cancel(cache, BUILD)
        build_jobs.remove(cache, BUILD)
    if not job.running:
        problems.append(f"the build ended before the visits: {job.state} {job.error}")
    if seconds and watch.growth() > MOST_MEGABYTES:
        problems.append(f"the process grew by {watch.growth():.0f} MB, more than {MOST_MEGABYTES:.0f}")
    log = server.log.read_text()
    if "Traceback" in log:
        problems.append(f"the app's log has a traceback: {log[log.index('Traceback') :][:1_500]}")
    problems += without.problems + beside.problems
    return {
        "visitors": visitors,
        "bundles": names,
        "answers_alone": sum(map(len, expected)),
        "without_build": _figures(without),
        "beside_build": _figures(beside),
        "growth_megabytes": round(watch.growth(), 1),
        "held": [[round(h.megabytes), h.threads, h.files] for h in watch.seen],
        "problem_count": len(problems),
        "problems": problems[:20],
    }


def _figures(found: Crowd) -> dict:
    if not found.seconds:
        return {"answers": 0}
    return {
        "answers": len(found.seconds),
        "median_seconds": round(statistics.median(found.seconds), 2),
        "longest_seconds": round(max(found.seconds), 2),
    }


def texts_of(n: int = 400) -> list[str]:
    """Beginnings of paragraphs, cut anywhere."""
    return [text[: 80 + 7 * i % 300] for i, text in enumerate(tiny_models.paragraphs()[:n])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--visitors", type=int, default=16, help="at once (default: 16)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of visits (default: 120)")
    parser.add_argument("--seed", type=int, default=0, help="of the walks (default: 0)")
    parser.add_argument("--small", action="store_true", help="tiny bundles only, without the demo, and models on one thread")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse_args()
    if args.small:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the app that is started here
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="visitors-"))
    try:
        cache = bundles.make_cache(folder, demo=not args.small)
        with bundles.running(cache) as server:
            found = soak(server, cache, folder, visitors=args.visitors, seconds=args.seconds, seed=args.seed, texts=texts_of())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found["seconds"] = round(time.monotonic() - began, 1)
    if args.json:
        print(json.dumps(found))
    else:
        print(f"{args.visitors} visitors of {', '.join(found['bundles'])}; {found['answers_alone']} answers alone, then at once:")
        for name in ("without_build", "beside_build"):
            print(f"  {name.replace('_', ' ')}: " + ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in found[name].items()))
        print(f"megabytes, threads, open files every {LOOK:.0f} s: {found['held']}")
        print(f"growth {found['growth_megabytes']} MB, allowed {MOST_MEGABYTES:.0f}; {found['seconds']} s in all")
        print("\n".join(found["problems"]) or "every answer as alone")
    return 1 if found["problem_count"] else 0


if __name__ == "__main__":
    sys.exit(main())
