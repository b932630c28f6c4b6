"""Links: what is on the screen <-> query parameters. Pure functions; what comes in is checked against what exists.

?bundle=demo&feature=123         a feature
?bundle=demo&text=...            an own text of at most MAX_LINK_TEXT characters
?bundle=demo&doc=embedded/arts/003   a stored document
?bundle=demo&features=12,340     features side by side
?bundle=demo&text=...&text2=...  two texts side by side; doc2 for a stored one, bundle2 for another bundle that reads the same text
?bundle=demo&features=12,340&list=Time&note=...&notes=["", "..."]   a list with its name, its note and a note for each feature
?bundle=demo&find=token&q=Paris&where=density:0..0.01   a search (see `find_links`)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sae_explore.explore import find_links
from sae_explore.explore.find_links import NO_SEARCH, Search

KEYS = ("bundle", "feature", "features", "text", "doc", "text2", "doc2", "bundle2", "list", "note", "notes", *find_links.KEYS)
MAX_LINK_TEXT = 1_500
MAX_LINK_FEATURES = 200
_NAME = 60  # characters of a list's name
_SAID = 3  # wrong features that are named one by one


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
    search: Search = NO_SEARCH
    text2: str | None = None
    document2: str | None = None
    bundle2: str | None = None


def read_link(params: Mapping[str, str], bundles: Sequence[str]) -> Link:
    """Parse query parameters. An unknown bundle or a malformed feature is left out and named in `problems`."""
    problems = []
    bundle, bundle2 = (_known_bundle(params.get(key), bundles, problems) for key in ("bundle", "bundle2"))
    asked = [params["feature"]] if params.get("feature") else []
    several = params["features"].split(",") if params.get("features") else []
    if len(several) > MAX_LINK_FEATURES:
        problems.append(f"The link asks for {len(several):,} features; the first {MAX_LINK_FEATURES} of them are here.")
    several = several[:MAX_LINK_FEATURES]
    found = {raw: int(raw) for raw in (*asked, *several) if raw.isascii() and raw.isdigit() and len(raw) <= 9}
    unread = [raw for raw in dict.fromkeys((*asked, *several)) if raw not in found]
    problems += [f"The link asks for feature “{raw[:40]}”, which is no feature number." for raw in unread[:_SAID]]
    if len(unread) > _SAID:
        problems.append(f"The link asks for {len(unread) - _SAID:,} more that are no feature numbers.")
    feature = found.get(asked[0]) if asked else None
    text, text2 = (_short_text(params.get(key), problems) for key in ("text", "text2"))
    document, document2 = ((params.get(key) or "")[:200] or None for key in ("doc", "doc2"))
    features, notes = tuple(found[raw] for raw in several if raw in found), _notes(params.get("notes") or "")
    if notes is None or len(notes) not in (0, len(features)):
        problems.append("The notes in the link do not fit its features and were left out.")
        notes = ()
    search, wrong = find_links.from_params(params)
    problems += wrong
    return Link(
        bundle,
        feature,
        text,
        document,
        tuple(problems),
        features,
        (params.get("list") or "")[:_NAME],
        (params.get("note") or "")[:MAX_LINK_TEXT],
        notes,
        search,
        text2,
        document2,
        bundle2,
    )


def _known_bundle(name: str | None, bundles: Sequence[str], problems: list[str]) -> str | None:
    """The bundle, if it is here."""
    if not name or name in bundles:
        return name or None
    problems.append(f"The link asks for the bundle “{name[:60]}”, which is not here; showing what is.")
    return None


def _short_text(text: str | None, problems: list[str]) -> str | None:
    """The text, if links carry one of its length."""
    if not text or len(text) <= MAX_LINK_TEXT:
        return text or None
    problems.append(f"The text in the link is longer than {MAX_LINK_TEXT:,} characters and was left out.")
    return None


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
    search: Search = NO_SEARCH,
    text2: str | None = None,
    document2: str | None = None,
    bundle2: str | None = None,
) -> dict[str, str]:
    """Query parameters that reopen this view. A text or notes that are too long for a link are left out (see `fits_link`).

    A stored document goes before a text. Of two texts, one that is too long takes the other along: half of a pair compares nothing.
    """
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
    own = {"text": text if document is None else None, "text2": text2 if document2 is None else None}
    if all(fits_link(t) for t in own.values() if t is not None):
        query |= {key: value for key, value in {"doc": document, "doc2": document2, **own}.items() if value is not None}
    query |= {"bundle2": bundle2} if bundle2 is not None else {}
    return query | find_links.to_params(search)


def fits_link(*texts: str) -> bool:
    """Whether a text, or the notes of a list, travel in links."""
    return sum(map(len, texts)) <= MAX_LINK_TEXT
