"""This project beside sae-lens and sae-dashboard: python -m benchmarks.peers --peer-python PATH

Makes the inputs in a temporary folder, runs both sides as processes of their own with the same number of threads, in fp32, and prints
one table; then checks that both found the same strongest tokens. `README.md` beside this file says how to make the other
environment, and what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.agreement import Agreement, TopList, compare, one_a_window
from benchmarks.inputs import Setup, make_inputs, read_setup
from benchmarks.machine import describe, print_table
from sae_explore import command_line
from sae_explore.command_line import Parser, positive
from sae_explore.errors import ExploreError
from sae_explore.terminal import say

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("dashboard", "training")
AIMS = {"dashboard": 100.0, "training": 5.0}  # times the peer's speed
CHECKED = 200  # live features whose strongest tokens are compared
WITHOUT = "the peers' side was skipped: no --peer-python was given (benchmarks/README.md says how to make that environment)"
INCLUDED = """What the seconds hold (loading model and SAE and making the inputs are left out on both sides):
  ours    stages `store` and `features` of a build: forward passes up to the hook, encoding, the store sorted by token and by feature; per
          feature exact moments and histogram, 20 top, 20 interval and 8 random examples, lens lists in three conventions with a baseline of
          random directions, neighbours by decoder and encoder, co-active features, label and scores; all of it written to disk.
  peers   SAEDashboard's SaeVisRunner, once with its defaults (forward passes again for each batch of 256 features, 20 top and 50 interval
          sequences of 11 tokens) and once as its NeuronpediaRunner calls it (forward passes once, kept on disk; batches of 128, 20 top and 25
          interval sequences of whole windows); encoding for each batch, histograms of activations and logits, ten top and bottom logits,
          aligned and correlated neurons, correlated features, quantiles; kept in memory. The row below adds
          its `save_json`.
  training  one optimizer step on residuals in memory, AuxK with a tenth of the latents dead, median after three steps to warm up.
          ours computes AuxK on at most 1,024 rows of a batch, SAELens on all; of its dense and its sparse activations the faster counts.
Both sides count all tokens but the BOS at position 0 of each window (ours leaves it out by itself, theirs by ignore_tokens)."""


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    setup = Setup(
        windows=max(1, args.tokens // args.context),
        context=args.context,
        latents=args.latents,
        k=args.k,
        hook=args.hook,
        layers=args.layers,
        width=args.width,
        heads=args.heads,
        train_latents=tuple(args.train_latents),
        train_batch=args.train_batch,
        train_steps=args.steps,
        peer_features=min(args.peer_features or 0, args.latents),
        seed=args.seed,
        clock=args.clock,
    )
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), setup, peer_python=args.peer_python, tasks=args.only or TASKS, threads=args.threads, checked=args.checked)
    if args.json:
        command_line.print_json(found)
    else:
        _print(found)
    if any(agreement["mismatches"] for agreement in (found["agreement"] or {}).values()):
        raise ExploreError("the two sides did not find the same strongest tokens; see the table")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m benchmarks.peers", description="this project beside sae-lens and sae-dashboard")
    parser.add_argument("--peer-python", metavar="PATH", help="the Python of an environment with sae-lens and sae-dashboard")
    parser.add_argument("--only", nargs="+", choices=TASKS, help="one of the two comparisons (default: both)")
    parser.add_argument("--tokens", type=positive, default=64 * 128, metavar="N", help="tokens, BOS included, in whole windows")
    parser.add_argument("--latents", type=positive, default=2_048, metavar="N", help="of the SAE whose features are described")
    parser.add_argument(
        "--peer-features", type=positive, metavar="N", help="the peer describes the first N only; its time is scaled up, and said so"
    )
    parser.add_argument("--train-latents", type=positive, nargs="+", default=[2_048, 24_576], metavar="N")
    parser.add_argument("--steps", type=positive, default=10, metavar="N", help="training steps measured")
    parser.add_argument("--train-batch", type=positive, default=2_048, metavar="N")
    parser.add_argument("--threads", type=positive, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--checked", type=positive, default=CHECKED, metavar="N", help="features whose strongest tokens are compared")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for a busy machine, with --threads 1"
    )
    parser.add_argument("--context", type=positive, default=128, metavar="N")
    parser.add_argument("--k", type=positive, default=32, metavar="K")
    parser.add_argument("--hook", default="blocks.6.hook_resid_post")
    parser.add_argument("--layers", type=positive, default=12, metavar="N", help="of the random model, as the next two")
    parser.add_argument("--width", type=positive, default=768, metavar="N")
    parser.add_argument("--heads", type=positive, default=12, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def run(
    folder: Path, setup: Setup, *, peer_python: str | None, tasks: tuple[str, ...] = TASKS, threads: int = 1, checked: int = CHECKED
) -> dict:
    """Everything that was measured: {"setup", "machine", "ours", "peers", "agreement"}; the last two None without the peers' Python."""
    torch.set_num_threads(threads)
    make_inputs(folder, setup)
    found = {"machine": describe(threads), "ours": {}, "peers": {} if peer_python else None, "agreement": None}
    for task in tasks:
        _process([sys.executable, "-m", "benchmarks.our_side", str(folder), task], threads)
        found["ours"][task] = _result(folder, "ours", task)
        if peer_python:
            _process([peer_python, "-W", "ignore", str(ROOT / "benchmarks" / "peer_side.py"), str(folder), task], threads)
            found["peers"][task] = _result(folder, "peers", task)
    if peer_python and "dashboard" in tasks:
        found["agreement"] = {what: _agreement_json(a) for what, a in check_top(folder, checked, seed=setup.seed).items()}
    final = read_setup(folder)
    return {"setup": {**final.__dict__, "counted_tokens": final.counted_tokens}, **found}


