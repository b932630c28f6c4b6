"""The page of one text: which features fire on it, where, and what they are. The first page that a visitor sees."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import streamlit as st

from sae_explore import public_mode, resources, wording
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import spans
from sae_explore.errors import ExploreError, InputError
from sae_explore.explore import links, text_view
from sae_explore.explore.showcase import Pick, notable
from sae_explore.types import TextTrace
from sae_explore.views import addresses, example_links, feature_tables, model_wait, text_choice, text_extras
from sae_explore.views.feature_panel import feature_panel
from sae_explore.views.feature_starts import feature_starts
from sae_explore.views.token_picker import token_picker
from sae_explore.wording import sentence

WIDE = [61, 39]  # of the page: the text and the tables, the card
_LOOK_AT = 3  # features offered to colour a text by that is there for none
SCROLLED_FROM, SCROLLED_HEIGHT = 420, 460  # tokens from which the text scrolls in a frame, and the frame's pixels
_SHARES_LEGEND = [(f"{s:.0%}", "of the feature's maximum" if s == 1 else "", spans.step_at(s**2)) for s in (0.25, 0.5, 0.75, 1.0)]

SINK = "a position that the model uses as a resting place, with a residual so large that it would drown the rest"


@dataclass(frozen=True)
class Shown:
    """The text on the page."""

    trace: TextTrace
    id: str  # differs between texts
    own: bool
    source: str  # where it comes from, as markdown
    document_id: str | None


def render(bundle: Bundle) -> None:
    """Draw the page."""
    example_links.follow_if_clicked()  # a feature of the list at the end
    text_choice.intro(bundle)
    picks = resources.get_picks(bundle)
    row, feature = _asked(bundle, picks)
    own = st.session_state.get("text")
    pick = next((p for p in picks if p.document == row), None)
    text_choice.own_text_form()
    text_choice.examples(picks, pick)
    body = st.empty()  # one place for the wait and for what follows it, so that nothing of the text before stays on the page
    shown = _stored_text(bundle, row, feature, picks[0]) if own is None else _own_text(bundle, own, feature, body)
    if shown is not None:
        with body.container():
            _analysis(bundle, shown, feature, pick.features if pick else ())
    feature_starts(bundle)


# ---- which text --------------------------------------------------------------------------------------------------------


def _asked(bundle: Bundle, picks: list[Pick]) -> tuple[int | None, int | None]:
    """(row of the stored text, or None for an own text; the chosen feature). A first visit opens the first example and its feature.

    A feature that was chosen on another page, and is silent on the text that was here before, brings a text on which it fires.
    """
    state = st.session_state
    feature = _chosen_feature(bundle)
    if state.get("text") is not None:
        return None, feature
    wanted = state.get("document")
    row = None if wanted is None else bundle.find_document(wanted)
    if wanted is not None and row is None:
        said = f"This bundle holds no text “{spans.md(wanted[:80])}”, which the link asks for; here is another."
        st.warning(said, icon=":material/link_off:")
    if row is None and feature is None:
        text_choice.open_text(picks[0])
        return picks[0].document, state.get("feature")
    if feature is not None and (row is None or (state["_arrived"] and not _fires(bundle, row, feature))):
        found = () if feature in picks[0].features else bundle.top_examples(feature, 1)
        row = found[0].document if found else picks[0].document if row is None else row
    state["document"] = bundle.documents["id"][row].as_py()
    return row, feature


def _fires(bundle: Bundle, row: int, feature: int) -> bool:
    return bool(resources.get_document_trace(bundle, row).rows.column(feature).any())


def _own_text(bundle: Bundle, own: str, feature: int | None, body) -> Shown | None:
    """The own text through the model; None while it cannot be read, for which `body` says why."""
    try:
        text_view.check_own_text(own)
        addresses.write_link(bundle, feature=feature, text=own)  # before a long wait: reloading the page then loses nothing
        if not model_wait.model_ready(bundle, body):
            return None
        with body, st.spinner("Reading the text …", show_time=True):
            trace = resources.get_trace(bundle, own)
    except ExploreError as error:
        body.error(spans.md(sentence(public_mode.shown(error))), icon=":material/edit_off:")
        return None
    digest = hashlib.blake2b(own.encode(), digest_size=8).hexdigest()
    return Shown(trace, f"{bundle.name}-{digest}", True, "Your text", None)


def _stored_text(bundle: Bundle, row: int, feature: int | None, first: Pick) -> Shown:
    """A text of the store, which needs no model. What a first visit shows has the bare address."""
    document_id, source, category = (bundle.documents[c][row].as_py() for c in ("id", "source", "category"))
    untouched = row == first.document and feature == (first.features[0] if first.features else None)
    addresses.write_link(bundle, bare=untouched, feature=feature, document=document_id)
    said = f"Stored text {spans.md(document_id)} ({spans.md(', '.join(dict.fromkeys(filter(None, (category, source)))))})"
    return Shown(resources.get_document_trace(bundle, row), f"{bundle.name}-{row}", False, said, document_id)


def _chosen_feature(bundle: Bundle) -> int | None:
    """The feature of the session, if this bundle has it; says so if not."""
    feature = st.session_state.get("feature")
    try:
        return None if feature is None else bundle.check_feature(feature)
    except InputError as error:
        st.session_state.pop("feature")
        st.warning(spans.md(sentence(str(error))), icon=":material/link_off:")
        return None


# ---- what fires on it --------------------------------------------------------------------------------------------------


def _analysis(bundle: Bundle, shown: Shown, feature: int | None, look_at: tuple[int, ...]) -> None:
    """The coloured text, its features and the card of one; `look_at` are the features that the text is there for."""
    scale = text_view.scale_of(bundle)
    by, dense = feature_tables.stored_choices()
    rows = text_view.ranked(shown.trace, scale, by=by, dense=dense)
    position = _chosen_token(shown)
    found = None if position is None else text_view.token_features(shown.trace, position, scale, by=by, dense=dense)
    left, right = st.columns(WIDE, gap="medium")
    with left:
        text_choice.colour_choice(bundle, list(look_at or _notable(bundle, rows)), feature)
        _tokens(bundle, shown, scale, feature, position, dense)
        if found is None:
            st.subheader("Features on this text", anchor=False)
            feature_tables.controls(bundle, rows.hidden)
            feature_tables.ranked_table(bundle, shown.trace, rows, key=f"rows-{shown.id}", feature=feature)
        else:
            _one_token(bundle, shown, position, found, feature)
    with right:
        best = rows if found is None else found
        if feature is not None:
            feature_panel(bundle, feature, trace=shown.trace, kicker="The chosen feature")
        elif len(best.feature):
            kicker = f"Strongest on this {'text' if found is None else 'token'}"
            feature_panel(bundle, int(best.feature[0]), trace=shown.trace, kicker=kicker)
        on = feature if feature is not None else int(best.feature[0]) if len(best.feature) else None
        text_extras.onward(bundle, on, text=None if shown.document_id else shown.trace.text, document=shown.document_id)
    text_extras.feature_map(bundle, shown.trace, rows, position)
    name = f"{bundle.name}-{'text' if shown.own else shown.document_id.replace('/', '-')}"
    text_extras.downloads(bundle, shown.trace, name, by=by)


def _notable(bundle: Bundle, rows: text_view.Ranked) -> list[int]:
    """Features to colour a text by that was not chosen for some: those that say most, else those that rank first."""
    labels = text_view.labels_of(bundle, rows.feature)
    found = list(notable(rows.feature, np.nan_to_num(rows.share), resources.get_worth(bundle), labels, _LOOK_AT))
    return found or rows.feature[:_LOOK_AT].tolist()


def _chosen_token(shown: Shown) -> int | None:
    """The clicked token, if it was a token of this text."""
    text_id, position = st.session_state.get("_token", (None, 0))
    return position if text_id == shown.id and 0 <= position < len(shown.trace.tokens) else None


def _tokens(bundle: Bundle, shown: Shown, scale: text_view.Scale, feature: int | None, position: int | None, dense: bool) -> None:
    """The coloured text: by the chosen feature if it fires here, else by each token's strongest."""
    trace = shown.trace
    n = len(trace.tokens)
    column = trace.rows.column(feature) if feature is not None else np.zeros(n)
    if column.any():
        shares = np.nan_to_num(text_view.shares(column, np.full(n, scale.maxima[feature])))
        levels = [spans.strength(float(share), 1.0) for share in shares]
        fired = [
            _fired(feature, value, share) if value else f"feature {feature}: silent" for value, share in zip(column, shares, strict=True)
        ]
    else:
        if feature is not None:
            _silent(bundle, feature)
        best = text_view.strongest(trace, scale, dense=dense)
        levels = best.share**2  # most tokens have some feature near its maximum: squares keep the strongest ones apart
        labels = text_view.labels_of(bundle, np.maximum(best.feature, 0))
        found = zip(best.feature.tolist(), best.value, best.share, labels, strict=True)
        fired = [f"{_fired(f, value, share)}\n{spans.plain(label)}" if f >= 0 else "nothing fires" for f, value, share, label in found]
    names = [spans.dotted(t, b) for t, b in zip(trace.tokens.texts, trace.tokens.bytes, strict=True)]
    tips = [f"token {i}: {names[i]}\n" + ("ignored: special token or attention sink" if trace.ignored[i] else fired[i]) for i in range(n)]

    def choose(i: int) -> None:
        if _chosen_token(shown) == i:
            st.session_state.pop("_token")
        else:
            st.session_state["_token"] = (shown.id, i)

    with st.container(height=SCROLLED_HEIGHT if n > SCROLLED_FROM else "content", border=False):
        pieces = [spans.pieces(t, b) for t, b in zip(trace.tokens.texts, trace.tokens.bytes, strict=True)]
        token_picker(pieces, levels, trace.ignored, tips, text_id=shown.id, selected=position, on_choose=choose, key="_picker")
    st.html(spans.bands_html() if column.any() else spans.legend_html(_SHARES_LEGEND))
    st.caption(_about_text(shown))


