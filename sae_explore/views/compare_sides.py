"""What the page Compare is about: its texts, where they come from, and what a bundle says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import streamlit as st

from sae_explore import public_mode, resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import spans
from sae_explore.drawing.spans import md
from sae_explore.errors import ExploreError, InputError
from sae_explore.explore import text_view
from sae_explore.models.model_sources import download_size, is_local
from sae_explore.types import TextTrace
from sae_explore.views import model_wait
from sae_explore.views.text_page import SCROLLED_FROM, SCROLLED_HEIGHT
from sae_explore.wording import architecture_name, sentence

NAMES = {"a": "Text A", "b": "Text B"}
_LISTED = 2_000  # stored texts that are offered; others are opened by typing their id
_HEAD = 60  # characters of a stored text in the list
STORED_HELP = "Texts that come with this SAE. What fires on them is stored: no model is needed. Type to search by name or first words."


@dataclass(frozen=True)
class Side:
    """One of the texts. `row` and `document` (its id) are those of a stored text."""

    text: str
    document: str | None = None
    row: int | None = None

    @property
    def key(self) -> str | int:
        """What the caches know it by."""
        return self.text if self.row is None else self.row


class Pair(NamedTuple):
    """Two near texts that show something."""

    title: str
    a: str
    b: str


PAIRS = (
    Pair(
        "Two meanings of “bank”",
        "We sat by the bank all day, and in the evening the river rose.",
        "We sat by the bank all day, and in the evening the money came.",
    ),
    Pair(
        "Won and lost",
        "The team won the last match, and the whole city celebrated in the streets.",
        "The team lost the last match, and the whole city was silent in the streets.",
    ),
    Pair(
        "One word at the end",
        "The patient waited for hours, and then the doctor told her that the treatment had worked.",
        "The patient waited for hours, and then the doctor told her that the treatment had failed.",
    ),
    Pair(
        "Praise and blame",
        "This film is a joy: funny, warm and never too long.",
        "This film is a bore: dull, cold and far too long.",
    ),
)


# ---- which texts -------------------------------------------------------------------------------------------------------


def take_link(bundle: Bundle) -> None:
    """Put on the page what the address asked for."""
    state = st.session_state
    link = state.pop("compare_link", None)
    if link is None:
        return
    wanted = {"a": (link.text, link.document), "b": (link.text2, link.document2)}
    if any(value is not None for pair in wanted.values() for value in pair):
        for name, (text, document) in wanted.items():
            state[f"compare_{name}"] = _asked(bundle, text, document)
        state["_compare_mode"] = "texts"
    if link.bundle2 is not None:
        state["_compare_mode"], state["compare_bundle"] = "bundles", link.bundle2


def _asked(bundle: Bundle, text: str | None, document: str | None) -> Side | None:
    if document is None:
        return None if text is None else Side(text)
    found = stored(bundle, document)
    if found is None:
        st.warning(f"This bundle holds no text “{md(document[:80])}”, which the link asks for.", icon=":material/link_off:")
    return found


def stored(bundle: Bundle, document: str) -> Side | None:
    """A text of the store by its id."""
    row = bundle.find_document(document)
    return None if row is None else Side(bundle.document_text(row), document, row)


def chosen(name: str) -> Side | None:
    """What the visitor or a link has put on a side."""
    return st.session_state.get(f"compare_{name}")


def put(name: str, side: Side | None) -> None:
    st.session_state[f"compare_{name}"] = side


# ---- choosing them -----------------------------------------------------------------------------------------------------


def pairs(a: Side | None, b: Side | None) -> None:
    """Pairs of texts to begin with, a click each."""
    titles = [pair.title for pair in PAIRS]
    shown = [pair.title for pair in PAIRS if a == Side(pair.a) and b == Side(pair.b)]
    st.session_state["_compare_pair"] = shown[0] if shown else None

    def choose() -> None:
        if title := st.session_state["_compare_pair"]:
            pair = PAIRS[titles.index(title)]
            put("a", Side(pair.a))
            put("b", Side(pair.b))
            st.session_state.pop("feature", None)  # it was chosen for other texts

    st.pills("Examples", titles, format_func=md, key="_compare_pair", on_change=choose, wrap=True)


def stored_choice(bundle: Bundle, name: str, side: Side | None, label: str) -> None:
    """A stored text for one side."""
    options = _options(bundle, side)
    key = f"_compare_stored_{name}"
    st.session_state[key] = side.document if side else None

    def choose() -> None:
        wanted = st.session_state[key]
        found = stored(bundle, wanted) if wanted else None
        if found is not None:
            put(name, found)
        elif wanted:
            st.session_state["_compare_problem"] = f"this bundle holds no text {wanted[:80]!r}; choose one of the list"

    st.selectbox(
        label,
        list(options),
        format_func=lambda i: options.get(i, i),
        key=key,
        on_change=choose,
        placeholder="Choose a stored text",
        accept_new_options=len(options) < bundle.n_documents,
        help=STORED_HELP,
    )


def _options(bundle: Bundle, side: Side | None) -> dict[str, str]:
    """Ids of stored texts with what the list shows of them."""
    ids = bundle.documents["id"].slice(0, _LISTED).to_pylist()
    found = {i: f"{i}  {spans.plain(bundle.document_text(row)[:_HEAD])}" for row, i in enumerate(ids)}
    if side is not None and side.document is not None:
        found.setdefault(side.document, side.document)
    return found


def text_area(name: str, side: Side | None, label: str, *, height: int = 110) -> None:
    """The text of one side, to be read with `take_typed` when its form is sent."""
    state, text = st.session_state, side.text if side else ""
    if state.get(f"_compare_from_{name}") != text or f"_compare_typed_{name}" not in state:
        state[f"_compare_typed_{name}"] = text.encode(errors="replace").decode()
        state[f"_compare_from_{name}"] = text
    st.text_area(label, key=f"_compare_typed_{name}", height=height, placeholder="Type or paste a text")


def take_typed(shown: dict[str, Side | None]) -> None:
    """Take over the text areas of these sides; what was not touched stays the stored text that it was."""
    for name, side in shown.items():
        typed = st.session_state.get(f"_compare_typed_{name}") or ""
        same = side is not None and typed == side.text.encode(errors="replace").decode()
        put(name, side if same else Side(typed) if typed.strip() else None)


def show_problem() -> None:
    """What the last choice ran into, once."""
    if problem := st.session_state.pop("_compare_problem", None):
        st.error(md(sentence(problem)), icon=":material/edit_off:")


# ---- reading them ------------------------------------------------------------------------------------------------------


def model_is_here(bundle: Bundle) -> bool:
    """Whether own texts can be read without fetching anything."""
    return resources.tracer_job(bundle).tracer is not None or is_local(
        bundle.manifest["model"]["spec"], models=resources.cache_folder() / "models"
    )


def fetching(bundle: Bundle) -> str:
    """What reading own texts costs the first time, in words."""
    return ", ".join(filter(None, ("the language model is fetched first", download_size(bundle.manifest["model"]["spec"]))))


def read(bundle: Bundle, sides: Sequence[Side], place) -> list[TextTrace] | None:
    """The texts through the SAE. None while they cannot be read, for which `place` says why."""
    try:
        for name, side in zip("AB", sides, strict=False):
            if side.row is None:
                _check(side.text, f"text {name}: " if len(sides) > 1 else "")
        if any(side.row is None for side in sides) and not model_wait.model_ready(bundle, place):
            return None
        with place, st.spinner("Reading …", show_time=True):
            return [
                resources.get_trace(bundle, side.text) if side.row is None else resources.get_document_trace(bundle, side.row)
                for side in sides
            ]
    except ExploreError as error:
        place.error(md(sentence(public_mode.shown(error))), icon=":material/edit_off:")
        return None


def _check(text: str, where: str) -> None:
    try:
        text_view.check_own_text(text)
    except InputError as error:
        raise InputError(where + str(error)) from None


def about(bundle: Bundle) -> str:
    """Which model, place and SAE: one line of markdown."""
    m = bundle.manifest
    sae, side = m["sae"], "output" if m["hook"].endswith("post") else "input"
    kind = architecture_name(sae["architecture"]) + (f", k = {sae['k']}" if sae["k"] else "")
    return (
        f"{md(m['model']['display'])}, {side} of block {m['hook'].split('.')[1]} of {m['model']['n_layers']}; "
        f"SAE of {sae['d_sae']:,} features ({md(kind)}); bundle {md(bundle.name)}"
    )


def feature_of_session(bundle: Bundle) -> int | None:
    """The session's feature, if this bundle has it; says so if not."""
    feature = st.session_state.get("feature")
    try:
        return None if feature is None else bundle.check_feature(feature)
    except InputError as error:
        st.session_state.pop("feature")
        st.warning(md(sentence(str(error))), icon=":material/link_off:")
        return None


