"""How an SAE is named: `HUB_ID[@REVISION][:FOLDER]`, or a folder (or OpenAI's `.pt` file) on this machine. Imports no torch."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

GPT2_SAES = "jbloom/GPT2-Small-SAEs-Reformatted"

# What a repository stands for unless a revision is given: the commit that this program was written against.
PINNED = {
    GPT2_SAES: "57d08a4fd333fbf18caf3fbea63ceeb88e2f50d9",
    "jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs": "21df74db7b9f690cd2403a20485cf75f46330d0d",
}
_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]{1,120}))?(?::(?P<folder>[^:\\]{1,300}))?", re.ASCII
)


class HubName(NamedTuple):
    """An SAE of the Hub: its repository, the revision that is meant (None: the newest), and the folder (or file) in it, or ""."""

    repo: str
    revision: str | None
    folder: str


def read_hub_name(spec: str) -> HubName | None:
    """The parts of a name; None if it is none, or names something outside of its repository."""
    match = _NAME.fullmatch(spec)
    folder = (match["folder"] or "") if match else ""
    if match is None or folder.startswith("/") or ".." in folder.split("/"):
        return None
    return HubName(match["repo"], match["revision"] or PINNED.get(match["repo"]), folder.strip("/"))


def local_sae(spec: str) -> Path | None:
    """The folder or `.pt` file that a spec names, if there is one; its name, which may say where the SAE reads, stays as it is given."""
    try:
        path = Path(os.path.expanduser(spec))  # `Path.expanduser` raises for an unknown user
        return Path(os.path.abspath(path)) if spec and (path.is_dir() or (path.is_file() and path.suffix == ".pt")) else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def looks_like_path(spec: str) -> bool:
    """Whether a spec that names nothing here would have named something here."""
    repo = spec.partition(":")[0]
    return spec.startswith((".", "/", "~")) or repo.count("/") > 1 or (os.sep != "/" and os.sep in spec)


def is_on_hub(spec: str) -> bool:
    """Whether the SAE would come from the Hub."""
    return not local_sae(spec) and not looks_like_path(spec) and read_hub_name(spec) is not None
