"""Links: what is on the screen <-> query parameters. Pure functions; what comes in is checked against what exists.

?bundle=demo&feature=123         a feature
?bundle=demo&text=...            an own text of at most MAX_LINK_TEXT characters
?bundle=demo&doc=embedded/arts/003   a stored document
?bundle=demo&features=12,340     features side by side
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_LINK_TEXT = 1_500
MAX_LINK_FEATURES = 32


@dataclass(frozen=True)
class Link:
    """What a link asks for; `problems` are sentences about what was left out, and why."""

    bundle: str | None = None
    feature: int | None = None
    text: str | None = None
    document: str | None = None
    problems: tuple[str, ...] = ()
    features: tuple[int, ...] = ()


def read_link(params: Mapping[str, str], bundles: Sequence[str]) -> Link:
    """Parse query parameters. An unknown bundle or a malformed feature is left out and named in `problems`."""
    problems = []
    bundle = params.get("bundle") or None
    if bundle is not None and bundle not in bundles:
        problems.append(f"The link asks for the bundle “{bundle[:60]}”, which is not here; showing what is.")
        bundle = None
    asked = [params["feature"]] if params.get("feature") else []
    several = params["features"].split(",")[:MAX_LINK_FEATURES] if params.get("features") else []
    found = {raw: int(raw) for raw in (*asked, *several) if raw.isascii() and raw.isdigit() and len(raw) <= 9}
    problems += [f"The link asks for feature “{raw[:40]}”, which is no feature number." for raw in (*asked, *several) if raw not in found]
    feature = found.get(asked[0]) if asked else None
    text = params.get("text") or None
    if text is not None and len(text) > MAX_LINK_TEXT:
        problems.append(f"The text in the link is longer than {MAX_LINK_TEXT:,} characters and was left out.")
        text = None
    document = params.get("doc") or None
    return Link(
        bundle,
        feature,
        text,
        None if document is None else document[:200],
        tuple(problems),
        tuple(found[raw] for raw in several if raw in found),
    )


def query_of(
    *, bundle: str, feature: int | None = None, text: str | None = None, document: str | None = None, features: Sequence[int] = ()
) -> dict[str, str]:
    """Query parameters that reopen this view. A text that is too long for a link is left out (see `fits_link`)."""
    query = {"bundle": bundle}
    if feature is not None:
        query["feature"] = str(feature)
    if features:
        query["features"] = ",".join(map(str, features))
    if document is not None:
        query["doc"] = document
    elif text is not None and fits_link(text):
        query["text"] = text
    return query


def fits_link(text: str) -> bool:
    """Whether a text travels in links."""
    return len(text) <= MAX_LINK_TEXT
