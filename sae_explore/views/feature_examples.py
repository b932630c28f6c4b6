"""Where a feature fires, in context: its strongest examples, some of each fifth of its range, and random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from sae_explore.bundles.bundle import CONTEXT_AFTER, CONTEXT_BEFORE, Bundle
from sae_explore.drawing import spans
from sae_explore.types import Example, FeatureCard
from sae_explore.views import example_links
from sae_explore.wording import band_range, count_of

TOP = 20
_SHOWN = 10  # of the strongest examples, unless asked for all
_FIRST, _EACH = 5, 1  # of the overview: of the strongest, and of each weaker fifth
_WHOLE = 400  # tokens on each side of a peak that are "whole": more would be a page an example

_KINDS = ("Overview", "Strongest", "By strength", "Random")
_KINDS_HELP = (
    "Overview: the strongest examples and, below them, one from each weaker fifth of the range. Strongest: the strongest alone. "
    "By strength: several from each fifth. Random: drawn from all texts in which it fires."
)


@st.fragment
def examples(bundle: Bundle, card: FeatureCard) -> None:
    """The section, with its choices; `card` holds the feature's TOP strongest examples."""
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.subheader("Where it fires", anchor=False, help=_KINDS_HELP, width="content")
        with st.container(horizontal=True, gap="medium", width="content"):
            whole = st.toggle(
                "Whole texts",
                key="example_whole",
                persist_state="session",
                help=f"Up to {_WHOLE} tokens on each side of the peak, not {CONTEXT_BEFORE} before and {CONTEXT_AFTER} after it.",
            )
            breaks = st.toggle(
                "Line breaks",
                key="example_breaks",
                persist_state="session",
                help="Break lines where the text does. Otherwise a line break is a mark, ↵.",
            )
    kind = st.segmented_control(
        "Which examples",
        _KINDS,
        default=_KINDS[0],
        required=True,
        key="example_kind",
        label_visibility="collapsed",
        persist_state="session",
    )
    {"Overview": _overview, "Strongest": _strongest, "By strength": _by_strength, "Random": _random}[kind](
        _Lists(bundle, card, whole, breaks)
    )


@dataclass(frozen=True)
class _Lists:
    """One feature's examples, and how they are drawn."""

    bundle: Bundle
    card: FeatureCard
    whole: bool
    breaks: bool

    def draw(self, found: Sequence[Example]) -> None:
        """As one list; the card's examples have the usual context."""
        feature = self.card.ref.feature
        if self.whole:
            found = [
                self.bundle.example(
                    feature, int(self.bundle.doc_offsets[e.document]) + e.peak, e.kind, e.interval, before=_WHOLE, after=_WHOLE
                )
                for e in found
            ]
        address = example_links.address(self.bundle, feature)
        st.html(spans.examples_html(found, float(self.bundle.maxima[feature]), feature=feature, breaks=self.breaks, address=address))


def _overview(lists: _Lists) -> None:
    """The strongest, and what weaker firings are like: a label that fits the first alone describes a part of the feature."""
    strongest = lists.card.top[:_FIRST]
    shown = {(e.document, e.peak) for e in strongest}
    highest = lists.bundle.examples["interval"].shape[1] - 1
    weaker = []
    for interval in range(highest - 1, -1, -1):
        weaker += [e for e in lists.card.intervals if e.interval == interval and (e.document, e.peak) not in shown][:_EACH]
    st.caption(f"The strongest {len(strongest)}. Left: activation at the peak, the underlined token. Darker means closer to the maximum.")
    lists.draw(strongest)
    if weaker:
        st.caption("Weaker ones: an example from each fifth of the range below.")
        lists.draw(weaker)


def _strongest(lists: _Lists) -> None:
    found = lists.card.top
    more = len(found) > _SHOWN and st.session_state.get("example_all", False)
    st.caption(
        "Strongest first, one per window of text. Left: activation at the peak, the underlined token. Darker means closer to the maximum."
    )
    lists.draw(found if more else found[:_SHOWN])
    if len(found) > _SHOWN:
        st.toggle(f"All {len(found)}", key="example_all", persist_state="session")


def _by_strength(lists: _Lists) -> None:
    """Some examples of each fifth of the range, the strongest fifth first."""
    st.caption(
        "Examples drawn at random from each fifth of the range up to the maximum; each stands in the fifth of its own peak. "
        "A clear feature means the same in all of them."
    )
    edges, counts = lists.card.extra["histogram"]
    maximum = float(edges[-1])
    intervals = lists.bundle.examples["interval"].shape[1]
    per = counts.reshape(intervals, -1).sum(1) if len(counts) % intervals == 0 else None
    for i in range(intervals - 1, -1, -1):
        low, high = i / intervals, (i + 1) / intervals
        tokens = f", {count_of(int(per[i]), 'token')}" if per is not None else ""
        st.markdown(
            f"**{low * maximum:.2f} to {high * maximum:.2f}** · {band_range(low, high)} ({100 * low:.0f} to {100 * high:.0f} % of the "
            f"maximum{tokens})"
        )
        chosen = [e for e in lists.card.intervals if e.interval == i]
        if chosen:
            lists.draw(chosen)
        else:
            st.caption("No window of text peaks in this range.")


def _random(lists: _Lists) -> None:
    st.caption("Windows of text drawn at random from all in which the feature fires: what a typical firing looks like.")
    lists.draw(lists.card.random)
