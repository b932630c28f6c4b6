"""Map: all features at once, those with like directions near each other. A click opens a feature's card, a lasso lists what it holds."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import NamedTuple
from urllib.parse import urlencode

import numpy as np
import pandas as pd
import streamlit as st

from sae_explore import resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import map_colours
from sae_explore.drawing.spans import md
from sae_explore.explore import links, text_view
from sae_explore.explore.browse import Filter, kept, ordered
from sae_explore.types import TextTrace
from sae_explore.views import addresses, feature_current, feature_tables, find_keep, own_notes
from sae_explore.views.feature_panel import feature_panel
from sae_explore.wording import OWN, count_of

_PICKED = "map_picked"  # (bundle, features of the last box or lasso)
_DRAWN, _CLICKED = "_map_drawn", "_map_clicked"  # a `Drawn`; (feature, features of the box or lasso) as the last click left them
_STRONGEST = 30  # features of the current text that are marked
_STAY = {"persist_state": "session"}
_SAID = (
    "Each point is a feature. Points that are close to each other stand for features that write alike: their decoder directions have a "
    "large cosine. How far apart distant points are, and where they lie, means little."
)


def render(bundle: Bundle) -> None:
    """The page."""
    st.title("Map", anchor=False)
    own_notes.show_problem()
    feature = _chosen(bundle)
    addresses.write_link(bundle, feature=feature)
    if bundle.map_xy is None:
        _no_map(bundle)
        return
    st.markdown(_SAID)
    frame = resources.get_frame(bundle)
    current = feature_current.current_text(bundle)
    choice, query, marked = _controls(bundle, current)
    listed = _listed(bundle, frame, query)
    left, right = st.columns([8, 5], gap="medium")
    with left:
        _map(bundle, frame, choice, listed if query else None, current if marked else None, feature)
        if listed is not None:
            _list(bundle, frame, listed, query)
    with right:
        if feature is None:
            st.caption("Click a point to look at its feature here.")
        else:
            with st.container(border=True):
                feature_panel(bundle, feature, trace=current[1] if current and marked else None)


def _chosen(bundle: Bundle) -> int | None:
    """The feature of the session, if this bundle has it; says so if not."""
    feature = st.session_state.get("feature")
    if feature is None or 0 <= feature < bundle.d_sae:
        return feature
    st.warning(f"There is no feature {feature}: this bundle has features 0 to {bundle.d_sae - 1:,}.", icon=":material/link_off:")
    return None


def _no_map(bundle: Bundle) -> None:
    if not resources.builds_allowed():
        st.info("This bundle has no map.", icon=":material/scatter_plot:")
        return
    st.info("This bundle has no map yet. Drawing one takes a minute or two, in a terminal:", icon=":material/scatter_plot:")
    from sae_explore.features.feature_map import INSTALL

    st.code(f"{INSTALL}\npython -m sae_explore map {bundle.name}", language="bash")


def _controls(bundle: Bundle, current: tuple[str, TextTrace] | None) -> tuple[str, str, bool]:
    """(by what the map is coloured, what is searched for, whether the current text's features are marked)."""
    choices = map_colours.choices(bundle)
    first, second, third = st.columns([4, 4, 4], gap="medium", vertical_alignment="bottom")
    with first:
        choice = st.selectbox(
            "Colour by",
            list(choices),
            format_func=lambda name: choices[name][0],
            key="map_colour",
            help="  \n".join(f"**{md(title)}**: {md(said)}" for title, said in choices.values()),
            **_STAY,
        )
    with second:
        query = st.text_input(
            "Find on the map",
            key="map_query",
            placeholder="a label, a token or a number",
            live=True,
            type="search",
            help="Finds this piece of text, in upper or lower case, in labels, peak tokens and promoted tokens.",
            **_STAY,
        )
    with third:
        marked = current is not None and st.toggle(
            "Mark what fires on the current text",
            True,
            key="map_mark",
            help=f"The {_STRONGEST} features that fire most strongly, for what they can reach, on {current[0]}.",
            **_STAY,
        )
    return choice if choice in choices else next(iter(choices)), (query or "").strip(), marked


def _listed(bundle: Bundle, frame: pd.DataFrame, query: str) -> np.ndarray | None:
    """Features that are meant: those that the search finds, else those of the last box or lasso; None: no particular ones."""
    if query:
        mask = kept(frame, Filter(query=query, hide_dead=False, dense_above=None))
        return ordered(frame, mask, query=query)
    picked = _picked(st.session_state, bundle)
    return np.asarray(picked, np.int64) if picked else None


def _picked(state: Mapping, bundle: Bundle) -> tuple[int, ...]:
    """Features of the last box or lasso on this bundle's map."""
    name, picked = state.get(_PICKED, ("", ()))
    return picked if name == bundle.name else ()


# ---- the map -----------------------------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """What the map in the browser was drawn with. It stays as it is while only the map itself is clicked: a figure that changes would
    be drawn anew as a whole, and lose the stretch that is looked at. The browser marks what is clicked by itself.
    """

    look: tuple  # all that changes the figure beside the two below
    feature: int | None
    picked: tuple[int, ...]
    turn: int  # goes up with each new figure


def _map(
    bundle: Bundle, frame: pd.DataFrame, choice: str, found: np.ndarray | None, current: tuple[str, TextTrace] | None, feature: int | None
) -> None:
    """The map; `found` are the features of a search, if there is one."""
    from sae_explore.drawing import figures_map  # plotly takes a while to import

    points = resources.get_map_points(bundle)
    if bundle.own_labels:
        points = figures_map.renamed(points, {number: f"{label} {OWN}" for number, label in bundle.own_labels.items()})
    on_text = () if current is None else text_view.ranked(current[1], text_view.scale_of(bundle)).feature[:_STRONGEST]
    look = (bundle.name, choice, None if found is None else found.tobytes(), tuple(on_text), tuple(bundle.own_labels.items()))
    drawn = still_drawn(st.session_state, look, feature, _picked(st.session_state, bundle))
    meant = None
    if found is not None or drawn.picked:
        meant = np.zeros(bundle.d_sae, bool)
        meant[list(drawn.picked) if found is None else found] = True
    colours = map_colours.colours_by(choice, bundle, frame)
    figure = figures_map.dictionary_map(points, colours, meant=meant, on_text=on_text, chosen=drawn.feature)
    key = _key(drawn)

    st.plotly_chart(
        figure,
        theme="streamlit",
        config=figures_map.CONFIG,
        key=key,
        on_select=lambda: take_click(st.session_state, st.session_state[key]["selection"], bundle),
        selection_mode=("points", "box", "lasso"),
        alt=f"Map of {count_of(bundle.d_sae, 'feature')}, coloured by: {colours.title}. "
        "The page Browse holds the same features as a table.",
    )


def take_click(state: MutableMapping, selection: Mapping, bundle: Bundle) -> None:
    """What the browser has selected: a click chooses the feature, a box or a lasso lists what it holds, and nothing ends the list."""
    from sae_explore.drawing.figures_map import picked_features

    features = picked_features(selection, bundle.d_sae)
    if selection.get("box") or selection.get("lasso"):
        state[_PICKED] = (bundle.name, tuple(features))
    elif features:
        state["feature"] = features[0]
    else:
        state.pop(_PICKED, None)
    state[_CLICKED] = (state.get("feature"), _picked(state, bundle))


def still_drawn(state: MutableMapping, look: tuple, feature: int | None, picked: tuple[int, ...]) -> Drawn:
    """The figure of the last run, if it may stay; else a new one."""
    before: Drawn | None = state.get(_DRAWN)
    if before is None or before.look != look or _key(before) not in state or (feature, picked) not in (before[1:3], state.get(_CLICKED)):
        before = state[_DRAWN] = Drawn(look, feature, picked, 0 if before is None else before.turn + 1)
        state.pop(_CLICKED, None)
    return before


def _key(drawn: Drawn) -> str:
    return f"map_chart_{drawn.turn}"


def _list(bundle: Bundle, frame: pd.DataFrame, listed: np.ndarray, query: str) -> None:
    """The features that are meant, as a table whose rows link to their pages."""
    where = f"match “{md(query)}”" if query else "are selected on the map"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{count_of(len(listed), 'feature')}** {where}", width="content")
        if not query:
            st.button("Clear the selection", icon=":material/close:", type="tertiary", on_click=_clear)
        if len(listed):
            note = f"Found on the map: {query}" if query else "Selected on the map"
            find_keep.keep_as_list(bundle, listed, note=note)
    if not len(listed):
        return
    pages = [f"feature?{urlencode(links.query_of(bundle=bundle.name, feature=int(f)))}" for f in listed]
    st.dataframe(
        pd.DataFrame({"feature": pages, "label": frame["label"].to_numpy()[listed], "density": 100 * frame["density"].to_numpy()[listed]}),
        hide_index=True,
        column_config={
            "feature": st.column_config.LinkColumn("Feature", display_text=r"feature=(\d+)", width=70, help="Opens the feature's page."),
            "label": st.column_config.TextColumn("Label", width=330),
            "density": st.column_config.NumberColumn(
                "Fires on", format="%.3f %%", width=80, help="Density: share of tokens on which the feature fires."
            ),
        },
        height=feature_tables.height(len(listed), 8),
        alt="The features that are meant, with label and density",
    )


def _clear() -> None:
    st.session_state.pop(_PICKED, None)
