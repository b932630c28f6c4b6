"""The page of one text: which features fire on it, where, and what they are. The first page that a visitor sees."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import streamlit as st

from sae_explore import links, resources, spans, text_view, wording
from sae_explore.bundle import Bundle
from sae_explore.errors import ExploreError, InputError
from sae_explore.showcase import Pick
from sae_explore.tokens import MAX_TEXT_TOKENS
from sae_explore.types import TextTrace
from sae_explore.views import feature_tables, model_wait, shell, text_extras
from sae_explore.views.feature_panel import feature_panel
from sae_explore.views.token_picker import token_picker

WIDE = [61, 39]  # of the page: the text and the tables, the card
SCROLLED_FROM, SCROLLED_HEIGHT = 420, 460  # tokens from which the text scrolls in a frame, and the frame's pixels
_SHARES_LEGEND = [(f"{s:.0%}", "of the feature's maximum" if s == 1 else "", spans.step_at(s**2)) for s in (0.25, 0.5, 0.75, 1.0)]

INTRO = (
    "A sparse autoencoder (SAE) splits what the model computes at one place into **features**; only a few of them fire on any "
    "token, and each tends to fire on tokens that have something in common. Colours show how strongly a token's strongest feature "
    "fires, compared with the most that this feature reached on the corpus. Click a token, or a row of the table, to see what "
    "fires there."
)
INTRO_HELP = (
    "The place is the residual stream before or after one block of the model (in the sidebar). The SAE was trained to rebuild "
    "that stream from few features at a time; nobody told it what they should mean. The corpus is the set of texts that this "
    "bundle has read."
)
TEXT_HELP = (
    f"Up to {MAX_TEXT_TOKENS:,} tokens, about 3,000 words. The text is read where this app runs and sent nowhere else. A text of up to "
    f"{links.MAX_LINK_TEXT:,} characters becomes part of the page's address, so that the link opens the same view."
)
EXAMPLES_HELP = (
    "Stored texts on which specific features fire strongly, one of a kind. They open at once: their activations are in the bundle."
)
STRONGEST_HELP = (
    "Strongest by share of its own maximum on the corpus. Dense features are left out unless the switch above the table shows them."
)
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
    st.title("Which features fire on a text?", anchor=False)
    st.markdown(INTRO, help=INTRO_HELP)
    feature = _chosen_feature(bundle)
    picks = resources.get_picks(bundle)
    row = _document_row(bundle, picks)
    left, right = st.columns(WIDE, gap="medium")
    with left:
        _form(bundle)
    with right:
        _examples(picks)
    body = st.empty()  # one place for the wait and for what follows it, so that nothing of the text before stays on the page
    own = st.session_state.get("text")
    shown = _stored_text(bundle, row, feature) if own is None else _own_text(bundle, own, feature, body)
    if shown is None:
        return
    with body.container():
        _analysis(bundle, shown, feature)


# ---- which text --------------------------------------------------------------------------------------------------------


def _form(bundle: Bundle) -> None:
    """An own text. What is wrong with it is said here, and the page goes on showing what it showed."""
    own = st.session_state.get("text")
    if own is not None and st.session_state.get("_typed_from") != own:  # it came with a link
        st.session_state["_typed"], st.session_state["_typed_from"] = own.encode(errors="replace").decode(), own
    elif "_typed" not in st.session_state:
        st.session_state["_typed"] = own or ""
    with st.form("own_text", border=False):
        st.text_area(
            "Your own text",
            key="_typed",
            height=96,
            placeholder="Type or paste a text in any language, or code …",
            help=TEXT_HELP,
        )
        st.form_submit_button("Analyse", type="primary", on_click=_take_own_text)
    if problem := st.session_state.pop("_text_problem", None):
        st.error(spans.md(_sentence(problem)), icon=":material/edit_off:")


def _take_own_text() -> None:
    text = st.session_state["_typed"] or ""
    try:
        text_view.check_own_text(text)
    except InputError as error:
        st.session_state["_text_problem"] = str(error)
        return
    st.session_state["text"] = st.session_state["_typed_from"] = text
    st.session_state["document"] = None


def _examples(picks: list[Pick]) -> None:
    """Stored texts, a click each."""
    ids = {pick.id: pick.title for pick in picks}
    current = None if st.session_state.get("text") is not None else st.session_state.get("document") or picks[0].id
    st.session_state["_example"] = current if current in ids else None

    def choose() -> None:
        if chosen := st.session_state["_example"]:
            st.session_state["document"], st.session_state["text"] = chosen, None

    st.pills(
        "Or look at an example",
        list(ids),
        format_func=lambda i: spans.md(ids[i]),
        key="_example",
        on_change=choose,
        wrap=True,
        help=EXAMPLES_HELP,
    )


def _own_text(bundle: Bundle, own: str, feature: int | None, body) -> Shown | None:
    """The own text through the model; None while it cannot be read, for which `body` says why."""
    try:
        text_view.check_own_text(own)
        shell.write_link(bundle, feature=feature, text=own)  # before a long wait: reloading the page then loses nothing
        if not model_wait.model_ready(bundle, body):
            return None
        with body, st.spinner("Reading the text …", show_time=True):
            trace = resources.get_trace(bundle, own)
    except ExploreError as error:
        body.error(spans.md(_sentence(str(error))), icon=":material/edit_off:")
        return None
    digest = hashlib.blake2b(own.encode(), digest_size=8).hexdigest()
    return Shown(trace, f"{bundle.name}-{digest}", True, "Your text", None)


def _stored_text(bundle: Bundle, row: int, feature: int | None) -> Shown:
    """A text of the store, which needs no model."""
    document_id, source, category = (bundle.documents[c][row].as_py() for c in ("id", "source", "category"))
    untouched = feature is None and st.session_state.get("document") is None
    shell.write_link(bundle, bare=untouched, feature=feature, document=document_id)
    said = f"Stored text {spans.md(document_id)} ({spans.md(', '.join(dict.fromkeys(filter(None, (category, source)))))})"
    return Shown(resources.get_document_trace(bundle, row), f"{bundle.name}-{row}", False, said, document_id)


def _document_row(bundle: Bundle, picks: list[Pick]) -> int:
    """The stored text that was chosen, or the first example; says so if the chosen one is not here."""
    wanted = st.session_state.get("document")
    row = picks[0].document if wanted is None else bundle.find_document(wanted)
    if row is None:
        st.session_state["document"], row = None, picks[0].document
        said = f"This bundle holds no text “{spans.md(wanted[:80])}”, which the link asks for; here is another."
        st.warning(said, icon=":material/link_off:")
    return row


def _chosen_feature(bundle: Bundle) -> int | None:
    """The feature of the session, if this bundle has it; says so if not."""
    feature = st.session_state.get("feature")
    try:
        return None if feature is None else bundle.check_feature(feature)
    except InputError as error:
        st.session_state.pop("feature")
        st.warning(spans.md(_sentence(str(error))), icon=":material/link_off:")
        return None


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


# ---- what fires on it --------------------------------------------------------------------------------------------------


def _analysis(bundle: Bundle, shown: Shown, feature: int | None) -> None:
    scale = text_view.scale_of(bundle)
    by, dense = feature_tables.stored_choices()
    rows = text_view.ranked(shown.trace, scale, by=by, dense=dense)
    position = _chosen_token(shown)
    found = None if position is None else text_view.token_features(shown.trace, position, scale, by=by, dense=dense)
    left, right = st.columns(WIDE, gap="medium")
    with left:
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
            with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
                st.caption("Chosen feature", width="content")
                st.button("Clear", icon=":material/close:", type="tertiary", on_click=lambda: st.session_state.pop("feature", None))
            feature_panel(bundle, feature, trace=shown.trace)
        elif len(best.feature):
            kicker = f"Strongest on this {'text' if found is None else 'token'}"
            feature_panel(bundle, int(best.feature[0]), trace=shown.trace, kicker=kicker)
    text_extras.feature_map(bundle, shown.trace, rows, position)
    name = f"{bundle.name}-{'text' if shown.own else shown.document_id.replace('/', '-')}"
    text_extras.downloads(bundle, shown.trace, name, by=by)


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
        st.markdown(f"Colour: **feature {feature}** – {spans.md(bundle.label(feature))}")
        shares = np.nan_to_num(text_view.shares(column, np.full(n, scale.maxima[feature])))
        levels = [spans.strength(float(share), 1.0) for share in shares]
        fired = [
            _fired(feature, value, share) if value else f"feature {feature}: silent" for value, share in zip(column, shares, strict=True)
        ]
    else:
        silent = f"Feature {feature} is silent on this text. " if feature is not None else ""
        st.markdown(f"{silent}Colour: each token's **strongest feature**", help=STRONGEST_HELP)
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
    if shown.own and not links.fits_link(trace.text):
        said.append("A text of this length does not travel in the page's address: a copied link opens without it.")
    return " ".join(said)


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
