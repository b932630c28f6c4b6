"""Links: what is on the screen <-> query parameters. Pure functions; what comes in is checked against what exists.

?bundle=demo&feature=123         a feature
?bundle=demo&text=...            an own text of at most MAX_LINK_TEXT characters
?bundle=demo&doc=embedded/arts/003   a stored document
?bundle=demo&features=12,340     features side by side
?bundle=demo&features=12,340&list=Time&note=...&notes=["", "..."]   a list with its name, its note and a note for each feature
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

KEYS = ("bundle", "feature", "features", "text", "doc", "list", "note", "notes")
MAX_LINK_TEXT = 1_500
MAX_LINK_FEATURES = 200
_NAME = 60  # characters of a list's name


@dataclass(frozen=True)
class Link:
    """What a link asks for; `problems` are sentences about what was left out, and why."""

    bundle: str | None = None
    feature: int | None = None
    text: str | None = None
    document: str | None = None
    problems: tuple[str, ...] = ()
    features: tuple[int, ...] = ()
    name: str = ""  # of a list
    note: str = ""
    notes: tuple[str, ...] = ()  # one for each of `features`, or none at all


def read_link(params: Mapping[str, str], bundles: Sequence[str]) -> Link:
    """Parse query parameters. An unknown bundle or a malformed feature is left out and named in `problems`."""
    problems = []
    bundle = params.get("bundle") or None
    if bundle is not None and bundle not in bundles:
        problems.append(f"The link asks for the bundle “{bundle[:60]}”, which is not here; showing what is.")
        bundle = None
    asked = [params["feature"]] if params.get("feature") else []
    several = params["features"].split(",") if params.get("features") else []
    if len(several) > MAX_LINK_FEATURES:
        problems.append(f"The link asks for {len(several):,} features; the first {MAX_LINK_FEATURES} of them are here.")
    several = several[:MAX_LINK_FEATURES]
    found = {raw: int(raw) for raw in (*asked, *several) if raw.isascii() and raw.isdigit() and len(raw) <= 9}
    problems += [f"The link asks for feature “{raw[:40]}”, which is no feature number." for raw in (*asked, *several) if raw not in found]
    feature = found.get(asked[0]) if asked else None
    text = params.get("text") or None
    if text is not None and len(text) > MAX_LINK_TEXT:
        problems.append(f"The text in the link is longer than {MAX_LINK_TEXT:,} characters and was left out.")
        text = None
    document = params.get("doc") or None
    features, notes = tuple(found[raw] for raw in several if raw in found), _notes(params.get("notes") or "")
    if notes is None or len(notes) not in (0, len(features)):
        problems.append("The notes in the link do not fit its features and were left out.")
        notes = ()
    return Link(
        bundle,
        feature,
        text,
        None if document is None else document[:200],
        tuple(problems),
        features,
        (params.get("list") or "")[:_NAME],
        (params.get("note") or "")[:MAX_LINK_TEXT],
        notes,
    )


def _notes(raw: str) -> tuple[str, ...] | None:
    """The notes of a list's features; None if they are no list of texts."""
    try:
        found = json.loads(raw) if raw and len(raw) <= 8 * MAX_LINK_TEXT else [] if not raw else None
    except (ValueError, RecursionError):
        return None
    return tuple(found) if isinstance(found, list) and all(isinstance(note, str) for note in found) else None


def query_of(
    *,
    bundle: str,
    feature: int | None = None,
    text: str | None = None,
    document: str | None = None,
    features: Sequence[int] = (),
    name: str = "",
    note: str = "",
    notes: Sequence[str] = (),
) -> dict[str, str]:
    """Query parameters that reopen this view. A text or notes that are too long for a link are left out (see `fits_link`)."""
    query = {"bundle": bundle}
    if feature is not None:
        query["feature"] = str(feature)
    if features:
        query["features"] = ",".join(map(str, features))
    if name:
        query["list"] = name
    if fits_link(note, *notes):
        query |= {"note": note} if note else {}
        query |= {"notes": json.dumps(list(notes), ensure_ascii=False, separators=(",", ":"))} if any(notes) else {}
    if document is not None:
        query["doc"] = document
    elif text is not None and fits_link(text):
        query["text"] = text
    return query


def fits_link(*texts: str) -> bool:
    """Whether a text, or the notes of a list, travel in links."""
    return sum(map(len, texts)) <= MAX_LINK_TEXT
