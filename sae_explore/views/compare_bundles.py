"""One text through two bundles: what each sees in it, piece by piece, and which of their features fire alike."""

from __future__ import annotations

import numpy as np
import streamlit as st

from sae_explore import public_mode, resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import spans
from sae_explore.drawing.spans import md
from sae_explore.errors import ExploreError
from sae_explore.explore import compare_bundles as engine
from sae_explore.explore import links, text_view
from sae_explore.explore.showcase import notable
from sae_explore.types import TextTrace
from sae_explore.views import addresses, compare_sides, compare_tables, own_notes
from sae_explore.views.compare_sides import Side
from sae_explore.views.feature_panel import feature_panel
from sae_explore.wording import count_of, sentence

_LOOK_AT = 4
_LITTLE = 0.6  # from this cosine by chance on, matches say little
COLOUR_HELP = (
    "Clearly labelled features of the first bundle that are strong on this text; the second is coloured by the feature that fires most "
    "like it here. A row of the table below chooses any other."
)
ALIKE_HELP = (
    "For each feature, the cosine with the feature of the other bundle that fires most like it along this text, averaged over the "
    "{most} features of each bundle that are strongest here. By chance: the same with one of the readings shifted along the text. "
    "Features that fire on a single token match easily: compare the two numbers, and look at how often both fire."
)


def render(bundle: Bundle) -> None:
    """Draw the mode."""
    others = [name for name in resources.bundle_names() if name != bundle.name]
    side = _side(bundle)
    if not others:
        addresses.write_link(bundle)
        _no_other(bundle)
        return
    left, right = st.columns(2, gap="medium")
    with left:
        _form(bundle, side)
    with right:
        second_name = _second(others)
        compare_sides.stored_choice(bundle, "a", side, "Or a stored text")
    compare_sides.show_problem()
    feature = compare_sides.feature_of_session(bundle)
    text = None if side is None else side.text
    addresses.write_link(bundle, feature=feature, text=text, document=side.document if side else None, bundle2=second_name)
    body = st.empty()
    if side is None:
        body.info("Type or choose a text, and compare.", icon=":material/compare:")
        return
    try:
        second = own_notes.overlaid(resources.get_bundle(second_name))
    except ExploreError as error:
        body.error(md(public_mode.shown(error)), icon=":material/broken_image:")
        return
    traces = _read(bundle, second, side, body)
    if traces is not None:
        with body.container():
            _result((bundle, second), traces, feature, side)


def _no_other(bundle: Bundle) -> None:
    """Empty state: there is nothing to compare with."""
    st.info(
        f"{md(bundle.name)} is the only bundle here. Another one of the same model at another layer, or with another SAE, can be compared "
        "with it.",
        icon=":material/inventory_2:",
    )
    if resources.builds_allowed():
        st.page_link(addresses.page_named("build"), label="Build another", icon=":material/construction:")


def _side(bundle: Bundle) -> Side | None:
    """The text: the chosen one, or at first what the session shows on its other pages, or a stored one."""
    state = st.session_state
    if "compare_a" in state:
        return compare_sides.chosen("a")
    if state.get("text") is not None:
        return Side(state["text"])
    found = compare_sides.stored(bundle, state["document"]) if state.get("document") else None
    return found or compare_sides.stored(bundle, resources.get_picks(bundle)[0].id)


def _form(bundle: Bundle, side: Side | None) -> None:
    with st.form("compare_bundles", border=False):
        compare_sides.text_area("a", side, "Text", height=110)
        st.form_submit_button("Compare", type="primary", on_click=compare_sides.take_typed, args=({"a": side},))


def _second(others: list[str]) -> str:
    """The second bundle, by its name."""
    state = st.session_state
    wanted = state.get("compare_bundle")
    state["_compare_second"] = wanted if wanted in others else others[0]

    def choose() -> None:
        state["compare_bundle"] = state["_compare_second"]

    return st.selectbox("Second bundle", others, key="_compare_second", on_change=choose, help="The first one is chosen in the sidebar.")


def _read(first: Bundle, second: Bundle, side: Side, body) -> tuple[TextTrace, TextTrace] | None:
    """The text through both; a bundle that has it in its store needs no model."""
    found = []
    for bundle in (first, second):
        row = side.row if bundle is first else _same_stored(bundle, side)
        traces = compare_sides.read(bundle, (Side(side.text, side.document if row is not None else None, row),), body)
        if traces is None:
            return None
        found += traces
    return found[0], found[1]


def _same_stored(bundle: Bundle, side: Side) -> int | None:
    """The row of the same text in the other bundle's store, if it is there."""
    found = compare_sides.stored(bundle, side.document) if side.document else None
    return found.row if found and found.text == side.text else None


# ---- what each sees ----------------------------------------------------------------------------------------------------


