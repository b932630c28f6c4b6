"""The pipeline: texts, model and SAE in, a bundle out. Each stage is kept, so that a killed build goes on where it was.

    texts -> tokens -> sae (read or trained) -> store -> features -> map (if it can be drawn) -> metrics -> published as `cache/NAME`

A build works in `cache/.build-NAME/`; nothing of it is seen by readers until the last step renames it into place. Stages are
deterministic, so a resumed build ends with the same hashes as an undisturbed one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from sae_explore.building.build_request import BuildRequest
from sae_explore.building.build_work import STAGES, Report, Work, work_folder
from sae_explore.errors import ExploreError
from sae_explore.files.bundle_files import alone, default_cache
from sae_explore.memory import keep_freed


def build(request: BuildRequest, *, cache: Path | None = None, force: bool = False, report: Report | None = None) -> Path:
    """Build `cache/NAME` and return its folder. Goes on with an unfinished build of the same request unless `force`.

    The errors are the user's to mend (`ExploreError`); memory that runs out is reported with what to try.
    """
    from sae_explore.building import build_stages as stages  # imports torch

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
