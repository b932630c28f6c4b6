"""The page of one text: which features fire on it, where, and what they are. The first page that a visitor sees."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import streamlit as st

from sae_explore import links, resources, spans, text_view, wording
from sae_explore.bundle import Bundle
from sae_explore.errors import ExploreError, InputError
from sae_explore.showcase import Pick
from sae_explore.tokens import MAX_TEXT_TOKENS
from sae_explore.types import TextTrace
from sae_explore.views import feature_tables, model_wait, shell
from sae_explore.views.feature_panel import feature_panel
from sae_explore.views.token_picker import token_picker

WIDE = [61, 39]  # of the page: the text and the tables, the card
SCROLLED_FROM, SCROLLED_HEIGHT = 420, 460  # tokens from which the text scrolls in a frame, and the frame's pixels
MAP_FEATURES, MAP_TOKENS = 12, 128
_SHARES_LEGEND = [(f"{share:.0%}", "of the feature's maximum" if share == 1 else "", spans.step_at(share**2)) for share in (0.25, 0.5, 0.75, 1.0)]

INTRO = (
    "A sparse autoencoder (SAE) splits what the model computes at one place into **features**; only a few of them fire on any token, "
    "and each tends to fire on tokens that have something in common. "
    "Colours show how strongly a token's strongest feature fires, compared with the most that this feature reached on the corpus. "
    "Click a token, or a row of the table, to see what fires there."
)
INTRO_HELP = (
    "The place is the residual stream after or before one block of the model (in the sidebar). The SAE was trained to rebuild the residual from few features; "
    "nobody told it what they should mean. The corpus is the set of texts that this bundle has read."
)


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
    picks = resources.get_picks(bundle)
    left, right = st.columns(WIDE, gap="medium")
    with left:
        _form(bundle)
    with right:
        _examples(picks)
    body = st.empty()  # one place for the wait and for what follows it, so that nothing of the text before stays on the page
    shown = _text_to_show(bundle, picks, body)
    if shown is None:
        return
    feature = _chosen_feature(bundle)
    untouched = feature is None and not shown.own and st.session_state.get("document") is None
    shell.write_link(bundle, bare=untouched, feature=feature, text=shown.trace.text if shown.own else None, document=shown.document_id)
    with body.container():
        _analysis(bundle, shown, feature)


# ---- which text --------------------------------------------------------------------------------------------------------


def _form(bundle: Bundle) -> None:
    """An own text. What is wrong with it is said here, and the page goes on showing what it showed."""
    own = st.session_state.get("text")
    if own is not None and st.session_state.get("_typed_from") != own:  # it came with a link
        st.session_state["_typed"] = st.session_state["_typed_from"] = own
    elif "_typed" not in st.session_state:
        st.session_state["_typed"] = own or ""
    with st.form("own_text", border=False):
        st.text_area("Your own text", key="_typed", height=96, placeholder="Type or paste a text in any language, or code …",
                     help=f"Up to {MAX_TEXT_TOKENS:,} tokens, about 3,000 words. The text is read where this app runs and sent nowhere else; a text of up to "
                          f"{links.MAX_LINK_TEXT:,} characters becomes part of the page's address, so that the link opens the same view.")  # fmt: skip
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

    st.pills("Or look at an example", list(ids), format_func=lambda i: spans.md(ids[i]), key="_example", on_change=choose, wrap=True,
             help="Stored texts on which specific features fire strongly, one of a kind. They open at once: their activations are in the bundle.")  # fmt: skip


def _text_to_show(bundle: Bundle, picks: list[Pick], body) -> Shown | None:
    """The own text, the stored one that was chosen, or the first example; None while there is nothing to show."""
    own = st.session_state.get("text")
    if own is not None:
        try:
            text_view.check_own_text(own)
            if not model_wait.model_ready(bundle, body):
                return None
            with body, st.spinner("Reading the text …", show_time=True):
                trace = resources.get_trace(bundle, own)
        except ExploreError as error:
            body.error(spans.md(_sentence(str(error))), icon=":material/edit_off:")
            return None
        digest = hashlib.blake2b(own.encode(), digest_size=8).hexdigest()
        return Shown(trace, f"{bundle.name}-{digest}", True, "Your text", None)
    wanted = st.session_state.get("document")
    row = picks[0].document if wanted is None else bundle.find_document(wanted)
    if row is None:
        st.warning(f"This bundle holds no text “{spans.md(wanted[:80])}”, which the link asks for; here is another.", icon=":material/link_off:")
        st.session_state["document"], row = None, picks[0].document
    document_id, source, category = (bundle.documents[c][row].as_py() for c in ("id", "source", "category"))
    said = f"Stored text {spans.md(document_id)} ({spans.md(', '.join(dict.fromkeys(filter(None, (category, source)))))})"
    return Shown(resources.get_document_trace(bundle, row), f"{bundle.name}-{row}", False, said, document_id)


def _chosen_feature(bundle: Bundle) -> int | None:
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
    left, right = st.columns(WIDE, gap="medium")
    with left:
        _tokens(bundle, shown, scale, feature, position, dense)
        feature_tables.ranked_table(bundle, shown.trace, rows, key=f"rows-{shown.id}", feature=feature)
    with right:
        if position is not None:
            _token_panel(bundle, shown, scale, position, feature, by, dense)
        if feature is not None:
            _heading("Chosen feature", "Clear", lambda: st.session_state.pop("feature", None))
            feature_panel(bundle, feature, trace=shown.trace)
        elif position is None and len(rows):
            feature_panel(bundle, int(rows.feature[0]), trace=shown.trace, kicker="Strongest on this text")
    _map(bundle, shown, rows, position)
    _downloads(bundle, shown, by)


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
        fired = [f"feature {feature} at {v:.2f}, {wording.percent(s)} of its maximum" if v else f"feature {feature}: silent" for v, s in zip(column, shares, strict=True)]
    else:
        silent = f"Feature {feature} is silent on this text. " if feature is not None else ""
        st.markdown(f"{silent}Colour: each token's **strongest feature**",
                    help="Strongest by share of its own maximum on the corpus, dense features left out unless the switch below shows them.")  # fmt: skip
        best = text_view.strongest(trace, scale, dense=dense)
        levels = best.share ** 2  # most tokens have some feature near its maximum: squares keep the strongest ones apart
        labels = dict(zip(best.feature.tolist(), text_view.labels_of(bundle, np.maximum(best.feature, 0)), strict=True))
        fired = [f"feature {f} at {v:.2f}, {wording.percent(s)} of its maximum\n{spans.plain(labels[f])}" if f >= 0 else "nothing fires"
                 for f, v, s in zip(best.feature.tolist(), best.value, best.share, strict=True)]  # fmt: skip
    names = [spans.dotted(t, b) for t, b in zip(trace.tokens.texts, trace.tokens.bytes, strict=True)]
    tips = [f"token {i}: {names[i]}\n" + ("ignored: special token or attention sink" if trace.ignored[i] else fired[i]) for i in range(n)]

    def choose(i: int) -> None:
        if _chosen_token(shown) == i:
            st.session_state.pop("_token")
        else:
            st.session_state["_token"] = (shown.id, i)

    with st.container(height=SCROLLED_HEIGHT if n > SCROLLED_FROM else "content", border=False):
        token_picker([spans.pieces(t, b) for t, b in zip(trace.tokens.texts, trace.tokens.bytes, strict=True)], levels, trace.ignored, tips,
                     text_id=shown.id, selected=position, on_choose=choose, key="_picker")  # fmt: skip
    st.html(spans.bands_html() if column.any() else spans.legend_html(_SHARES_LEGEND))
    st.caption(_about_text(shown))


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
        reasons.append(f"{wording.count_of(sinks, 'attention sink')} (a position that the model uses as a resting place, with a residual so large that it would drown the rest)")
    if reasons:
        said.append(f"Grey and ignored: {' and '.join(reasons)}.")
    if shown.own and not links.fits_link(trace.text):
        said.append(f"A text of more than {links.MAX_LINK_TEXT:,} characters does not travel in the page's address: a copied link opens without it.")
    return " ".join(said)


def _heading(title: str, button: str, clear) -> None:
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.caption(title, width="content")
        st.button(button, icon=":material/close:", type="tertiary", on_click=clear, key=f"_clear {title}")


def _token_panel(bundle: Bundle, shown: Shown, scale, position: int, feature: int | None, by: str, dense: bool) -> None:
    """What fires on the clicked token."""
    trace = shown.trace
    _heading(f"Token {position}", "Clear", lambda: st.session_state.pop("_token", None))
    st.html(spans.chips_html([spans.dotted(trace.tokens.texts[position], trace.tokens.bytes[position])]))
    if trace.ignored[position]:
        st.info("This token is ignored: it is a special token, or an attention sink whose large residual would drown the others.", icon=":material/block:")
        return
    found = text_view.token_features(trace, position, scale, by=by, dense=dense)
    if not len(found.feature):
        hidden = f" but {wording.count_of(found.hidden, 'dense feature')}, hidden by the switch below the text" if found.hidden else ""
        st.info(f"Nothing fires on this token{hidden}.", icon=":material/do_not_disturb_on:")
        return
    feature_tables.token_table(bundle, found, key=f"token-{shown.id}-{position}", feature=feature)
    if feature is None:
        feature_panel(bundle, int(found.feature[0]), trace=trace, kicker="Strongest on this token")


def _map(bundle: Bundle, shown: Shown, rows: text_view.Ranked, position: int | None) -> None:
    """Tokens x features; drawn only while it is open. Of a long text a stretch: around the chosen token, or the best feature's peak."""
    if not len(rows):
        return
    panel = st.expander("Map of tokens and features", icon=":material/grid_on:", key="_map", on_change="rerun")
    if not panel.open:
        return
    from sae_explore.figures_text import token_feature_heatmap  # plotly takes a while to import

    trace, features = shown.trace, rows.feature[:MAP_FEATURES]
    centre = int(rows.position[0]) if position is None else position
    start = max(0, min(centre - MAP_TOKENS // 2, len(trace.tokens) - MAP_TOKENS))
    part = slice(start, start + MAP_TOKENS)
    values = np.stack([trace.rows.column(int(f))[part] for f in features])
    shares = np.nan_to_num(values / np.where(bundle.maxima[features] > 0, bundle.maxima[features], np.nan)[:, None])
    names = [spans.dotted(t, b) for t, b in zip(trace.tokens.texts[part], trace.tokens.bytes[part], strict=True)]
    labels = [spans.plain(label) for label in text_view.labels_of(bundle, features)]
    figure = token_feature_heatmap(names, features.tolist(), labels, values, shares, trace.ignored[part], start=start)
    said = f"The first {wording.count_of(len(features), 'feature')} of the table, each on the scale of its own maximum."
    if len(names) < len(trace.tokens):
        said += f" Tokens {start} to {start + len(names) - 1} of {len(trace.tokens):,}: the stretch around the token that you choose."
    with panel:
        st.caption(said)
        st.plotly_chart(figure, theme="streamlit", config={"displayModeBar": False}, key="_map_figure",
                        alt=f"Heatmap of {len(names)} tokens and {len(features)} features; the table above holds the same numbers.")  # fmt: skip


def _downloads(bundle: Bundle, shown: Shown, by: str) -> None:
    from sae_explore.json_output import trace_json

    name = f"{bundle.name}-{'text' if shown.own else shown.document_id.replace('/', '-')}"
    with st.container(horizontal=True):
        st.download_button("CSV", lambda: text_view.ranked_csv(shown.trace, bundle, by=by), f"{name}.csv", "text/csv", on_click="ignore", icon=":material/download:",
                           help="All features that fire on this text, dense ones too, a row each.")  # fmt: skip
        st.download_button("JSON", lambda: json.dumps(trace_json(shown.trace, bundle), ensure_ascii=False), f"{name}.json", "application/json", on_click="ignore",
                           icon=":material/download:", help="Every token with every activation, and the strongest features with their labels.")  # fmt: skip
