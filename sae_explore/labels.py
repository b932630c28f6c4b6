"""Scores and automatic labels of features, from evidence alone (no other model is asked).

Evidence: the top examples (peak token, the tokens before and after it, the document's category), weaker examples drawn at
random, and the logit lens. Scores lie between 0 and 1:

    token      share of top examples whose peak token is the most common one (case and leading space put aside)
    before     the same for the token before the peak;  after: for the token after it
    category   share of top examples from the most common category, 0 where it is not at least twice that category's share of the corpus
    lens       how far the lens stands out from chance: the rank of its top logit (in standard deviations) among random directions
    agreement  share of top examples whose peak or following token is among the lens's ten most promoted tokens

A label names the first property below that holds in at least `HOLDS` of the top examples; its confidence is the mean of that
share and the share of the weaker examples for which it holds too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

HOLDS = 0.6
KINDS = ("token", "form", "after", "before", "tokens", "lens", "category", "mixed", "dead")
_MANY_SPACES = 4  # from so many on, a run of spaces is written as a number
_FEW = 3  # a list of at most so many tokens can still name a feature


@dataclass(frozen=True)
class Evidence:
    """One example as the scorer sees it."""

    peak: str
    before: str
    after: str
    category: str


@dataclass(frozen=True)
class Label:
    """An automatic label. `kind` says which property it names; `confidence` is between 0 and 1."""

    text: str
    kind: str
    confidence: float


@dataclass(frozen=True)
class Scores:
    """See the module's docstring."""

    token: float
    before: float
    after: float
    category: float
    lens: float
    agreement: float


def normal(token: str) -> str:
    """A token with case and surrounding space put aside; whitespace stays itself."""
    return token.strip().casefold() or token


# Forms of the peak token, most particular first. The last two are common in any text: they are named only if nothing else holds.
_FORMS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("line breaks", lambda t: "\n" in t),
    ("years", lambda t: bool(re.fullmatch(r"\s?(1[0-9]|20)\d\d", t))),
    ("numbers", lambda t: bool(re.fullmatch(r"\s?[\d.,]*\d[\d.,]*", t))),
    ("brackets", lambda t: bool(re.fullmatch(r"\s?[()\[\]{}<>]+[:;,.]?", t))),
    ("quotation marks", lambda t: bool(re.fullmatch(r"\s?[\"'“”‘’`]+", t))),
    ("punctuation", lambda t: bool(re.fullmatch(r"\s?[^\w\s]+", t))),
    ("white space", lambda t: t.strip() == ""),
    ("words in capitals", lambda t: bool(re.fullmatch(r"\s?[A-Z]{2,}", t))),
    ("non-Latin or accented letters", lambda t: any(ord(c) > 0x7F and c.isalpha() for c in t)),
    ("parts of characters", lambda t: bool(re.fullmatch(r"(<0x[0-9A-F]{2}>)+", t))),
    ("capitalised words", lambda t: bool(re.fullmatch(r"\s[A-Z][a-z]+", t))),
    ("word continuations", lambda t: bool(re.fullmatch(r"[a-z]+", t))),
)


def scores(top: Sequence[Evidence], category_share: dict[str, float], lens_tokens: Sequence[str], lens: float) -> Scores:
    """Scores of a live feature. `lens` is already a share (see `lens_score`)."""
    promoted = {normal(t) for t in lens_tokens[:10]}
    n = max(len(top), 1)
    agreeing = sum(1 for e in top if {normal(e.peak), normal(e.after)} & promoted)
    category, share = _mode([e.category for e in top])
    return Scores(
        _mode([normal(e.peak) for e in top])[1],
        _mode([normal(e.before) for e in top if e.before], n)[1],
        _mode([normal(e.after) for e in top if e.after], n)[1],
        share if share >= 2 * category_share.get(category, 0) else 0.0,
        lens,
        agreeing / n,
    )


