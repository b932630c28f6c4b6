"""How long a click takes that needs no forward pass: python -m benchmarks.clicks [--n 50] [--json]

Server side: from the request to the page drawn, the whole script of the page, with Streamlit's AppTest, each on another feature, text or
search and in a session of its own; on the demo and on a synthetic bundle of 24,576 latents over a million tokens. The first page of each kind,
which fills caches, is left out. In a browser (`--browser`, needs Chromium): from the click on "Next" of the page Feature until its new title
is painted, and the time that the page's main thread works for the whole click, which depends less on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from app_driver import open_page  # noqa: E402

from benchmarks.machine import describe, print_table  # noqa: E402
from sae_explore import resources  # noqa: E402
from sae_explore.bench_data import synthetic_bundle  # noqa: E402
from sae_explore.bundles.bundle import Bundle  # noqa: E402
from sae_explore.terminal import say  # noqa: E402

LATENTS, TOKENS = 24_576, 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=50, help="clicks of each kind")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of the synthetic bundle")
    parser.add_argument("--latents", type=int, default=LATENTS, help="of the synthetic bundle")
    parser.add_argument("--browser", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    resources.warm = lambda _bundle: None  # a model that is on this machine would be loaded behind the pages
    machine, rows = describe(os.cpu_count() or 1), []
    with tempfile.TemporaryDirectory() as folder:
        made = synthetic_bundle(Path(folder), latents=options.latents, tokens=options.tokens)
        for cache, name, bound in ((ROOT / "cache", "demo", 300), (made.folder.parent, made.name, 500)):
            os.environ["SAE_EXPLORE_CACHE"] = str(cache)
            rows += [{"bundle": name, "bound_ms": bound, **row} for row in _server(Bundle(cache / name), options.n)]
        if options.browser:
            os.environ["SAE_EXPLORE_CACHE"] = str(ROOT / "cache")
            rows += [{"bundle": "demo", "bound_ms": 300, **row} for row in _browser(options.n)]
    if options.json:
        sys.stdout.write(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
        return
    say(machine)
    print_table(
        ["click", "bundle", "median ms", "p95 ms", "bound"],
        [[r["click"], r["bundle"], f"{r['median_ms']:.0f}", f"{r['p95_ms']:.0f}", str(r["bound_ms"])] for r in rows],
    )


def _server(bundle: Bundle, n: int) -> Iterator[dict]:
    rng = np.random.default_rng(0)
    live = np.flatnonzero(bundle.features["count"].to_numpy() > 0)
    features = rng.choice(live, n + 1, replace=False)
    documents = rng.choice(bundle.n_documents, n + 1)
    tokens = rng.choice(np.unique(np.asarray(bundle.ids[:200_000])), n + 1)

    def searches(by: str, words: Callable[[int], str]) -> Callable[[int], object]:
        return lambda i: open_page("browse", bundle.name, find=by, q=words(i))

    clicks: dict[str, Callable[[int], object]] = {
        "a feature": lambda i: open_page("feature", bundle.name, feature=str(features[i])),
        "a stored text": lambda i: open_page("", bundle.name, doc=bundle.documents["id"][int(documents[i])].as_py()),
        "its lens": lambda i: open_page("lens", bundle.name, feature=str(features[i])),
        "find by label": searches("label", lambda i: str(bundle.features["label"][int(features[i])].as_py())[:20]),
        "find by token": searches("token", lambda i: bundle.vocabulary.text_of(int(tokens[i])).strip() or "the"),
        "find by lens token": searches("lens", lambda i: bundle.vocabulary.text_of(int(tokens[i])).strip() or "the"),
        "find by category": searches("category", lambda i: bundle.categories[i % len(bundle.categories)]),
        "find similar": searches("similar", lambda i: str(features[i])),
        "quality": lambda i: open_page("quality", bundle.name),
    }
    if bundle.map_xy is not None:
        clicks["a point of the map"] = lambda i: open_page("map", bundle.name, feature=str(features[i]))
    for what, click in clicks.items():
        click(n)
        yield _row(what, [_milliseconds(click, i) for i in range(n)])


# A frame after the one in which the title has changed: what was drawn in between is on the screen.
_PAINTED = """
async (title) => {
  const start = await new Promise((done) => addEventListener("click", () => done(performance.now()), { capture: true, once: true }));
  const frame = () => new Promise(requestAnimationFrame);
  while (document.querySelector("[data-testid=stMain] h1")?.textContent !== title) await frame();
  await frame();
  return performance.now() - start;
}
"""


def _browser(n: int) -> Iterator[dict]:
    """Clicks on "Next" in Chromium: until the next feature's title is painted, and the main thread's work for the whole page."""
    from app_server import CHROMIUM, FLAGS, running_app
    from playwright.sync_api import sync_playwright

    with running_app(ROOT / "cache") as app, sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS).new_page()
        page.goto(f"{app.url}/feature?feature=100")
        page.get_by_role("heading", name="Feature 100").wait_for(timeout=60_000)
        page.wait_for_timeout(3_000)
        browser = page.context.new_cdp_session(page)
        browser.send("Performance.enable", {"timeDomain": "threadTicks"})

        def worked() -> float:
            return next(m["value"] for m in browser.send("Performance.getMetrics")["metrics"] if m["name"] == "TaskDuration")

        painted, work = [], []
        for feature in range(101, 101 + n):
            before = worked()
            page.evaluate(f"window.painted = ({_PAINTED})('Feature {feature}'); 0")
            page.get_by_role("button", name="Next").click()
            painted.append(page.evaluate("window.painted"))
            page.wait_for_timeout(1_000)  # the rest of the page: a visitor looks at it before the next click
            work.append(1e3 * (worked() - before))
    yield _row("next feature, in Chromium", painted)
    yield _row("its work in the browser", work)


def _milliseconds(click: Callable[[int], object], i: int) -> float:
    start = time.perf_counter()
    click(i)
    return 1e3 * (time.perf_counter() - start)


def _row(what: str, times: list[float]) -> dict:
    return {"click": what, "median_ms": float(np.median(times)), "p95_ms": float(np.percentile(times, 95)), "n": len(times)}


if __name__ == "__main__":
    main()
