"""Bundles that the app fetches by itself when it starts: `SAE_EXPLORE_BUNDLES=hf:USER/REPO[:NAME][@REVISION][,hf:...]`.

They come into the cache folder beside the bundles that are there, once for all visitors, in a thread. What is there goes on meanwhile, and
also where the Hub cannot be reached. A bundle that was fetched from the same repository before is brought up to date; one of the same
name that was built here, or came from elsewhere, stays.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from sae_explore.background import BackgroundJob
from sae_explore.errors import ExploreError, InputError
from sae_explore.files.bundle_files import MANIFEST

log = logging.getLogger(__name__)

VARIABLE = "SAE_EXPLORE_BUNDLES"
RETRY_SECONDS = 300.0  # after which what failed is tried again, with the next visit


def wanted() -> str:
    """What the environment asks for; empty where it asks for nothing."""
    return os.environ.get(VARIABLE, "").strip()


class SharedBundles(BackgroundJob):
    """Fetches what `wanted` lists into `cache`, once for all sessions; and begins again a while after a failure, with the next visit."""

    def __init__(self, wanted: str, cache: Path, clock: Callable[[], float] = time.monotonic):
        super().__init__("shared bundles")
        self._listed, self._cache, self._clock = wanted, cache, clock
        self._ended_at = 0.0
        self.problems: tuple[str, ...] = ()

    def _wanted(self) -> bool:
        return self._thread is None or bool(self.problems and self._clock() - self._ended_at > RETRY_SECONDS)

    def _run(self) -> None:
        problems = []
        for part in filter(None, (part.strip() for part in self._listed.split(","))):
            try:
                problems += self._fetch(part)
            except ExploreError as error:
                problems.append(str(error))
            except Exception as error:  # a thread's last resort: pages show a sentence, the log the traceback
                log.exception("fetching %s failed", part)
                problems.append(f"{part[:80]} could not be fetched ({type(error).__name__}); the server's log says more")
        for problem in problems:
            log.warning("%s: %s", VARIABLE, problem)
        self.problems, self._ended_at = tuple(problems), self._clock()

    def _fetch(self, part: str) -> list[str]:
        """Fetch one repository's bundles; what is wrong with some of them, in sentences."""
        from sae_explore.bundles.bundle_repo import listing, read_spec
        from sae_explore.bundles.pull import came_from, is_same, pull_bundle, remote_manifest, wanted_names
        from sae_explore.files.hub import hub_access, hub_problem

        spec, problems = read_spec(part), []
        hub_problem(refresh=True)
        with hub_access(str(spec)):
            self._report(f"looking at hf:{spec.repo}", None)
            found = listing(spec)
            for name in wanted_names(found, spec):
                try:
                    manifest = remote_manifest(found, name)
                    there = (self._cache / name / MANIFEST).exists()
                    if there and not is_same(self._cache, name, manifest) and came_from(self._cache, name) != spec.repo:
                        raise InputError(f"hf:{spec.repo} holds another bundle {name!r} than the one that is here, which stays")
                    pull_bundle(found, name, manifest, cache=self._cache, report=self._report)
                except ExploreError as error:
                    problems.append(str(error))
        return problems
