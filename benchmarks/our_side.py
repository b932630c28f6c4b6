"""This project's side of the comparison: python -m benchmarks.our_side FOLDER dashboard|training

Reads the folder of `inputs`, writes `ours-dashboard.json` and `ours-top.npz`, or `ours-training.json`, into it.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from benchmarks.inputs import Setup, read_setup
from sae_explore.activations.activation_shards import MemoryActivations
from sae_explore.activations.activation_store import STORE_FILE, ActivationStore
from sae_explore.activations.feature_stats import NONE, TOP_EXAMPLES
from sae_explore.building import build_stages
from sae_explore.building.build_context import Context
from sae_explore.building.build_request import BuildRequest
from sae_explore.building.build_work import Work
from sae_explore.bundles.bundle import EXAMPLES_FILE, TOKENS_FILE
from sae_explore.errors import ExploreError
from sae_explore.files.tensor_file import read_tensors
from sae_explore.saes import train

BEFORE = ("texts", "tokens", "sae")
MEASURED = ("store", "features")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WARM_UP = 3  # training steps before the measured ones


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="this project's side of the comparison")
    parser.add_argument("folder", type=Path)
    parser.add_argument("task", choices=("dashboard", "training"))
    args = parser.parse_args(argv)
    setup = read_setup(args.folder)
    found = {"dashboard": dashboard, "training": training}[args.task](args.folder, setup)
    found |= {
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__},
        "threads": torch.get_num_threads(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    (args.folder / f"ours-{args.task}.json").write_text(json.dumps(found), encoding="utf-8")


def measured_build(
    request: BuildRequest, cache: Path, measured: tuple[str, ...] = MEASURED, *, clock: str = "wall"
) -> tuple[Context, dict[str, float], dict[str, float]]:
    """Run the stages of a build up to the measured ones: (context, seconds of each measured stage, seconds of what they report)."""
    now = CLOCKS[clock]
    work = Work(cache / f".build-{request.name}", request, fresh=True)
    said: list[tuple[float, str]] = []
    context = Context(request, cache, work, lambda stage, text, _share: said.append((now(), f"{stage}: {_kind(text)}")))
    for name in BEFORE:
        work.stage(name, _stage(name, context))
    seconds, parts = {}, {}
    for name in measured:
        said.clear()
        start = now()
        work.stage(name, _stage(name, context))
        end = now()
        seconds[name] = end - start
        parts |= _parts(name, start, list(said), end)
    return context, seconds, parts


def _stage(name: str, context: Context) -> Callable[[], dict]:
    return lambda: getattr(build_stages, f"stage_{name}")(context)


def _kind(text: str) -> str:
    """A report without its numbers."""
    return "forward passes and encoding" if text.endswith(" texts") else text


def _parts(stage: str, start: float, said: list[tuple[float, str]], end: float) -> dict[str, float]:
    """Seconds by what was reported. The store reports when a block is done, the features when a part begins."""
    found: dict[str, float] = {}
    if stage == "store":
        done = max((t for t, what in said if "forward" in what), default=start)
        return {"store: forward passes and encoding": done - start, "store: ordering by feature, writing": end - done}
    for (t, what), following in zip(said, [*(t for t, _ in said[1:]), end], strict=True):
        found[what] = found.get(what, 0) + following - t
    return found


def dashboard(folder: Path, setup: Setup) -> dict:
    """Stages store and features of a build with the given SAE; the strongest tokens and the examples of every feature."""
    request = BuildRequest(
        "benchmark", str(folder / "model"), sae=str(folder / "sae"), texts=(str(folder / "texts.jsonl"),), device="cpu", dtype="float32"
    ).checked()
    context, seconds, parts = measured_build(request, folder / "cache", clock=setup.clock)
    tokens = read_tensors(context.out / TOKENS_FILE)
    expected = np.load(folder / "tokens.npy")
    if not np.array_equal(np.asarray(tokens["ids"]).reshape(setup.windows, -1), expected[:, 1:]):
        raise ExploreError("the tokens of the build are not those of the inputs; the comparison would be of different texts")
    if ignored := int(np.asarray(tokens["ignored"]).sum()):
        raise ExploreError(f"{ignored} tokens were ignored as attention sinks, which the other side counts; use a model without sinks")
    _write_top(folder / "ours-top.npz", context, setup)
    return {"seconds": seconds, "parts": parts}


def _write_top(path: Path, context: Context, setup: Setup) -> None:
    """(d_sae, TOP_EXAMPLES) places and values, zero where there are fewer: the strongest firings, and the examples that are shown."""
    store = ActivationStore(context.out / STORE_FILE, setup.latents)
    shown = read_tensors(context.out / EXAMPLES_FILE)["top"]
    out = {f"{what}_{kind}": np.zeros((setup.latents, TOP_EXAMPLES)) for what in ("firing", "shown") for kind in ("places", "values")}
    for feature in range(setup.latents):
        tokens, values = store.firings(feature)
        of = dict(zip(tokens.tolist(), values.tolist(), strict=True))
        listed = [int(t) for t in shown[feature] if t != NONE]
        for what, chosen in (("firing", tokens[:TOP_EXAMPLES].tolist()), ("shown", listed)):
            out[f"{what}_places"][feature, : len(chosen)] = [place_of(t, setup.context) for t in chosen]
            out[f"{what}_values"][feature, : len(chosen)] = [of[t] for t in chosen]
    np.savez(path, **out)


def place_of(token: int, context: int) -> int:
    """A token of the store as a place in the matrix of windows, whose column 0 is the BOS that the store leaves out."""
    window, position = divmod(token, context - 1)
    return window * context + position + 1


def training(folder: Path, setup: Setup) -> dict:
    """Tokens a second of optimizer steps on residuals in memory, a tenth of the latents dead."""
    rows = torch.from_numpy(np.load(folder / "residuals.npy"))
    return {"training": {str(latents): _trained(rows, setup, latents) for latents in setup.train_latents}}


def _trained(rows: torch.Tensor, setup: Setup, latents: int) -> dict:
    batch = min(setup.train_batch, len(rows))
    # the rate is too small to change anything, so that the latents that are made dead stay dead
    config = train.TrainConfig(latents, setup.k, 1, 1e-9, batch, dead_after=10**9, seed=setup.seed)
    state = train.initial_state(MemoryActivations(rows), config, torch.device("cpu"))
    dead = latents // 10
    x = rows * state.scale
    pre = (x - state.params["b_dec"].data) @ state.params["W_encT"].data[:dead].T
    state.params["b_enc"].data[:dead] -= pre.amax(0)
    state.silent[:dead] = 1 << 40
    times, now = [], CLOCKS[setup.clock]
    for step in range(WARM_UP + setup.train_steps):
        at = step * batch % (len(rows) - batch + 1)
        start = now()
        train.train_step(state, config, x[at : at + batch])
        times.append(now() - start)
    return {
        "tokens_per_second": batch / float(np.median(times[WARM_UP:])),
        "dead": int((state.silent > config.dead_after).sum()),
        "batch": batch,
    }


if __name__ == "__main__":
    main()
