"""Scores and automatic labels of features, from evidence alone (no other model is asked).

Evidence: the top examples (peak token, the tokens before and after it, the word it belongs to, the document's category), weaker
examples drawn at random, the logit lens, and two findings about all of them together (`meaning`, `topic`). Scores lie between 0 and 1:

    token      share of top examples whose peak token is the most common one (case and leading space put aside)
    before     the same for the token before the peak;  after: for the token after it
    category   share of top examples from the most common category, 0 where it is not at least twice that category's share of the corpus,
               or where they come from fewer than three documents
    lens       how far the lens stands out from chance: the rank of its top logit (in standard deviations) among random directions
    agreement  share of top examples whose peak or following token is among the lens's ten most promoted tokens
    meaning    how alike the peak words are in the unembedding: a rank among sets of corpus words (see `meaning`)
    topic      share of the top examples' documents in which words of one topic stand around the peak (see `topic`)

A label names the first property below that holds in at least `HOLDS` of the top examples; its confidence is the mean of that
share and the share of the weaker examples for which it holds too. Of beginnings, endings and meaning the one that holds in most counts
as first. Meaning must also score `ALIKE`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sae_explore.features.meaning import Meaning
from sae_explore.features.topic import Topic

HOLDS = 0.6
ALIKE = 0.98
KINDS = ("token", "tokens", "form", "after", "before", "meaning", "topic", "lens", "category", "mixed", "dead")
NO_MEANING, NO_TOPIC = Meaning(), Topic()
_MANY_SPACES = 4  # from so many on, a run of spaces is written as a number
_FEW = 3  # a list of at most so many tokens can still name a feature; so many documents and different words make a pattern


@dataclass(frozen=True)
class Evidence:
    """One example as the scorer sees it."""

    peak: str
    before: str
    after: str
    category: str
    word: str = ""  # the whole word that the peak is part of, casefolded; "" if it is none
    document: int = 0


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
    meaning: float
    topic: float


class _Property(NamedTuple):
    """Something that a label can name, and how many examples it is true of."""

    text: str
    kind: str
    top: float
    weaker: float | None  # None: there are no weaker examples


def normal(token: str) -> str:
    """A token with case and surrounding space put aside; whitespace stays itself."""
    return token.strip().casefold() or token


# Forms of the peak token, most particular first. The last one is common in any text: it is named only if nothing else holds.
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
)


def scores(
    top: Sequence[Evidence],
    category_share: dict[str, float],
    lens_tokens: Sequence[str],
    lens: float,
    *,
    meaning: Meaning = NO_MEANING,
    topic: Topic = NO_TOPIC,
) -> Scores:
    """Scores of a live feature. `lens` is already a share (see `lens_score`)."""
    promoted = {normal(t) for t in lens_tokens[:10]}
    most = commonest(top)
    return Scores(
        most["token"][1],
        most["before"][1],
        most["after"][1],
        most["category"][1] if _preferred(top, *most["category"], category_share) else 0.0,
        lens,
        _share(top, lambda e: bool({normal(e.peak), normal(e.after)} & promoted)),
        meaning.score,
        topic.score,
    )


def commonest(top: Sequence[Evidence]) -> dict[str, tuple[str, float]]:
    """Of the peak `token`, the ones `before` and `after` it and the `category`: the commonest, and its share of the examples."""
    return {
        "token": _mode([normal(e.peak) for e in top]),
        "before": _mode([normal(e.before) for e in top if e.before], len(top)),
        "after": _mode([normal(e.after) for e in top if e.after], len(top)),
        "category": _mode([e.category for e in top]),
    }


def label(
    top: Sequence[Evidence],
    weaker: Sequence[Evidence],
    category_share: dict[str, float],
    lens_tokens: Sequence[str],
    lens: float,
    *,
    meaning: Meaning = NO_MEANING,
    topic: Topic = NO_TOPIC,
) -> Label:
    """The automatic label of a feature; without examples it is dead."""
    if not top:
        return Label("never fires on this corpus", "dead", 1.0)
    for found in _properties(top, weaker, category_share, lens_tokens, lens, meaning, topic):
        if found.top >= HOLDS:
            return Label(found.text, found.kind, round(found.top if found.weaker is None else (found.top + found.weaker) / 2, 3))
    few = [shown(t) for t, _ in Counter(normal(e.peak) for e in top).most_common(_FEW)]
    covered = _share(top, lambda e: shown(normal(e.peak)) in few)
    return Label("mixed: " + ", ".join(few), "mixed", round(covered / 3, 3))


def _properties(top, weaker, category_share, lens_tokens, lens, meaning: Meaning, topic: Topic) -> Iterator[_Property]:
    """The most particular one first."""

    def named(text: str, kind: str, holds: Callable[[Evidence], bool]) -> _Property:
        return _Property(text, kind, _share(top, holds), _share(weaker, holds) if weaker else None)

    peaks, most = Counter(normal(e.peak) for e in top), commonest(top)
    peak, (before, before_share), (after, after_share) = most["token"][0], most["before"], most["after"]
    category, category_top = most["category"]
    lifted = category_top >= HOLDS and _preferred(top, category, category_top, category_share)
    where = f" in {category} texts" if lifted else ""
    phrase = shown(peak)
    if before_share >= 0.8 and before.strip():
        phrase = f"{shown(before)} {phrase}"
    elif after_share >= 0.8 and after.strip():
        phrase = f"{phrase} {shown(after)}"
    yield named(phrase + where, "token", lambda e: normal(e.peak) == peak)
    few = [t for t, _ in peaks.most_common(_FEW)]
    if len(few) > 1:
        yield named(" / ".join(map(shown, few)) + where, "tokens", lambda e: normal(e.peak) in few)
    for name, holds in _FORMS[:-1]:
        yield named(name + where, "form", lambda e, holds=holds: holds(e.peak))
    if before.strip() or before == "\n":
        yield named(f"the word after {shown(before)}" + where, "after", lambda e: normal(e.before) == before)
    if after.strip():
        yield named(f"the word before {shown(after)}" + where, "before", lambda e: normal(e.after) == after)
    yield from sorted(_of_words(top, named, where, meaning, bool(weaker)), key=lambda found: -found.top)
    if topic.words:
        yield _Property(f"about {', '.join(topic.words)}", "topic", topic.score, topic.weaker if weaker else None)
    promoted = {normal(t) for t in lens_tokens[:10]}
    if lens >= 0.9:
        names = ", ".join(dict.fromkeys(shown(normal(t)) for t in lens_tokens[:6] if t.strip()))
        yield named(f"writes {names}", "lens", lambda e: bool({normal(e.peak), normal(e.after)} & promoted))
    if lifted:
        seen = ", ".join(shown(t) for t in few)
        yield named(f"{category} texts: {seen}", "category", lambda e: e.category == category)
    name, holds = _FORMS[-1]
    yield named(name, "form", lambda e: holds(e.peak))
    yield named("word continuations", "form", lambda e: bool(re.fullmatch(r"[a-z]+", e.peak)) and e.before[-1:].isalpha())


def _preferred(top: Sequence[Evidence], category: str, share: float, category_share: dict[str, float]) -> bool:
    """Whether a category is much commoner among the examples than in the corpus, and not because of one or two documents."""
    return share >= 2 * category_share.get(category, 0) and len({e.document for e in top if e.category == category}) >= _FEW


def _of_words(top, named, where: str, meaning: Meaning, any_weaker: bool) -> Iterator[_Property]:
    """What the peak words have in common: their meaning, how they begin, how they end."""
    if meaning.score >= ALIKE and meaning.words:
        text = f"words like {', '.join(meaning.words[:_FEW])}" + where
        yield _Property(text, "meaning", meaning.top, meaning.weaker if any_weaker else None)
    words = Counter(e.word for e in top if e.word)
    if start := _common_part(words, lambda word, size: word[:size]):
        yield named(f"words that begin with {start}-" + where, "form", lambda e: e.word.startswith(start))
    if end := _common_part(words, lambda word, size: word[-size:]):
        yield named(f"words that end in -{end}" + where, "form", lambda e: e.word.endswith(end))


def shown(token: str) -> str:
    """A token as it is written in a label."""
    marks = {"\n": "↵", "\t": "⇥"}
    if token.strip(" "):
        return "".join(marks.get(c, c) for c in token.strip(" "))
    return "␣" * len(token) if len(token) < _MANY_SPACES else f"{len(token)} spaces"


def lens_score(z_top: float, random_z_top: Sequence[float]) -> float:
    """Share of random directions whose largest logit, in standard deviations, is below this one's."""
    return sum(1 for z in random_z_top if z < z_top) / max(len(random_z_top), 1)


def _common_part(words: Counter, part: Callable[[str, int], str]) -> str:
    """The longest beginning (or ending) of 2 to 5 letters that HOLDS of the words share, of three different words at least."""
    for size in (5, 4, 3, 2):
        found, share = _mode([part(w, size) for w in words.elements() if len(w) > size], words.total())
        if share >= HOLDS and len({w for w in words if len(w) > size and part(w, size) == found}) >= _FEW:
            return found
    return ""


def _mode(values: Sequence[str], of: int | None = None) -> tuple[str, float]:
    """The commonest value and its share of all, or of `of` where some examples have none."""
    if not values:
        return "", 0.0
    value, count = Counter(values).most_common(1)[0]
    return value, count / (of or len(values))


def _share(examples: Sequence[Evidence], holds: Callable[[Evidence], bool]) -> float:
    return sum(1 for e in examples if holds(e)) / max(len(examples), 1)
