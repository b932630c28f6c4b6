"""What the machine is, how busy it is, how much memory a process holds, and tables of plain text."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from sae_explore.terminal import say


def describe(threads: int) -> str:
    """Processor, cores, threads used, and the load before the measurement: figures of a busy machine are worth little."""
    return f"{_processor()}, {os.cpu_count()} cores, {threads} threads, {platform.system()}, load before the measurement {_load()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _load() -> str:
    try:
        return f"{os.getloadavg()[0]:.1f}"
    except OSError:
        return "not known"


def private_memory() -> dict[str, float]:
    """MB of this process that no other shares: "anonymous" is its own, "file" are clean pages of mapped files, which the system may
    drop at any time. Empty where /proc/self/smaps_rollup is not there."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    kb = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if value.strip().endswith("kB")}
    private = kb["Private_Dirty"] + kb["Private_Clean"]
    return {"anonymous": kb["Anonymous"] / 1024, "file": max(0, private - kb["Anonymous"]) / 1024}


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of equal width, the first left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        first, *others = (cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        say("  ".join([first, *others]).rstrip())