def colour_choice(options: dict[int, str], feature: int, *, help_text: str) -> None:
    """A few features to colour the texts by, the one that does so now among them; `options` are their labels."""
    st.session_state["_compare_colour"] = str(feature)
    by_name = {str(f): label for f, label in options.items()}

    def choose() -> None:
        st.session_state["feature"] = int(st.session_state["_compare_colour"])

    st.pills(
        "Colour by",
        list(by_name),
        format_func=lambda option: md(by_name[option]),
        key="_compare_colour",
        on_change=choose,
        required=True,
        wrap=True,
        help=help_text,
    )


def coloured(bundle: Bundle, trace: TextTrace, feature: int | None, *, lone: np.ndarray | None = None) -> None:
    """A text coloured by one feature, in a frame of its own if it is long."""
    n = len(trace.tokens)
    column = trace.rows.column(feature) if feature is not None else np.zeros(n, np.float32)
    maximum = float(bundle.maxima[feature]) if feature is not None else 0.0
    peak = int(column.argmax()) if column.any() else None
    with st.container(height=SCROLLED_HEIGHT if n > SCROLLED_FROM else "content", border=False):
        st.html(
            spans.run_html(
                trace.tokens.texts,
                column,
                trace.ignored,
                maximum or float(column.max(initial=0.0)),
                peak=peak,
                data=trace.tokens.bytes,
                feature=feature,
                lone=lone,
            )
        )
