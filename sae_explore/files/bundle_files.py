"""Names, hashes and atomic switching of a bundle's files.

    cache/NAME/manifest.json     names the generation folder and the sha256 and size of every file in it; replaced atomically
    cache/NAME/GENERATION/...    the files themselves, never changed once the manifest names them; MAP_FILE may join them later

A reader that has read a manifest finds all its files, because the generation before the current one stays until the next build.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from sae_explore.errors import BundleError, InputError

SCHEMA = 1
MANIFEST = "manifest.json"
MAP_FILE = "map.safetensors"  # may be missing, or join a bundle that is there (see `feature_map`): a generation's name leaves it out
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OTHERS = ("models", "labels", "uploads")  # folders of the cache that are no bundles
_DEVICES = (
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{kind}{i}" for kind in ("com", "lpt") for i in range(10)),
)  # names that Windows keeps for itself
_MAX_MANIFEST = 1 << 24  # bytes
_REQUEST = ("model", "revision", "hook", "sae", "texts", "store_texts", "latents", "k", "epochs", "lr", "max_tokens", "max_texts", "context",
            "seed", "center", "weights", "store_cap")  # fmt: skip
AGAIN = "build it again with --force, or fetch it again where it came from"
_REQUIRED = ("schema", "folder", "files", "model", "hook", "units", "sae", "corpus", "context", "lens", "metrics")


def default_cache() -> Path:
    """`SAE_EXPLORE_CACHE`, or the `cache/` folder beside the package."""
    return Path(os.environ.get("SAE_EXPLORE_CACHE") or Path(__file__).resolve().parents[2] / "cache")


def check_name(name: str) -> str:
    """A bundle name that is safe as a folder name."""
    if not _NAME.fullmatch(name) or name.lower() in _OTHERS or is_device(name) or name.endswith("."):
        raise InputError(
            f"{name[:80]!r} is no bundle name; use letters, digits, dots, dashes and underscores, at most 64, and none of {', '.join(_OTHERS)}"
        )
    return name


def is_device(name: str) -> bool:
    """Whether Windows takes a file of this name, whatever its ending, for a device."""
    return name.partition(".")[0].rstrip().lower() in _DEVICES


def bundle_names(cache: Path) -> list[str]:
    """Names of the bundles in a cache folder, sorted; folders that are no bundle are passed over."""
    if not cache.is_dir():
        return []
    return sorted(p.name for p in cache.iterdir() if _NAME.fullmatch(p.name) and (p / MANIFEST).exists())


def read_manifest(folder: Path) -> dict:
    """The manifest of a bundle folder, its structure and the sizes of its files checked."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            data = file.read(_MAX_MANIFEST + 1)
        if len(data) > _MAX_MANIFEST:
            raise BundleError(f"the {MANIFEST} of bundle {folder.name!r} is larger than {_MAX_MANIFEST:,} bytes, so it is none; {AGAIN}")
        manifest = json.loads(data.decode("utf-8"))
    except FileNotFoundError:
        lost = f"; its other files are there: {AGAIN}" if any(folder.glob("g-*/*")) else ""
        raise BundleError(f"there is no bundle {folder.name!r}: {MANIFEST} is missing{lost}") from None
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())[:200]
        raise BundleError(f"the {MANIFEST} of bundle {folder.name!r} cannot be read ({why}); {AGAIN}") from error
    check_manifest(manifest, folder.name)
    check_checksum(manifest, folder.name)  # before its files, which a changed name would blame
    for name, entry in manifest["files"].items():
        target = folder / manifest["folder"] / name
        try:
            size = target.stat().st_size if target.is_file() else None
        except (OSError, ValueError):  # a name that no file can have
            size = None
        if size is None:
            raise BundleError(f"bundle {folder.name!r} is incomplete: {name} is missing; {AGAIN}")
        if size != entry.get("size"):
            raise BundleError(f"bundle {folder.name!r} is damaged: {name} has {size} bytes instead of {entry.get('size')}; {AGAIN}")
    return manifest


def check_manifest(manifest: object, name: str) -> None:
    """BundleError unless the manifest of bundle `name` has this program's schema and names nothing outside the bundle."""
    if not isinstance(manifest, dict) or type(manifest.get("schema")) is not int:
        raise BundleError(f"the {MANIFEST} of bundle {name!r} names no schema version, so it is none; {AGAIN}")
    if (found := manifest["schema"]) != SCHEMA:
        says = f"bundle {name!r} has schema version {str(found)[:20]}, this program reads version {SCHEMA}"
        if found > SCHEMA:
            raise BundleError(f"{says}: it was made by a newer version of the program; update the program")
        raise BundleError(f"{says}; build it again: python -m sae_explore build {name} --force{_options(manifest.get('request'))}")
    missing = [key for key in _REQUIRED if key not in manifest]
    if missing:
        raise BundleError(f"the {MANIFEST} of bundle {name!r} lacks {', '.join(missing)}; {AGAIN}")
    generation = manifest["folder"]
    if not isinstance(generation, str) or not _NAME.fullmatch(generation) or not isinstance(manifest["files"], dict):
        raise BundleError(f"the {MANIFEST} of bundle {name!r} names no valid generation folder; {AGAIN}")
    for file, entry in manifest["files"].items():
        if ".." in Path(file).parts or Path(file).is_absolute():
            raise BundleError(f"the {MANIFEST} of bundle {name!r} names a file outside the bundle; {AGAIN}")
        if not isinstance(entry, dict):
            raise BundleError(f"the {MANIFEST} of bundle {name!r} gives no size and sha256 of {file[:80]}; {AGAIN}")


