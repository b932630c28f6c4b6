"""The pipeline: texts, model and SAE in, a bundle out. Each stage is kept, so that a killed build goes on where it was.

    texts -> tokens -> sae (read or trained) -> store -> features -> map (if it can be drawn) -> metrics -> published as `cache/NAME`

A build works in `cache/.build-NAME/`; nothing of it is seen by readers until the last step renames it into place. Stages are
deterministic, so a resumed build ends with the same hashes as an undisturbed one.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sae_explore.bundle_files import SCHEMA, alone, check_name, complete_manifest, default_cache, switch, write_json
from sae_explore.errors import ExploreError, InputError
from sae_explore.memory import keep_freed
from sae_explore.types import HookPoint

Report = Callable[[str, str, float | None], None]
"""(stage, what is being done, share done or None). Raising from it cancels the build; what is done is kept."""

STAGES = ("texts", "tokens", "sae", "store", "features", "map", "metrics")
EVALUATED_TOKENS = 50_000  # on which explained variance is measured, at most
DEFAULT_HOOK = "blocks.6.hook_resid_post"
LOSS_TOKENS = 20_000  # for cross entropies, at most: they run the whole model four times


@dataclass(frozen=True)
class BuildRequest:
    """Everything that decides a bundle's contents."""

    name: str
    model: str
    hook: str | None = None  # None: where a given SAE says that it reads, else DEFAULT_HOOK
    sae: str | None = None  # HUB_ID[@REVISION][:FOLDER] or a folder; None: train one
    texts: tuple[str, ...] = ("diverse",)  # to train on and, unless `store_texts` is given, to explore
    store_texts: tuple[str, ...] = ()
    latents: int = 2_048
    k: int = 32
    epochs: int = 15
    lr: float = 0.0  # 0: chosen from the number of latents
    batch_tokens: int = 0  # 0: chosen from the number of tokens
    max_tokens: int | None = None  # to train on
    max_texts: int | None = None  # to explore
    context: int = 128
    batch_size: int = 32  # texts a forward batch
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"  # of the store's forward passes: auto, float32 or bfloat16
    center: str = "auto"
    weights: str = "float32"  # on disk
    store_cap: int = 0  # firings of a feature past which only the strongest and a sample are kept; 0: the store's default
    revision: str | None = None

    def checked(self) -> BuildRequest:
        """This request with its hook in canonical form; InputError for what cannot be."""
        check_name(self.name)
        whole = (
            ("latents", self.latents, 1),
            ("k", self.k, 1),
            ("epochs", self.epochs, 1),
            ("context", self.context, 8),
            ("batch-size", self.batch_size, 1),
            ("max-tokens", self.max_tokens, 1),
            ("max-texts", self.max_texts, 1),
            ("batch-tokens", self.batch_tokens, 0),
            ("store-cap", self.store_cap, 0),
            ("seed", self.seed, 0),
        )
        for what, value, low in whole:
            if value is not None and not low <= value < 1 << 62:
                raise InputError(f"--{what} is {value}, but must be at least {low}" + (" and not that large" if value > low else ""))
        if not (math.isfinite(self.lr) and 0 <= self.lr < 1):
            raise InputError(f"--lr is {self.lr}, but must lie between 0 and 1 (0: chosen from the number of latents)")
        if self.sae is None and self.k > self.latents:
            raise InputError(f"k = {self.k} is more than the number of latents, {self.latents}")
        if self.sae is None and self.center == "yes":
            raise InputError(
                "--center yes goes with a given --sae that was trained on centred residuals; SAEs trained here read them as they are"
            )
        words = (
            ("dtype", self.dtype, ("auto", "float32", "bfloat16")),
            ("center", self.center, ("auto", "yes", "no")),
            ("weights", self.weights, ("float32", "float16")),
        )
        for what, value, allowed in words:
            if value not in allowed:
                raise InputError(f"--{what} is {value!r}, but must be one of {', '.join(allowed)}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise InputError(f"--device is {self.device[:40]!r}, but must be auto, cpu, cuda or cuda:N")
        hook = self.hook or (DEFAULT_HOOK if self.sae is None else None)
        return replace(self, hook=hook and HookPoint.parse(hook).name)


class Work:
    """The working folder of a build: `out/` becomes the bundle, `state.json` says which stages are done and what they found."""

    def __init__(self, folder: Path, request: BuildRequest, *, fresh: bool):
        self.folder, self.out = folder, folder / "out"
        self._file = folder / "state.json"
        wanted = {"schema": SCHEMA, "request": json.loads(json.dumps(asdict(request)))}
        state = None if fresh else _read_json(self._file)
        if not isinstance(state, dict) or {key: state.get(key) for key in wanted} != wanted:
            _clear(folder)
            state = {**wanted, "inputs": {}, "done": {}, "progress": {}}
        self.state = state
        self.out.mkdir(parents=True, exist_ok=True)
        self._save()

    def same(self, what: str, fingerprint: str) -> None:
        """Remember what an input is; InputError if it is not what it was when this build was begun."""
        if self.state["inputs"].setdefault(what, fingerprint) != fingerprint:
            raise InputError(f"{what} has changed since this build was begun; start it from the beginning with --force")
        self._save()

    def stage(self, name: str, run: Callable[[], dict]) -> dict:
        """What the stage found, running it only if it has not been done."""
        if name not in self.state["done"]:
            found = run()
            self.state["done"][name] = found
            self._save()
        return self.state["done"][name]

    def progress(self, key: str) -> dict:
        """Where a stage that works in steps was when the build was stopped."""
        return self.state["progress"].get(key, {})

    def save_progress(self, key: str, value: dict) -> None:
        self.state["progress"][key] = value
        self._save()

    def publish(self, folder: Path, facts: Callable[[], dict]) -> None:
        """Make `out/` the new generation of the bundle in `folder`, however often this is broken off and done again."""
        kept = self.folder / "manifest.json"
        manifest = _read_json(kept)
        if not isinstance(manifest, dict):
            manifest = complete_manifest(self.out, facts())
            write_json(kept, manifest)
        switch(self.out, folder, manifest)

    def remove(self) -> None:
        """Remove the working folder, the state first: what is left after a kill is no unfinished build."""
        self._file.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _save(self) -> None:
        write_json(self._file, self.state)


def _clear(folder: Path) -> None:
    """Empty a working folder, the state first."""
    (folder / "state.json").unlink(missing_ok=True)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def work_folder(cache: Path, name: str) -> Path:
    return cache / f".build-{name}"


def build(request: BuildRequest, *, cache: Path | None = None, force: bool = False, report: Report | None = None) -> Path:
    """Build `cache/NAME` and return its folder. Goes on with an unfinished build of the same request unless `force`.

    The errors are the user's to mend (`ExploreError`); memory that runs out is reported with what to try.
    """
    from sae_explore import build_stages as stages  # imports torch

    request, cache = request.checked(), cache or default_cache()
    report = report or (lambda _stage, _text, _share: None)
    keep_freed()
    busy = f"bundle {request.name!r} is being built already; wait until that has ended, or choose another name"
    with _readable_failures(request), alone(work_folder(cache, request.name), busy):
        report(STAGES[0], "looking at what is there", None)
        work = Work(work_folder(cache, request.name), request, fresh=force)
        context = stages.Context(request, cache, work, report)
        found = {name: work.stage(name, lambda name=name: getattr(stages, f"stage_{name}")(context)) for name in STAGES}
        report("publish", "checking and switching", None)
        work.publish(cache / request.name, lambda: stages.manifest(context, found))
        work.remove()
    return cache / request.name


@contextlib.contextmanager
def _readable_failures(request: BuildRequest) -> Iterator[None]:
    """Memory that runs out, and files that cannot be read or written, as one sentence with what to try."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, MemoryError) or any(phrase in text for phrase in ("allocate memory", "out of memory", "not enough memory")):
            raise ExploreError(
                f"memory ran out ({request.latents} latents, forward batches of {request.batch_size} texts of {request.context} tokens); "
                "try a smaller --batch-size, fewer --latents or a smaller --max-tokens; the finished stages are kept"
            ) from error
        if "PytorchStreamWriter" in text:  # torch.save says no more than that
            raise ExploreError("the build cannot write its training state; is the disk full? Finished stages are kept") from error
        raise
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else f"{error}, is the disk full?"  # numpy says how much it could write
        what += f": {error.filename}" if error.filename else ""
        raise ExploreError(f"the build cannot read or write a file ({what}); finished stages are kept") from error