def _result(bundles: tuple[Bundle, Bundle], traces: tuple[TextTrace, TextTrace], feature: int | None, side: Side) -> None:
    scales = [text_view.scale_of(b) for b in bundles]
    dense = st.session_state.get("_compare_dense", False)
    ranked = [text_view.ranked(t, s, dense=dense) for t, s in zip(traces, scales, strict=True)]
    try:
        matches = engine.matches(*traces, *ranked)
        pieces = engine.stretches(*traces, *(text_view.strongest(t, s, dense=dense) for t, s in zip(traces, scales, strict=True)))
    except ExploreError as error:
        st.error(md(sentence(public_mode.shown(error))), icon=":material/edit_off:")
        return
    shown = _coloured_by(bundles[0], ranked[0], feature)
    partner = None if shown is None else matches.a.of(shown)
    for column, bundle, name, trace, f in zip(st.columns(2, gap="medium"), bundles, "AB", traces, (shown, partner), strict=True):
        with column:
            _one(bundle, name, trace, f)
    st.html(spans.bands_html())
    _alike(matches, len(pieces))
    st.subheader("Which features fire alike", anchor=False)
    compare_tables.dense_switch(bundles[0], sum(r.hidden for r in ranked) if not dense else _dense_here(traces, scales))
    if len(matches.a):
        compare_tables.best_matches(
            bundles, matches.a, matches.unit, key=f"matches-{bundles[1].name}-{hash(traces[0].text)}", feature=shown
        )
    st.subheader("Piece by piece", anchor=False, help="Pieces that hold whole tokens of both bundles, with the strongest feature of each.")
    compare_tables.stretch_table(bundles, pieces, traces[0].text, (bundles[0].name, bundles[1].name))
    if shown is not None:
        _panels(bundles, traces, shown, partner)
    if side.document is None and not links.fits_link(side.text):
        st.caption("A text of this length does not travel in the page's address: a copied link opens without it.")


def _dense_here(traces, scales) -> int:
    """Dense features that fire on the text in either bundle."""
    return sum(int(s.dense[np.unique(t.rows.features)].sum()) for t, s in zip(traces, scales, strict=True))


def _coloured_by(bundle: Bundle, ranked: text_view.Ranked, feature: int | None) -> int | None:
    """The chosen feature if it fires here, else a clear one; with a choice of a few."""
    if not len(ranked):
        st.info("No feature of the first bundle fires on this text.", icon=":material/do_not_disturb_on:")
        return None
    labels = text_view.labels_of(bundle, ranked.feature)
    look_at = list(notable(ranked.feature, np.nan_to_num(ranked.share), resources.get_worth(bundle), labels, _LOOK_AT))
    look_at = look_at or ranked.feature[:_LOOK_AT].tolist()
    if feature is not None and feature not in ranked.feature:
        st.caption(f"Feature {feature}, which was chosen before, is silent on this text.")
        feature = None
    shown = look_at[0] if feature is None else feature
    options = list(dict.fromkeys([*look_at, shown]))
    compare_sides.colour_choice(dict(zip(options, text_view.labels_of(bundle, options), strict=True)), shown, help_text=COLOUR_HELP)
    return shown


def _one(bundle: Bundle, name: str, trace: TextTrace, feature: int | None) -> None:
    """The text in one bundle."""
    st.markdown(f"**{name}** {compare_sides.about(bundle)}")
    if feature is None:
        st.caption("No feature here fires like it.")
    else:
        (label,) = text_view.labels_of(bundle, [feature])
        st.caption(f"Coloured by feature {feature}: {md(label)}")
    compare_sides.coloured(bundle, trace, feature)


def _alike(matches: engine.Matches, pieces: int) -> None:
    """How alike the two fire, beside chance."""
    if np.isnan(matches.alike):
        return
    chance = "" if np.isnan(matches.chance) else f", by chance {matches.chance:.2f}"
    cut = (
        "both cut the text into the same tokens"
        if matches.unit == "token"
        else "they cut the text differently and are compared by character"
    )
    telling = "" if not matches.chance > _LITTLE else " On a text as short as this, chance does nearly as well: the matches say little."
    st.markdown(
        f"Best match of a feature, on average: **{matches.alike:.2f}**{chance}; {cut}.{telling} "
        f"The two share {count_of(pieces, 'piece')} of text.",
        help=ALIKE_HELP.format(most=engine.MOST),
    )


def _panels(bundles: tuple[Bundle, Bundle], traces: tuple[TextTrace, TextTrace], shown: int, partner: int | None) -> None:
    """The cards of both features."""
    left, right = st.columns(2, gap="medium")
    with left:
        feature_panel(bundles[0], shown, trace=traces[0], kicker=f"In {md(bundles[0].name)}")
    with right:
        if partner is not None:
            feature_panel(bundles[1], partner, trace=traces[1], kicker=f"In {md(bundles[1].name)}: fires most like it")