def _process(command: list[str], threads: int) -> None:
    """Run one side; ExploreError with the last line of what it said if it fails."""
    env = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "CUDA_VISIBLE_DEVICES": "",
    }
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    except OSError as error:
        raise ExploreError(f"{command[0]} cannot be started ({error.strerror}); is it the Python of the peers' environment?") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ExploreError(f"{' '.join(command[1:])} failed: {last[:400]}")


def _result(folder: Path, side: str, task: str) -> dict:
    return json.loads((folder / f"{side}-{task}.json").read_text(encoding="utf-8"))


def check_top(folder: Path, checked: int, *, seed: int = 0) -> dict[str, Agreement]:
    """Compare the strongest tokens of random live features: all firings, and the examples as they are shown (one a window)."""
    ours, theirs, tokens = np.load(folder / "ours-top.npz"), np.load(folder / "peers-top.npz"), np.load(folder / "tokens.npy")
    described = theirs["features"]
    live = described[(ours["firing_values"][described, 0] > 0) | (theirs["values"][described].max(1) > 0)]
    chosen = np.random.default_rng(seed).permutation(live)[:checked].tolist()
    firing, shown = ({f: TopList.of(ours[f"{what}_places"][f], ours[f"{what}_values"][f]) for f in chosen} for what in ("firing", "shown"))
    peer = {f: TopList.of(theirs["places"][f], theirs["values"][f]) for f in chosen}
    return {
        "strongest tokens": compare(firing, peer),
        "examples shown": compare(shown, {f: one_a_window(found, tokens) for f, found in peer.items()}),
    }


def _agreement_json(found: Agreement) -> dict:
    return {**found._asdict(), "mismatches": {str(f): text for f, text in found.mismatches.items()}, "share": found.share}


# ---- printing ----------------------------------------------------------------------------------------------------------


