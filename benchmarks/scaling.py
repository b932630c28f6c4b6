"""How the figures grow with the corpus: python -m benchmarks.scaling

Opening: synthetic bundles (`bench_data.synthetic_bundle`) of 100 thousand to 10 million tokens, 24,576 latents, 32 active on a token; each is
opened by a process of its own, once after its files were dropped from the system's cache of files and once again.
Building: the store stage of a real build on a full-size GPT-2 with random weights, for several numbers of tokens.
Everything lies in a temporary folder, one bundle at a time, and is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.inputs import Setup, make_inputs
from benchmarks.machine import describe, print_table
from benchmarks.our_side import measured_build
from sae_explore import command_line
from sae_explore.bench_data import synthetic_bundle
from sae_explore.building.build_request import BuildRequest
from sae_explore.command_line import Parser, positive
from sae_explore.errors import ExploreError
from sae_explore.terminal import say

ROOT = Path(__file__).resolve().parents[1]
OPENED = (100_000, 1_000_000, 10_000_000)
BUILT = (8_128, 16_256, 32_512, 65_024)
LATENTS = 24_576
CARDS = 400
DOCUMENT = 100  # tokens of a document of a synthetic bundle
BYTES_A_TOKEN = 700  # on disk at most, while a synthetic bundle is made: 32 active latents, sorted in both orders, and the text
_SPARE = 1 << 30


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m benchmarks.scaling", description="how opening and building grow with the corpus")
    parser.add_argument("--tokens", type=positive, nargs="+", default=list(OPENED), metavar="N", help="of the synthetic bundles")
    parser.add_argument("--build-tokens", type=positive, nargs="+", default=list(BUILT), metavar="N", help="of the real builds")
    parser.add_argument("--only", choices=("open", "build"), help="one of the two curves")
    parser.add_argument("--latents", type=positive, default=LATENTS, metavar="N")
    parser.add_argument("--cards", type=positive, default=CARDS, metavar="N", help="random cards asked for")
    parser.add_argument("--layers", type=positive, default=12, metavar="N", help="of the random model, as the next two")
    parser.add_argument("--width", type=positive, default=768, metavar="N")
    parser.add_argument("--heads", type=positive, default=12, metavar="N")
    parser.add_argument("--hook", default="blocks.6.hook_resid_post")
    parser.add_argument("--threads", type=positive, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="of the builds; cpu: processor time, with --threads 1")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    found = {"machine": describe(args.threads), "open": [], "build": []}
    if args.only != "build":
        found["open"] = [opened(tokens, latents=args.latents, d_in=args.width, cards=args.cards) for tokens in sorted(args.tokens)]
    if args.only != "open":
        found["build"] = built(args)
    if args.json:
        command_line.print_json(found)
    else:
        _print(found, args.latents)


# ---- opening -----------------------------------------------------------------------------------------------------------


def opened(tokens: int, *, latents: int, d_in: int, cards: int) -> dict:
    """One row of the opening curve. ExploreError if the disk is too small."""
    tokens = max(DOCUMENT, tokens // DOCUMENT * DOCUMENT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        needed, free = tokens * BYTES_A_TOKEN + 8 * latents * d_in + _SPARE, shutil.disk_usage(folder).free
        if free < needed:
            raise ExploreError(
                f"a bundle of {tokens:,} tokens needs {needed / 1e9:.1f} GB in {folder.parent}, which has {free / 1e9:.1f} GB; "
                "set TMPDIR to a larger disk or ask for fewer --tokens"
            )
        start = time.perf_counter()
        bundle = synthetic_bundle(folder, latents=latents, tokens=tokens, d_in=d_in).folder
        made = time.perf_counter() - start
        shutil.rmtree(folder / "parts")
        files = [path for path in bundle.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        for path in files:
            _drop_from_cache(path)
        cold, warm = (_asked(bundle, cards) for _ in range(2))
    return {
        "tokens": tokens,
        "latents": latents,
        "made_s": made,
        "bundle_mb": size / 1e6,
        "cold": cold,
        "warm": warm,
    }


def _drop_from_cache(path: Path) -> None:
    """Ask the system to forget a file's pages, so that the next reader goes to the disk; does nothing where that is not known."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _asked(bundle: Path, cards: int) -> dict:
    """What `open_cards` measured in a process of its own, and the seconds from its start to the first card."""
    start = time.time()
    command = [sys.executable, "-m", "benchmarks.open_cards", str(bundle), str(cards)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise ExploreError(f"opening the bundle failed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:400]}")
    found = json.loads(done.stdout)
    times = found.pop("cards_ms")
    return {
        **found,
        "first_card_s": found.pop("first_card_at") - start,
        "card_p50_ms": float(np.percentile(times, 50)),
        "card_p95_ms": float(np.percentile(times, 95)),
    }


# ---- building ----------------------------------------------------------------------------------------------------------


def built(args: argparse.Namespace) -> list[dict]:
    """The store stage by number of tokens, smallest first: {"tokens", "seconds", "tokens_per_second", "from_line"}; the last is the share by
    which the seconds differ from the straight line fitted through all of them."""
    context = Setup().context
    windows = sorted({max(1, tokens // (context - 1)) for tokens in args.build_tokens})
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(
            folder,
            Setup(windows=windows[-1], latents=args.latents, hook=args.hook, layers=args.layers, width=args.width, heads=args.heads),
        )
        for n in windows:
            request = BuildRequest(
                f"build-{n}",
                str(folder / "model"),
                sae=str(folder / "sae"),
                texts=(f"{folder / 'texts.jsonl'}?n={n}",),
                device="cpu",
                dtype="float32",
            ).checked()
            _, seconds, _ = measured_build(request, folder / "cache", ("store",), clock=args.clock)
            tokens = n * (context - 1)
            found.append({"tokens": tokens, "seconds": seconds["store"], "tokens_per_second": tokens / seconds["store"]})
    sizes, times = ([row[key] for row in found] for key in ("tokens", "seconds"))
    line = np.polyval(np.polyfit(sizes, times, 1), sizes) if len(found) > 1 else times
    return [{**row, "from_line": float(row["seconds"] / fitted - 1)} for row, fitted in zip(found, line, strict=True)]


# ---- printing ----------------------------------------------------------------------------------------------------------


def _print(found: dict, latents: int) -> None:
    say(found["machine"])
    if found["open"]:
        say(
            f"Opening: {latents:,} latents, 32 active on a token. First card: from the start of the process; cold: files not in memory.",
            space=True,
        )
        say("Own memory is what no other process shares and no file holds; file pages may be dropped by the system at any time.")
        head = [
            "tokens",
            "bundle",
            "first card cold",
            "warm",
            "open",
            "card p50",
            "card p95",
            "p95 cold",
            "densest",
            "own memory",
            "file pages",
        ]
        print_table(head, [_open_row(row) for row in found["open"]])
    if found["build"]:
        say(f"Building: store stage, {latents:,} latents, GPT-2 with random weights, windows of 128 tokens", space=True)
        cells = [
            [f"{r['tokens']:,}", f"{r['seconds']:.1f} s", f"{r['tokens_per_second']:,.0f}", f"{100 * r['from_line']:+.1f} %"]
            for r in found["build"]
        ]
        print_table(["tokens", "seconds", "tokens/s", "from a straight line"], cells)


def _open_row(row: dict) -> list[str]:
    cold, warm = row["cold"], row["warm"]
    return [
        f"{row['tokens']:,}",
        f"{row['bundle_mb']:,.0f} MB",
        f"{cold['first_card_s']:.2f} s",
        f"{warm['first_card_s']:.2f} s",
        f"{warm['open_s']:.2f} s",
        *(f"{value:.2f} ms" for value in (warm["card_p50_ms"], warm["card_p95_ms"], cold["card_p95_ms"], warm["densest_ms"])),
        *(f"{warm['memory'].get(kind, float('nan')):.0f} MB" for kind in ("anonymous", "file")),
    ]


if __name__ == "__main__":
    raise SystemExit(command_line.run(main))
