"""Two texts through one SAE: both coloured by one feature, and a table of what differs."""

from __future__ import annotations

import numpy as np
import streamlit as st

from sae_explore import public_mode, resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import spans
from sae_explore.drawing.spans import md
from sae_explore.errors import ExploreError
from sae_explore.explore import links, text_view
from sae_explore.explore.compare import Comparison
from sae_explore.explore.showcase import notable
from sae_explore.types import TextTrace
from sae_explore.views import addresses, compare_sides, compare_tables
from sae_explore.views.compare_sides import PAIRS, Side
from sae_explore.views.feature_panel import feature_panel
from sae_explore.wording import count_of, percent, sentence

WIDE = [61, 39]
_LOOK_AT = 4
COLOUR_HELP = (
    "Clearly labelled features of which the two texts hold very different amounts. A row of the table below chooses any other. The "
    "darker, the more strongly it fires on a token, on one scale for both texts; its strongest token is bold."
)


def render(bundle: Bundle) -> None:
    """Draw the mode."""
    a, b, default = _sides(bundle)
    compare_sides.pairs(a, b)
    _form(bundle, a, b)
    st.caption(compare_sides.about(bundle))
    feature = compare_sides.feature_of_session(bundle)
    addresses.write_link(
        bundle,
        bare=default and feature is None,
        feature=feature,
        text=a.text if a else None,
        document=a.document if a else None,
        text2=b.text if b else None,
        document2=b.document if b else None,
    )
    body = st.empty()
    if a is None or b is None:
        body.info(f"Type or choose {NAMES_OF[a is None, b is None]}, and compare.", icon=":material/compare:")
        return
    if default and not compare_sides.model_is_here(bundle):
        body.info(f"Compare these two, or choose stored texts. Own texts: {compare_sides.fetching(bundle)}.", icon=":material/compare:")
        return
    traces = compare_sides.read(bundle, (a, b), body)
    if traces is None:
        return
    with body.container():
        try:
            found = resources.get_comparison(bundle, a.key, b.key)
        except ExploreError as error:
            st.error(md(sentence(public_mode.shown(error))), icon=":material/edit_off:")
            return
        _result(bundle, (a, b), traces, found, feature)


NAMES_OF = {(True, True): "two texts", (True, False): "a text A", (False, True): "a second text"}


def _sides(bundle: Bundle) -> tuple[Side | None, Side | None, bool]:
    """(A, B, whether nobody chose them): at first an own text that the session holds, or the first pair of examples."""
    state = st.session_state
    if "compare_a" in state or "compare_b" in state:
        return compare_sides.chosen("a"), compare_sides.chosen("b"), False
    if state.get("text") is not None:
        return Side(state["text"]), None, False
    return Side(PAIRS[0].a), Side(PAIRS[0].b), True


def _form(bundle: Bundle, a: Side | None, b: Side | None) -> None:
    shown = {"a": a, "b": b}
    with st.form("compare_texts", border=False):
        for column, (name, side) in zip(st.columns(2, gap="medium"), shown.items(), strict=True):
            with column:
                compare_sides.text_area(name, side, compare_sides.NAMES[name])
        st.form_submit_button("Compare", type="primary", on_click=compare_sides.take_typed, args=(shown,))
    with st.expander("Or take stored texts", icon=":material/inventory_2:"):
        for column, (name, side) in zip(st.columns(2, gap="medium"), shown.items(), strict=True):
            with column:
                compare_sides.stored_choice(bundle, name, side, compare_sides.NAMES[name])
    compare_sides.show_problem()


# ---- what differs ------------------------------------------------------------------------------------------------------


def _result(bundle: Bundle, sides: tuple[Side, Side], traces: list[TextTrace], found: Comparison, feature: int | None) -> None:
    st.markdown(_summary(traces, found))
    if len(found):
        look_at = _look_at(bundle, found)
        if feature is not None and feature not in found.feature:
            st.caption(f"Feature {feature}, which was chosen before, is silent on both texts.")
            feature = None
        shown = look_at[0] if feature is None else feature
        options = list(dict.fromkeys([*look_at, shown]))
        labels = text_view.labels_of(bundle, options)
        compare_sides.colour_choice(dict(zip(options, labels, strict=True)), shown, help_text=COLOUR_HELP)
    else:
        shown = None
    columns = st.columns(2, gap="medium")
    for column, name, trace, lone in zip(columns, "AB", traces, (found.lone_a, found.lone_b), strict=True):
        with column:
            st.markdown(f"**Text {name}**" + (f" {_fires(bundle, shown, trace)}" if shown is not None else ""))
            compare_sides.coloured(bundle, trace, shown, lone=lone if len(found.pairs) else None)
    st.html(spans.bands_html(lone=True))
    st.caption(_about(sides, traces))
    if shown is None:
        st.info("No feature fires on either text.", icon=":material/do_not_disturb_on:")
        return
    left, right = st.columns(WIDE, gap="medium")
    with left:
        st.subheader("What differs", anchor=False)
        compare_tables.differences(bundle, traces, found, shown)
    with right:
        feature_panel(bundle, shown, kicker="The texts are coloured by")


def _summary(traces: list[TextTrace], found: Comparison) -> str:
    """How much the texts share, and how many features fire on which."""
    if not len(found.lone_a[found.lone_a]) and not len(found.lone_b[found.lone_b]):
        return "The two texts are the same, token for token: nothing differs."
    n, m = (len(t.tokens) for t in traces)
    shared = count_of(len(found.pairs), "token") if len(found.pairs) else "No token"
    only_a, only_b = int(found.only_a.sum()), int(found.only_b.sum())
    return (
        f"**{shared}** of A's {n:,} and B's {m:,} {'is' if len(found.pairs) == 1 else 'are'} shared, in the same order. "
        f"**{count_of(only_a, 'feature')}** {'fires' if only_a == 1 else 'fire'} on A only, **{only_b:,}** on B only, "
        f"**{len(found) - only_a - only_b:,}** on both, dense ones included."
    )


def _look_at(bundle: Bundle, found: Comparison) -> list[int]:
    """Features worth colouring the texts by: of clear ones those that differ most, else the first ones."""
    labels = text_view.labels_of(bundle, found.feature)
    best = notable(found.feature, np.abs(np.nan_to_num(found.score)), resources.get_worth(bundle), labels, _LOOK_AT)
    return list(best) or found.feature[:_LOOK_AT].tolist()


def _fires(bundle: Bundle, feature: int, trace: TextTrace) -> str:
    """How the feature does on a text."""
    column = trace.rows.column(feature)
    if not column.any():
        return "silent"
    peak, maximum = int(column.argmax()), float(bundle.maxima[feature])
    token = md(spans.dotted(trace.tokens.texts[peak], trace.tokens.bytes[peak]))
    return (f"{percent(column[peak] / maximum)} of its maximum" if maximum > 0 else f"{column[peak]:.2f}") + f", on “{token}”"


def _about(sides: tuple[Side, Side], traces: list[TextTrace]) -> str:
    """Where the texts come from, what is ignored, and whether the address carries them."""
    said = [f"{name} is the stored text {md(s.document)}." for name, s in zip("AB", sides, strict=True) if s.document is not None]
    if ignored := sum(int(t.ignored.sum()) for t in traces):
        said.append(f"Grey: {count_of(ignored, 'token')} that {'is' if ignored == 1 else 'are'} ignored (special tokens, attention sinks).")
    if not all(s.document is not None or links.fits_link(s.text) for s in sides):
        said.append("Texts of this length do not travel in the page's address: a copied link opens without them.")
    return " ".join(said)
