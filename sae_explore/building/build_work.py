"""A build's working folder: what is done so far, kept after each stage, and the last step that makes it a bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from sae_explore.building.build_request import BuildRequest
from sae_explore.errors import InputError
from sae_explore.files.bundle_files import SCHEMA, complete_manifest, switch, write_json

Report = Callable[[str, str, float | None], None]
"""(stage, what is being done, share done or None). Raising from it cancels the build; what is done is kept."""

STAGES = ("texts", "tokens", "sae", "store", "features", "map", "metrics")


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