def rows(found: dict) -> list[list[str]]:
    """The table: what, ours, the peers', ratio, aim."""
    setup, ours, peers = found["setup"], found["ours"], found["peers"]
    out = []
    if "dashboard" in ours:
        seconds = sum(ours["dashboard"]["seconds"].values())
        what = f"data of {setup['latents']:,} features, {setup['windows']} x {setup['context']} tokens"
        if not peers:
            out.append([what, f"{seconds:.1f} s", *_beside(None, None, "s", AIMS["dashboard"])])
        for way, times in peers["dashboard"]["ways"].items() if peers else ():
            theirs, made = scaled_up(times, setup["latents"])
            note = f", scaled up from {made:,}" if made < setup["latents"] else ""
            out.append([f"{what} ({way}{note})", f"{seconds:.1f} s", *_beside(theirs, theirs / seconds, "s", AIMS["dashboard"])])
            written = theirs + times["json"] * setup["latents"] / times["first_features"]
            out.append(
                [
                    "  and written (JSON, scaled up from the first batch)",
                    f"{seconds:.1f} s",
                    *_beside(written, written / seconds, "s", None),
                ]
            )
        out += [[f"  {part}", f"{value:.1f} s", "", "", ""] for part, value in ours["dashboard"]["parts"].items()]
        out.append(
            [
                "  peak memory",
                f"{ours['dashboard']['peak_mb']:,.0f} MB",
                *([f"{peers['dashboard']['peak_mb']:,.0f} MB", "", ""] if peers else ["", "", ""]),
            ]
        )
    for latents, mine in ours.get("training", {}).get("training", {}).items():
        theirs, kind = None, ""
        if peers:
            kinds = peers["training"]["training"][latents]
            kind = max(kinds, key=lambda k: kinds[k]["tokens_per_second"])
            theirs = kinds[kind]["tokens_per_second"]
        a = mine["tokens_per_second"]
        what = f"training, {int(latents):,} latents, {mine['dead']:,} dead, batch {mine['batch']:,}" + (f" ({kind})" if kind else "")
        out.append([what, f"{a:,.0f} tokens/s", *_beside(theirs, theirs and a / theirs, "tokens/s", AIMS["training"])])
    return out


def scaled_up(times: dict, latents: int) -> tuple[float, int]:
    """(seconds for all features, features that were made): what each feature after the first batch took is taken for those that were
    left out, so that what is done once is not multiplied."""
    made = times["first_features"] + times["rest_features"]
    left = latents - made
    per_feature = times["rest"] / times["rest_features"] if times["rest_features"] else times["first"] / times["first_features"]
    return times["first"] + times["rest"] + left * per_feature, made


def _beside(value: float | None, ratio: float | None, unit: str, aim: float | None) -> list[str]:
    last = "" if aim is None else f"{aim:g}"
    if value is None:
        return ["-", "-", last]
    return [f"{value:,.1f} {unit}" if unit == "s" else f"{value:,.0f} {unit}", f"{ratio:.1f}", last]


def _print(found: dict) -> None:
    setup = found["setup"]
    say(found["machine"])
    say(
        f"GPT-2 of {setup['layers']} blocks and {setup['width']} dimensions with random weights, {setup['hook']}, TopK SAE with k = {setup['k']}, "
        f"fp32, seed {setup['seed']}; {setup['counted_tokens']:,} tokens counted; tokenizer: {setup['tokenizer']}; seconds by the {setup['clock']} clock"
    )
    for side in ("ours", "peers"):
        for versions in {json.dumps(r["versions"]) for r in found[side].values()} if found[side] else ():
            say(f"{side}: " + ", ".join(f"{name} {version}" for name, version in json.loads(versions).items()))
    say("")
    print_table(["", "ours", "peers", "times", "aim"], rows(found))
    say("")
    for line in INCLUDED.splitlines():
        say(line)
    if found["peers"] is None:
        say(WITHOUT, space=True)
    for what, agreement in (found["agreement"] or {}).items():
        say(
            f"{what}: {agreement['features'] - len(agreement['mismatches'])} of {agreement['features']} features agree "
            f"({agreement['tokens']:,} tokens, largest relative difference of a value {agreement['largest_difference']:.1e})",
            space=True,
        )
        for feature, text in list(agreement["mismatches"].items())[:10]:
            say(f"  feature {feature}: {text}")


if __name__ == "__main__":
    raise SystemExit(command_line.run(main))