def _options(request: object) -> str:
    """The options of the command that makes a bundle again, from the request in its manifest, as far as that can be read."""
    found = ""
    for key in _REQUEST if isinstance(request, dict) else ():
        values = request.get(key)
        values = values if isinstance(values, list) else [values] if values else []
        if values and all(type(value) in (str, int, float) and str(value).isprintable() for value in values):
            found += f" --{key.replace('_', '-')} " + " ".join(shlex.quote(str(value)[:200]) for value in values[:20])
    return found


def check_checksum(manifest: dict, name: str) -> None:
    """BundleError unless the manifest's checksum fits its contents."""
    if manifest.get("checksum") != _checksum(manifest):
        raise BundleError(f"bundle {name!r} is damaged: the contents of its {MANIFEST} have changed; {AGAIN}")


def verify_hashes(folder: Path, manifest: dict, *, below: int | None = None, known: Collection[str] = ()) -> None:
    """Compare the sha256 of every file (smaller than `below` bytes, if given) with the manifest; BundleError names the first that differs.

    Each file is hashed once per (path, size, modification time) in a process; those `known` to be right (see `hash_record`) are not.
    """
    for name, entry in manifest["files"].items():
        if name in known:
            continue
        path = folder / manifest["folder"] / name
        try:
            stat = path.stat()
            if below is not None and stat.st_size >= below:
                continue
            found = _hash_of(path, stat.st_size, stat.st_mtime_ns)
        except OSError as error:  # a later build may have removed this generation
            raise BundleError(f"{name} of bundle {folder.name!r} cannot be read: {error.strerror}; open the bundle again") from error
        if found != entry.get("sha256"):
            raise BundleError(f"bundle {folder.name!r} is damaged: the contents of {name} have changed; {AGAIN}")


@lru_cache(maxsize=4096)
def _hash_of(path: Path, size: int, mtime: int) -> str:
    return sha256_of(path)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(work: Path, folder: Path, manifest: dict) -> dict:
    """Turn a finished working folder into the bundle's new generation, and return the manifest as written.

    The generation's name comes from its contents, so that equal builds are equal. The old generation stays on disk for
    readers until the next build; older ones are removed.
    """
    manifest = complete_manifest(work, manifest)
    switch(work, folder, manifest)
    return manifest


def complete_manifest(work: Path, manifest: dict) -> dict:
    """The manifest with schema, generation, the sha256 and size of every file in `work`, and a checksum of its own."""
    files = {
        str(path.relative_to(work).as_posix()): {"sha256": sha256_of(path), "size": path.stat().st_size}
        for path in sorted(work.rglob("*"))
        if path.is_file()
    }
    named = {name: entry for name, entry in files.items() if name != MAP_FILE}
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]
    ours = {"schema": SCHEMA, "folder": f"g-{digest}"}
    manifest = {**ours, **manifest, **ours, "files": files}  # first in the file, and not to be overridden by an older manifest
    return {**manifest, "checksum": _checksum(manifest)}


def switch(work: Path, folder: Path, manifest: dict) -> None:
    """Move the files of a complete manifest into the bundle's folder and let its manifest name them.

    May be called again after a kill at any point of it: what has been moved is found where it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, previous = folder / manifest["folder"], _generation_of(folder)
    if _is_whole(target, manifest["files"]):
        shutil.rmtree(work, ignore_errors=True)
    elif _is_whole(work, manifest["files"]):
        if MAP_FILE in manifest["files"] and _is_whole(target, {n: e for n, e in manifest["files"].items() if n != MAP_FILE}):
            os.replace(work / MAP_FILE, target / MAP_FILE)  # the same generation, which readers may have open
            shutil.rmtree(work, ignore_errors=True)
        else:
            shutil.rmtree(target, ignore_errors=True)
            os.replace(work, target)
    else:
        raise BundleError(
            f"the finished files of bundle {folder.name!r} were changed before they could be published; build it again with --force"
        )
    write_json(folder / MANIFEST, manifest)
    for old in folder.glob("g-*"):
        if old.is_dir() and old.name not in (target.name, previous):
            shutil.rmtree(old)


def add_file(folder: Path, manifest: dict, name: str) -> dict:
    """Let the bundle's manifest name a file that has been put into its generation folder; returns the manifest as written.

    InputError if the bundle's manifest is not `manifest` any more: it has been replaced meanwhile.
    """
    path = folder / manifest["folder"] / name
    files = {**manifest["files"], name: {"sha256": sha256_of(path), "size": path.stat().st_size}}
    found = {key: value for key, value in manifest.items() if key != "checksum"} | {"files": dict(sorted(files.items()))}
    found["checksum"] = _checksum(found)
    if read_manifest(folder) != manifest:
        raise InputError(f"bundle {folder.name!r} has been replaced meanwhile; give the command again")
    write_json(folder / MANIFEST, found)
    return found


def _checksum(manifest: dict) -> str:
    """sha256 over everything else in a manifest."""
    return hashlib.sha256(json.dumps({k: v for k, v in manifest.items() if k != "checksum"}, sort_keys=True).encode()).hexdigest()


def _generation_of(folder: Path) -> str | None:
    """The generation that the manifest names now, if there is a manifest that can be read."""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["folder"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _is_whole(folder: Path, files: dict) -> bool:
    return all((folder / n).is_file() and sha256_of(folder / n) == e["sha256"] for n, e in files.items())


def write_json(path: Path, value: object) -> None:
    """Write JSON by way of a partial file, so that readers see the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, text = path.with_name(path.name + ".partial"), json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave an empty file under the name
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


@contextlib.contextmanager
def alone(folder: Path, refusal: str) -> Iterator[None]:
    """Hold a working folder; InputError(`refusal`) where another process or thread holds it. The lock goes with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(refusal) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)
