"""Which features Browse leaves out: density, maximum, scores, live or dead, the kind of label. Controls in one expander, and a reset."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import streamlit as st

from sae_explore.bundles.bundle import Bundle
from sae_explore.explore.browse import Filter
from sae_explore.explore.find_links import NO_SEARCH, RANGES, SHOW, Search
from sae_explore.features.scores import SCORES, known_scores
from sae_explore.wording import KIND_WORDS, percent

_ONE_IN = (0, 1_000_000, 300_000, 100_000, 30_000, 10_000, 3_000, 1_000, 300, 100, 30, 10, 3, 1)  # stops of the density slider; 0: no limit
_SHOW_WORDS = {"live": "Live", "dead": "Dead", "all": "All"}
_ANY = (0.0, math.inf)
CONFIDENCE_HELP = "Share of examples, strong and weak ones, for which the label holds."
_DENSITY_HELP = "Density: share of tokens on which the feature fires."
_STAY = {"persist_state": "session"}


def put(search: Search) -> None:
    """Set the controls to what a search leaves out."""
    state = st.session_state
    state["browse_show"], state["browse_dense"], state["browse_kinds"] = search.show, search.dense, list(search.kinds)
    for name in RANGES:
        low, high = search.range_of(name)
        state[_key(name)] = (_one_in(low), _one_in(high)) if name == "density" else (low, high)


def filters(bundle: Bundle, frame: pd.DataFrame) -> Search:
    """Draw the controls; returns what they leave out, as a search for nothing in particular."""
    summary = bundle.manifest["features"]
    with st.expander("Filters", icon=":material/tune:", key="browse_filters"):
        first, *others = st.columns(4, gap="medium")
        with first:
            show = _show(summary["dead"])
            dense = _dense(summary)
            kinds = st.multiselect(
                "The label names",
                list(KIND_WORDS),
                format_func=KIND_WORDS.get,
                key="browse_kinds",
                placeholder="anything",
                help="Which property the label is about.",
                **_STAY,
            )
        known = known_scores(bundle)
        groups = (("density", "max", "confidence"), known[: len(known) // 2], known[len(known) // 2 :])
        ranges = {}
        for place, names in zip(others, groups, strict=True):
            with place:
                ranges |= {name: _range(name, frame) for name in names}
        if missing := [score.title for name, score in SCORES.items() if name not in known]:
            st.caption(f"Not in this bundle, which was built before: {', '.join(missing)}. Building it again adds them.")
    found = tuple((name, *ranges[name]) for name in RANGES if name in ranges and ranges[name] != _ANY)
    return Search(show=show, dense=dense, kinds=tuple(kinds), ranges=found)


def filter_of(search: Search, bundle: Bundle) -> Filter:
    """What a search leaves out, for `browse.kept`; its words count where it searches in labels."""
    ranges = tuple(
        (name if name in ("max", "confidence") else f"score_{name}", *ends) for name, *ends in search.ranges if name != "density"
    )
    return Filter(
        query=search.query if search.by == "label" else "",
        hide_dead=search.show == "live",
        hide_live=search.show == "dead",
        dense_above=None if search.dense else bundle.manifest["features"]["dense_above"],
        kinds=frozenset(search.kinds),
        density=search.range_of("density"),
        ranges=ranges,
    )


def words(search: Search) -> str:
    """The filters that were set, in words; nothing if none was."""
    said = [] if search.show == "live" else [f"{search.show} features" if search.show == "dead" else "dead ones too"]
    said += ["dense ones too"] if search.dense else []
    said += ["label names " + " or ".join(KIND_WORDS[kind] for kind in search.kinds)] if search.kinds else []
    for name, low, high in search.ranges:
        if name == "density":
            said.append(f"fires on {_one_in_words(_one_in(low))} to {_one_in_words(_one_in(high))}")
        else:
            title = SCORES[name].title.lower() if name in SCORES else name
            ends = [f"from {low:g}"] if low else []
            said.append(" ".join([title, *ends, *([f"to {high:g}"] if high < math.inf else [])]))
    return "; ".join(said)


def reset() -> None:
    """All controls as they were at first."""
    put(NO_SEARCH)


# ---- the controls ------------------------------------------------------------------------------------------------------


def _key(name: str) -> str:
    return f"browse_score_{name}" if name in SCORES else f"browse_{name}"


def _show(dead: int) -> str:
    """Live features, dead ones or all; where none is dead there is nothing to choose."""
    if not dead:
        return "live"
    if st.session_state.get("browse_show") not in SHOW:
        st.session_state["browse_show"] = "live"
    return st.segmented_control(
        f"Live, or dead ({dead:,})",
        SHOW,
        format_func=_SHOW_WORDS.get,
        required=True,
        key="browse_show",
        help="Dead features fire on none of this bundle's tokens.",
        **_STAY,
    )


def _dense(summary: dict) -> bool:
    if not summary["dense"]:
        return False
    said = f"Features that fire on more than {percent(summary['dense_above'])} of all tokens: they say little about any one of them."
    return st.toggle(f"Dense ones too ({summary['dense']:,})", key="browse_dense", help=said, **_STAY)


def _range(name: str, frame: pd.DataFrame) -> tuple[float, float]:
    """A slider with two ends; an end that is not restricted comes back as 0 or infinity."""
    key = _key(name)
    if name == "density":
        ends = (_ONE_IN[0], _ONE_IN[-1])
        low, high = st.select_slider("Fires on", _ONE_IN, ends, format_func=_one_in_words, key=key, help=_DENSITY_HELP, **_STAY)
        return (1 / low if low else 0.0, 1 / high if high > 1 else math.inf)
    low, high = st.session_state.get(key, _ANY)
    if name == "max":
        stops = _max_stops(frame)  # of this bundle: what was chosen in another one is widened to them
        _settle(key, (max(s for s in stops if s <= low), min(s for s in stops if s >= high)))
        said = "Strongest activation on these texts, in the SAE's own units."
        return st.select_slider("Max", stops, (stops[0], stops[-1]), format_func=_max_words, key=key, help=said, **_STAY)
    title, said = ("Confidence", CONFIDENCE_HELP) if name == "confidence" else (SCORES[name].title, SCORES[name].explained)
    _settle(key, (min(low, 1.0), min(high, 1.0)))
    low, high = st.slider(title, 0.0, 1.0, step=0.05, key=key, help=said, **_STAY)
    return low, high if high < 1 else math.inf


def _settle(key: str, ends: tuple[float, float]) -> None:
    if st.session_state.get(key) != ends:
        st.session_state[key] = ends


def _one_in(share: float) -> int:
    """The slider's stop nearest to a share of tokens."""
    if share <= 0 or share >= 1:
        return _ONE_IN[0] if share <= 0 else _ONE_IN[-1]
    return min(_ONE_IN[1:], key=lambda stop: abs(math.log(stop * share)))


def _one_in_words(one_in: int) -> str:
    return "rarest" if not one_in else "every token" if one_in == 1 else f"1 in {one_in:,}"


def _max_stops(frame: pd.DataFrame) -> list[float]:
    """1, 2, 5, 10, 20 ... between the smallest and the largest maximum of a live feature, and no limit at both ends."""
    maxima = frame["max"].to_numpy()
    live = maxima[maxima > 0]
    if not len(live):
        return [*_ANY]
    low, high = float(live.min()), float(live.max())
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    series = [float(np.format_float_positional(step * 10.0**decade, 6, fractional=False)) for decade in decades for step in (1, 2, 5)]
    return [0.0, *(stop for stop in series if low < stop < high), math.inf]


def _max_words(stop: float) -> str:
    return "lowest" if stop == 0 else "highest" if stop == math.inf else f"{stop:g}"