def label(
    top: Sequence[Evidence], weaker: Sequence[Evidence], category_share: dict[str, float], lens_tokens: Sequence[str], lens: float
) -> Label:
    """The automatic label of a feature; without examples it is dead."""
    if not top:
        return Label("never fires on this corpus", "dead", 1.0)
    for text, kind, holds in _candidates(top, category_share, lens_tokens, lens):
        share = _share(top, holds)
        if share >= HOLDS:
            return Label(text, kind, round((share + _share(weaker, holds)) / 2 if weaker else share, 3))
    commonest = [shown(t) for t, _ in Counter(normal(e.peak) for e in top).most_common(_FEW)]
    covered = _share(top, lambda e: shown(normal(e.peak)) in commonest)
    return Label("mixed: " + ", ".join(commonest), "mixed", round(covered / 3, 3))


def _candidates(top, category_share, lens_tokens, lens):
    """(text, kind, does it hold for an example?), the most particular property first."""
    peaks = Counter(normal(e.peak) for e in top)
    peak = peaks.most_common(1)[0][0]
    after, after_share = _mode([normal(e.after) for e in top if e.after], len(top))
    before, before_share = _mode([normal(e.before) for e in top if e.before], len(top))
    category, category_top = _mode([e.category for e in top])
    lifted = category_top >= max(HOLDS, 2 * category_share.get(category, 0))
    where = f" in {category} texts" if lifted else ""
    phrase = shown(peak)
    if before_share >= 0.8 and before.strip():
        phrase = f"{shown(before)} {phrase}"
    elif after_share >= 0.8 and after.strip():
        phrase = f"{phrase} {shown(after)}"
    yield phrase + where, "token", lambda e: normal(e.peak) == peak
    few = [t for t, _ in peaks.most_common(_FEW)]
    if len(few) > 1:
        yield " / ".join(map(shown, few)) + where, "tokens", lambda e: normal(e.peak) in few
    for name, holds in _FORMS[:-2]:
        yield name + where, "form", lambda e, holds=holds: holds(e.peak)
    if before.strip() or before == "\n":
        yield f"the word after {shown(before)}" + where, "after", lambda e: normal(e.before) == before
    if after.strip():
        yield f"the word before {shown(after)}" + where, "before", lambda e: normal(e.after) == after
    stem = _common_start(peaks)
    if stem:
        yield f"words that begin with {stem}-" + where, "form", lambda e: normal(e.peak).startswith(stem)
    promoted = {normal(t) for t in lens_tokens[:10]}
    if lens >= 0.9:
        names = ", ".join(dict.fromkeys(shown(normal(t)) for t in lens_tokens[:6] if t.strip()))
        yield f"writes {names}", "lens", lambda e: bool({normal(e.peak), normal(e.after)} & promoted)
    if lifted:
        seen = ", ".join(shown(t) for t in few)
        yield f"{category} texts: {seen}", "category", lambda e: e.category == category
    for name, holds in _FORMS[-2:]:
        yield name, "form", lambda e, holds=holds: holds(e.peak)


def shown(token: str) -> str:
    """A token as it is written in a label."""
    marks = {"\n": "↵", "\t": "⇥"}
    if token.strip(" "):
        return "".join(marks.get(c, c) for c in token.strip(" "))
    return "␣" * len(token) if len(token) < _MANY_SPACES else f"{len(token)} spaces"


def lens_score(z_top: float, random_z_top: Sequence[float]) -> float:
    """Share of random directions whose largest logit, in standard deviations, is below this one's."""
    return sum(1 for z in random_z_top if z < z_top) / max(len(random_z_top), 1)


def _common_start(peaks: Counter) -> str:
    words = [w for w in peaks.elements() if w.isalpha()]
    for size in (5, 4, 3):
        start, share = _mode([w[:size] for w in words if len(w) >= size])
        if share * len(words) >= HOLDS * sum(peaks.values()) and len({w for w in words if w.startswith(start)}) > 2:
            return start
    return ""


def _mode(values: Sequence[str], of: int | None = None) -> tuple[str, float]:
    """The commonest value and its share of all, or of `of` where some examples have none."""
    if not values:
        return "", 0.0
    value, count = Counter(values).most_common(1)[0]
    return value, count / (of or len(values))


def _share(examples: Sequence[Evidence], holds: Callable[[Evidence], bool]) -> float:
    return sum(1 for e in examples if holds(e)) / max(len(examples), 1)