def _silent(bundle: Bundle, feature: int) -> None:
    """The chosen feature does not fire here: say so, and where it does."""
    st.markdown(f"Feature {feature} is **silent** on this text; the colours show each token's strongest feature.")
    if found := bundle.top_examples(feature, 1):
        query = links.query_of(bundle=bundle.name, feature=feature, document=found[0].document_id)
        st.page_link(
            addresses.page_named("text"), label="Show a text on which it fires", icon=":material/arrow_forward:", query_params=query
        )


def _fired(feature: int, value: float, share: float) -> str:
    return f"feature {feature} at {value:.2f}" + (f", {wording.percent(share)} of its maximum" if share else "")


def _about_text(shown: Shown) -> str:
    """Where the text is from, how long it is, what of it is ignored and why, and whether its link carries it."""
    trace = shown.trace
    said = [f"{shown.source}, {wording.count_of(len(trace.tokens), 'token')}."]
    special = int((trace.ignored & trace.tokens.special).sum())
    sinks = int(trace.ignored.sum()) - special
    reasons = []
    if special:
        reasons.append(wording.count_of(special, "special token"))
    if sinks:
        reasons.append(f"{wording.count_of(sinks, 'attention sink')} ({SINK})")
    if reasons:
        said.append(f"Grey and ignored: {' and '.join(reasons)}.")
    if any(data and not text for text, data in zip(trace.tokens.texts, trace.tokens.bytes, strict=True)):
        said.append("Codes such as F0 9F: bytes of a character that the model reads in parts.")
    if shown.own and not links.fits_link(trace.text):
        said.append("A text of this length does not travel in the page's address: a copied link opens without it.")
    return " ".join([*said, "Click a token to see all that fires on it."])


def _one_token(bundle: Bundle, shown: Shown, position: int, found: text_view.TokenFeatures, feature: int | None) -> None:
    """What fires on the clicked token, in place of the table of the whole text."""
    trace = shown.trace
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(f"Token {position}", anchor=False, width="content")
        st.html(spans.chips_html([spans.dotted(trace.tokens.texts[position], trace.tokens.bytes[position])]), width="content")
        st.button("Whole text", icon=":material/close:", type="tertiary", on_click=lambda: st.session_state.pop("_token", None))
    if trace.ignored[position]:
        kind = "a special token" if trace.tokens.special[position] else f"an attention sink, {SINK}"
        st.info(f"This token is ignored: it is {kind}.", icon=":material/block:")
        return
    feature_tables.controls(bundle, found.hidden)
    feature_tables.token_table(bundle, found, key=f"token-{shown.id}-{position}", feature=feature)
