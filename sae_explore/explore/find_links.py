"""A search of the page Browse as query parameters, and back. Pure functions; what comes in is checked.

?find=token&q=Paris&where=density:0.001..0.03;kinds:token+form;show:all
    find    how it searches, one of BY (left out: label)
    q       what it searches for: words, a feature's number, the name of a category or of a saved list
    where   which features it leaves out: ranges by name, both ends included, `inf` for no upper end; `kinds` of label; `show`, one of SHOW;
            `dense`, to show those too; `suppressed`, where a lens search asks for the other end of the lists
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sae_explore.features.scores import SCORES
from sae_explore.wording import KIND_WORDS

BY = ("label", "phrase", "token", "lens", "category", "similar", "list")
SHOW = ("live", "dead", "all")
RANGES = ("density", "max", "confidence", *SCORES)
KEYS = ("find", "q", "where")
MAX_QUERY = 1_500  # characters
_MAX_WHERE = 1_000
_RANGE = re.compile(r"([a-z]+):([0-9.e+-]{1,25})\.\.([0-9.e+-]{1,25}|inf)")


@dataclass(frozen=True)
class Search:
    """What Browse searches for, and which features it leaves out."""

    by: str = "label"
    query: str = ""
    suppressed: bool = False
    show: str = "live"
    dense: bool = False
    kinds: tuple[str, ...] = ()  # none: all
    ranges: tuple[tuple[str, float, float], ...] = ()  # (name, from, to), each name once

    def range_of(self, name: str) -> tuple[float, float]:
        """Of one of RANGES; (0, inf) where it is not restricted."""
        return next(((low, high) for found, low, high in self.ranges if found == name), (0.0, math.inf))


NO_SEARCH = Search()


def to_params(search: Search) -> dict[str, str]:
    """Query parameters that bring the search back. A query that is too long for a link is left out."""
    params = {} if search.by == "label" else {"find": search.by}
    if search.query and len(search.query) <= MAX_QUERY:
        params["q"] = search.query
    parts = [f"{name}:{_number(low)}..{_number(high)}" for name, low, high in search.ranges]
    parts += ["kinds:" + "+".join(search.kinds)] if search.kinds else []
    parts += [f"show:{search.show}"] if search.show != "live" else []
    parts += [word for word, on in (("dense", search.dense), ("suppressed", search.suppressed)) if on]
    if parts:
        params["where"] = ";".join(parts)
    return params


def from_params(params: Mapping[str, str]) -> tuple[Search, list[str]]:
    """(the search, sentences about what was left out of it and why)."""
    problems, by, query = [], params.get("find") or "label", params.get("q") or ""
    if by not in BY:
        problems.append(f"The link searches by “{by[:40]}”, which is not known; known are {', '.join(BY)}.")
        by, query = "label", ""
    if len(query) > MAX_QUERY:
        problems.append(f"What the link searches for is longer than {MAX_QUERY:,} characters and was left out.")
        query = ""
    where, ranges, found = params.get("where") or "", {}, {}
    if len(where) > _MAX_WHERE:
        problems.append(f"The filters in the link are longer than {_MAX_WHERE:,} characters and were left out.")
        where = ""
    for part in filter(None, where.split(";")):
        if (one := _range(part)) is not None:
            ranges[one[0]] = one
        elif (word := _word(part)) is not None:
            found |= word
        else:
            problems.append(f"The filter “{part[:40]}” in the link is not understood and was left out.")
    return Search(by, query, ranges=tuple(ranges[name] for name in RANGES if name in ranges), **found), problems[:6]


def _number(value: float) -> str:
    """Exact, and short for whole numbers."""
    return str(int(value)) if value.is_integer() and value < 1e15 else repr(float(value))


def _range(part: str) -> tuple[str, float, float] | None:
    match = _RANGE.fullmatch(part)
    if match is None or match[1] not in RANGES:
        return None
    try:
        low, high = float(match[2]), float(match[3])
    except ValueError:
        return None
    return (match[1], low, high) if 0 <= low <= high and math.isfinite(low) else None


def _word(part: str) -> dict | None:
    name, _, value = part.partition(":")
    if part in ("dense", "suppressed"):
        return {part: True}
    if name == "show" and value in SHOW:
        return {"show": value}
    if name == "kinds" and value and all(kind in KIND_WORDS for kind in value.split("+")):
        return {"kinds": tuple(dict.fromkeys(value.split("+")))}
    return None
