"""Feature: what does this feature mean? Its label and facts; the sections are in the other `feature_` modules."""

from __future__ import annotations

import numpy as np
import streamlit as st

from sae_explore import resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing.spans import md
from sae_explore.explore import links
from sae_explore.explore.browse import start_feature
from sae_explore.explore.neuronpedia import feature_url
from sae_explore.views import (
    addresses,
    example_links,
    export_buttons,
    feature_current,
    feature_examples,
    feature_related,
    feature_sections,
    feature_test,
    notes_widgets,
    own_notes,
)
from sae_explore.wording import KIND_WORDS, count_of, density_words, label_origin, mark_help, percent, shown_label

_NUMBER = "_feature_number"  # key of the number box


def render(bundle: Bundle) -> None:
    """The page. A feature that the bundle lacks is named in one sentence, and one that it has is shown."""
    example_links.follow_if_clicked()
    asked = resources.get_card(bundle, _chosen(bundle), top=feature_examples.TOP)
    feature = feature_related.picked(asked)
    st.session_state["feature"] = feature
    addresses.write_link(bundle, feature=feature)
    card = asked if feature == asked.ref.feature else resources.get_card(bundle, feature, top=feature_examples.TOP)
    st.space(4)  # a title in a row has no room above it
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.title(f"Feature {feature}", anchor=False, width="content")
        _navigation(bundle, feature)
    _label(bundle, card.row)
    _facts(bundle, card.row)
    _actions(bundle, feature, card.row)
    if not card.row["count"]:
        _dead(bundle, feature)
    feature_test.test_box(bundle, feature)
    here = feature_current.on_current_text(bundle, feature)
    left, right = st.columns([7, 5], gap="large")
    if card.row["count"]:
        with left:
            feature_examples.examples(bundle, card)
            feature_sections.categories(bundle, card)
            feature_related.nearest(bundle, card)
        with right:
            feature_sections.strength(bundle, card, here)
            feature_sections.lens(bundle, feature, here)
            feature_sections.scores(bundle, feature)
        feature_related.together(bundle, card)
        example_links.catcher(bundle)
    else:
        with left:
            feature_related.nearest(bundle, card)
        with right:
            feature_sections.lens(bundle, feature)


def _chosen(bundle: Bundle) -> int:
    """The feature that the session asks for, or one worth opening first."""
    asked = st.session_state.get("feature")
    if asked is not None and 0 <= asked < bundle.d_sae:
        return int(asked)
    found = start_feature(resources.get_frame(bundle))
    if asked is not None:
        st.warning(
            f"There is no feature {asked}: this bundle has features 0 to {bundle.d_sae - 1:,}. Showing feature {found} instead.",
            icon=":material/link_off:",
        )
    return found


# ---- from feature to feature -------------------------------------------------------------------------------------------


def _go(feature: int) -> None:
    st.session_state["feature"] = int(feature)


def _go_to_number() -> None:
    if st.session_state[_NUMBER] is not None:
        _go(st.session_state[_NUMBER])


def _go_random(bundle: Bundle, current: int) -> None:
    """To another live feature."""
    live = np.flatnonzero(resources.get_frame(bundle)["count"].to_numpy() > 0)
    live = live[live != current]
    if len(live):
        _go(np.random.default_rng().choice(live))


def _navigation(bundle: Bundle, feature: int) -> None:
    st.session_state[_NUMBER] = feature
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", width="content"):
        st.number_input(
            "Go to number", 0, bundle.d_sae - 1, step=1, key=_NUMBER, on_change=_go_to_number, width=84, label_visibility="collapsed"
        )
        st.button("Previous", icon=":material/chevron_left:", disabled=feature == 0, on_click=_go, args=(feature - 1,))
        st.button("Next", icon=":material/chevron_right:", disabled=feature == bundle.d_sae - 1, on_click=_go, args=(feature + 1,))
        st.button(
            "Random",
            icon=":material/casino:",
            on_click=_go_random,
            args=(bundle, feature),
            help="Another feature that fires on this corpus.",
        )


# ---- what it is --------------------------------------------------------------------------------------------------------


def _label(bundle: Bundle, row: dict) -> None:
    """The label, where it comes from, and for one that was checked by hand what to look at."""
    st.header(md(shown_label(row)), anchor=False, help=mark_help(row))
    if row["label_kind"] == "dead":
        return
    origin = label_origin(row)
    st.caption(
        md(origin[:1].upper() + origin[1:])
        + ("." if row["label"] != row["automatic_label"] else f"; it names {KIND_WORDS[row['label_kind']]}."),
        help="Automatic labels come from the strongest examples and the logit lens; no other model is asked. "
        "The number is the share of examples, strong and weak ones, for which the label holds: "
        "clear from 0.8, fairly clear from 0.5, rough from 0.25, else unclear.",
    )
    if note := next((f.note for f in bundle.curated.features if f.feature == row["feature"]), ""):
        st.markdown(md(note))


def _facts(bundle: Bundle, row: dict) -> None:
    """How often and how strongly it fires."""
    if row["label_kind"] == "dead":
        return
    counted = bundle.manifest["features"]["counted_tokens"]
    facts = (
        (
            "Fires on",
            f"{density_words(row['density'])} ({percent(row['density'])})",
            "Density: the share of tokens on which the activation is above 0.",
        ),
        (
            "Firing tokens",
            f"{row['count']:,} of {counted:,}",
            "Tokens of this bundle's texts; special tokens and attention sinks are not counted.",
        ),
        (
            "Maximum",
            f"{row['max']:.2f}",
            f"Its strongest activation on these texts, in {bundle.units}. Colours and percentages refer to it.",
        ),
        (
            "Mean when firing",
            f"{row['mean']:.2f}",
            f"Mean over the {count_of(row['count'], 'token')} on which it fires, in {bundle.units}.",
        ),
    )
    with st.container(horizontal=True, gap="large"):
        for label, value, explained in facts:
            st.metric(label, value, help=explained, width="content")
    if row["density"] > bundle.manifest["features"]["dense_above"]:
        st.info(
            f"This feature is dense: it fires on more than {percent(bundle.manifest['features']['dense_above'])} of all tokens, so it says "
            "little about any one of them. Lists hide such features unless asked.",
            icon=":material/density_small:",
        )


def _actions(bundle: Bundle, feature: int, row: dict) -> None:
    """What can be done with it: a label of one's own, a list, a file, and where else to look at it."""
    found = own_notes.notes_of(bundle)
    notes_widgets.own_note(found, feature)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        notes_widgets.label_editor(bundle, feature, found.labels.get(feature))
        notes_widgets.list_editor(bundle, feature, found)
        export_buttons.feature_buttons(bundle, feature)
        if row["count"]:
            query = links.query_of(bundle=bundle.name, feature=feature)
            st.page_link(addresses.page_named("whatif"), label="What if it were off?", icon=":material/experiment:", query_params=query)
        if url := feature_url(bundle.manifest["sae"], feature):
            st.page_link(
                url, label="On Neuronpedia", icon=":material/open_in_new:", help="The same feature of the same published SAE there."
            )


def _dead(bundle: Bundle, feature: int) -> None:
    """No examples and no histogram: there are none. Its decoder direction exists all the same."""
    counted = bundle.manifest["features"]["counted_tokens"]
    st.info(
        f"Feature {feature} is dead here: its activation is 0 on all {counted:,} tokens of this bundle's texts. There are no examples to "
        "show; below is what its decoder direction would write, and what lies near it.",
        icon=":material/motion_photos_off:",
    )
