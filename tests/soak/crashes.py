"""Builds, downloads and savings killed with SIGKILL at random moments: python tests/soak/crashes.py [--kills 50] [--seed 0] [--json]

    train      a build with an SAE trained on a tiny GPT-2
    download   a build whose model and SAE come from a slow Hub on the loopback interface
    pull       a bundle fetched from there
    labels     two processes that save labels in one file

Each is done once undisturbed, which gives the hashes and how long it takes. Then it is killed, at a moment drawn over that time or within
two milliseconds of a file operation drawn from all of its own, gone on with, killed again, up to five times, and let end: every file's
hash must be the undisturbed run's. A reader in a process of its own opens the same bundles all the while: it must see the old one or the
new one, whole. A label whose saving was confirmed must be there after the kill. Exit status 1 if anything was not so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]

import crash_scenarios  # noqa: E402
from crash_scenarios import VARIANTS, Scenario  # noqa: E402

MOST_KILLS = 5  # of one build
SOON = 0.002  # seconds after a file operation
SAVING = 0.4  # seconds in which labels are saved before the kill, at most
SAVING_STEPS = 400  # file operations, likewise
D_SAE = 64
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"}


class Moment(NamedTuple):
    """When to kill: `seconds` after the beginning, or `seconds` after file operation number `step`."""

    seconds: float
    step: int = 0


class Length(NamedTuple):
    """How long an undisturbed run is."""

    seconds: float
    steps: int

    def draw(self, rng: random.Random) -> Moment:
        if rng.random() < 0.5:
            return Moment(rng.uniform(0, self.seconds))
        return Moment(rng.uniform(0, SOON), rng.randint(1, self.steps))


def count_steps(each: Callable[[int], None]) -> None:
    """Call `each` with the number of every file operation of this process that is about to change something."""
    steps = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal steps
        if event in _CHANGES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            steps += 1
            each(steps)

    sys.addaudithook(hook)


def start(run: Callable[[], None], moment: Moment | None) -> Callable[[], str]:
    """Run a function in a process, which is to be killed at this moment; the function that is returned does so, and says how it ended."""
    from killed_builds import forked, how

    told, tell = os.pipe()

    def child() -> None:
        if moment and moment.step:
            count_steps(lambda step: os.write(tell, b"!") if step == moment.step else None)
        run()

    pid = forked(child)
    os.close(tell)
    began = time.monotonic()

    def finish() -> str:
        ended = os.pidfd_open(pid)
        if moment and moment.step and os.read(told, 1):  # nothing comes if there are not so many steps
            time.sleep(moment.seconds)
        elif moment and not moment.step:
            select.select([ended], [], [], max(0.0, began + moment.seconds - time.monotonic()))
        if moment and not select.select([ended], [], [], 0)[0]:
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        os.close(ended)
        os.close(told)
        return how(status)

    return finish


def undisturbed(run: Callable[[], None]) -> Length:
    """Run to the end, in a process of its own."""
    from killed_builds import forked

    said, say = os.pipe()

    def child() -> None:
        steps = [0]
        count_steps(lambda step: steps.__setitem__(0, step))
        run()
        os.write(say, str(steps[0]).encode())

    began, pid = time.monotonic(), forked(child)
    os.close(say)
    steps = os.read(said, 100)
    os.close(said)
    if os.waitpid(pid, 0)[1] or not steps:
        raise RuntimeError("an undisturbed run failed; its error is above")
    return Length(time.monotonic() - began, int(steps))


# ---- builds and downloads ----------------------------------------------------------------------------------------------


def kill_builds(folder: Path, home: Path, kills: int, variants: int, rng: random.Random) -> dict:
    """Kill that often; what happened, and everything that was not as it should be."""
    from killed_builds import forked

    found = crash_scenarios.scenarios(folder, home)
    lengths: dict[tuple[str, int], Length] = {}
    trees: dict[tuple[str, int], dict] = {}
    signatures: dict[str, dict[str, str]] = {s.name: {} for s in found}
    for scenario in found:
        for variant in range(variants):
            cache = folder / f"undisturbed-{variant}"
            scenario.begin()
            lengths[scenario.name, variant] = undisturbed(lambda s=scenario, v=variant, c=cache: s.run(v, c, True))
            trees[scenario.name, variant] = crash_scenarios.tree(cache / scenario.name)
            signatures[scenario.name] |= _signature(cache, scenario.name)
            if scenario.name == "trained":
                crash_scenarios.offer(folder, cache, variant)

    cache = folder / "killed"
    cache.mkdir()
    report, stop = folder / "reader.json", os.pipe()
    reader = forked(lambda: (os.close(stop[1]), crash_scenarios.watch(cache, signatures, stop[0], report)))
    where, problems, rounds, done = Counter(), [], 0, 0
    while done < kills:
        scenario, variant = found[rounds % len(found)], rounds // len(found) % variants
        wanted = min(rng.randint(1, MOST_KILLS), kills - done)
        killed, wrong = kill_one(scenario, variant, cache, [lengths[scenario.name, variant].draw(rng) for _ in range(wanted)], where)
        problems += wrong
        if (now := crash_scenarios.tree(cache / scenario.name)) != (was := trees[scenario.name, variant]):
            differing = sorted(name for name in now.keys() | was.keys() if now.get(name) != was.get(name))
            problems.append(f"{scenario.name} ends with other files after {killed} kills: {', '.join(differing)}")
        problems += [f"{scenario.name} leaves {what}" for what in crash_scenarios.left_over(cache, scenario.name)]
        done, rounds = done + killed, rounds + 1
    os.write(stop[1], b"!")
    os.waitpid(reader, 0)
    seen = json.loads(report.read_text())
    problems += [f"the reader: {problem}" for problem in seen.pop("problems")]
    undisturbed_seconds = {name: round(lengths[name, 0].seconds, 2) for name in signatures}
    return {"kills": done, "builds": rounds, "where": dict(sorted(where.items())), "undisturbed_seconds": undisturbed_seconds,
            "reader": seen, "problems": problems}  # fmt: skip


def kill_one(scenario: Scenario, variant: int, cache: Path, moments: list[Moment], where: Counter) -> tuple[int, list[str]]:
    """Kill a build at these moments, as far as it comes to them, and let it end: (times killed, what went wrong)."""
    scenario.begin()
    killed = 0
    for i, moment in enumerate([*moments, None]):
        ended = start(lambda first=not i: scenario.run(variant, cache, first), moment)()
        if ended == "exit 0":
            return killed, []
        if ended != "signal 9":
            return killed, [f"{scenario.name} ended with {ended} after {killed} kills"]
        killed += 1
        where[f"{scenario.name}: {_stage(cache, scenario.name)}"] += 1
    return killed, [f"{scenario.name} did not end"]


def _stage(cache: Path, name: str) -> str:
    """How far a killed build had come."""
    with contextlib.suppress(OSError):
        done = json.loads((cache / f".build-{name}" / "state.json").read_text(encoding="utf-8"))["done"]
        return f"after {list(done)[-1]}" if done else "at the beginning"
    return "downloading" if list((cache / f".pull-{name}").rglob("*.*")) else "at the beginning or the end"


def _signature(cache: Path, name: str) -> dict[str, str]:
    from sae_explore.bundles.bundle import open_bundle

    bundle = open_bundle(name, cache=cache)
    return {bundle.manifest["folder"]: crash_scenarios.signature(bundle)}


# ---- labels ------------------------------------------------------------------------------------------------------------


def kill_savings(folder: Path, kills: int, rng: random.Random) -> dict:
    """Two processes save labels in one file, each on its own features, and are killed: no confirmed label may be missing."""
    from sae_explore.notebook import notes
    from sae_explore.notebook.notes_store import FileStore

    store = FileStore(folder / "labels", "labelled", sae="0" * 16, d_sae=D_SAE)
    confirmed: dict[int, int] = {}  # feature -> the number in its label
    problems: list[str] = []
    saved = 0

    def save(writer: int, first: int, tell: int) -> None:
        for n in range(first, 1 << 30):
            feature = (2 * n + writer) % D_SAE
            store.change(lambda now: notes.with_label(now, feature, f"label {n}", "x" * 300))  # noqa: B023 (called at once)
            os.write(tell, f"{feature} {n}\n".encode())

    length, newest = Length(SAVING, SAVING_STEPS), [0, 0]
    for _ in range((kills + 1) // 2):
        pipes = [os.pipe() for _ in range(2)]
        running = [start(lambda w=w: save(w, newest[w] + 1, pipes[w][1]), length.draw(rng)) for w in range(2)]  # noqa: B023
        for finish in running:
            if (ended := finish()) != "signal 9":
                problems.append(f"saving ended with {ended}")
        for w, (read, write) in enumerate(pipes):
            os.close(write)
            with os.fdopen(read) as said:
                lines = [tuple(map(int, line.split())) for line in said]
            confirmed |= dict(lines)
            newest[w], saved = max([newest[w], *(n for _, n in lines)]), saved + len(lines)
        try:
            found = store.parsed().own_labels
        except Exception as error:  # whatever it is, the labels cannot be read
            problems.append(f"the labels cannot be read: {error}")
            continue
        for feature, n in confirmed.items():
            at = int(found.get(feature, "label -1").split()[1])
            if not n <= at <= newest[feature % 2] + 1:
                problems.append(f"feature {feature} has label {at}, confirmed was {n}")
    return {"kills": 2 * ((kills + 1) // 2), "saved": saved, "features": len(confirmed), "problems": problems[:20]}


# ---- the command -------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="of builds and downloads (default: 50)")
    parser.add_argument("--label-kills", type=int, default=20, help="of savings of labels (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--variants", type=int, choices=(1, VARIANTS), default=VARIANTS, help=f"of each bundle (default: {VARIANTS})")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse_args()
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="crashes-"))
    try:
        held, url = crash_scenarios.start_hub(folder / "hub")
        for name in [
            n for n in os.environ if n.lower().startswith(("hf_", "huggingface_", "transformers_")) or n.lower().endswith("_proxy")
        ]:
            del os.environ[name]
        os.environ.update(HF_ENDPOINT=url, HF_HOME=str(folder / "home"), HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1")
        os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
        rng = random.Random(args.seed)
        summary = {"seed": args.seed, "labels": kill_savings(folder, args.label_kills, rng)}
        summary |= kill_builds(folder, folder / "home", args.kills, args.variants, rng)
        os.close(held)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    summary["seconds"] = round(time.monotonic() - began, 1)
    problems = summary["problems"] + summary["labels"]["problems"]
    if args.json:
        print(json.dumps(summary))
    else:
        print(
            f"{summary['kills']} kills in {summary['builds']} builds and downloads, {summary['labels']['kills']} of savings; seed {args.seed}"
        )
        for place, n in summary["where"].items():
            print(f"  {n:3} {place}")
        print(f"{summary['reader']['reads']} bundles read meanwhile; {summary['labels']['saved']} labels saved; {summary['seconds']} s")
        print("\n".join(problems) if problems else "every file as undisturbed, every reader served, every label kept")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
