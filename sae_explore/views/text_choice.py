"""The top of the text page: what this is, texts to begin with, and a text of one's own."""

from __future__ import annotations

import streamlit as st

from sae_explore import public_mode
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import spans
from sae_explore.errors import InputError
from sae_explore.explore import links, text_view
from sae_explore.explore.showcase import Pick
from sae_explore.models.tokens import MAX_TEXT_TOKENS
from sae_explore.views.feature_starts import ANCHOR
from sae_explore.wording import sentence

INTRO = (
    "A language model turns each word that it reads into {d_in:,} numbers. A **sparse autoencoder** (SAE) has learned to read them as "
    "{d_sae:,} **features**, and each of these fires on something of its own: a topic, a tone, a piece of grammar. "
    "Type a text, choose an example, or [start with a feature](#{anchor})."
)
INTRO_HELP = (
    "The numbers are the model's residual stream at one place, between two of its blocks (see the sidebar). The SAE was trained to rebuild "
    "them from few features at a time; nobody told it what they should mean. A feature fires on a word where its activation is above 0. "
    "“Word” stands for token: a word, a part of one, or a sign."
)
TEXT_HELP = (
    "Up to {tokens:,} tokens, about {words:,} words. The text is read where this app runs and sent nowhere else. A text of up to "
    f"{links.MAX_LINK_TEXT:,} characters becomes part of the page's address, so that the link opens the same view."
)
EXAMPLES_HELP = "Texts that come with this SAE, each for something that it shows. They open at once: what fires on them is stored."
COLOUR_HELP = (
    "The darker, the more strongly the feature fires on a token. The last choice gives every token the colour of its own strongest "
    "feature: the one that comes nearest to its maximum on the corpus, the set of texts that comes with this SAE. Dense features, which "
    "fire on a large part of all tokens, are left out there unless the switch above the table shows them."
)
_ALL = "all"


def intro(bundle: Bundle) -> None:
    """What this is, in three sentences."""
    st.title("What lights up inside a language model?", anchor=False)
    st.markdown(INTRO.format(d_in=bundle.manifest["sae"]["d_in"], d_sae=bundle.d_sae, anchor=ANCHOR), help=INTRO_HELP)


def examples(picks: list[Pick], shown: Pick | None) -> None:
    """Stored texts, a click each, and what the one that is `shown` is there for."""
    by_id = {pick.id: pick for pick in picks}
    st.session_state["_example"] = shown.id if shown else None

    def choose() -> None:
        if chosen := st.session_state["_example"]:
            open_text(by_id[chosen])

    st.pills(
        "Examples",
        list(by_id),
        format_func=lambda i: spans.md(by_id[i].title),
        key="_example",
        on_change=choose,
        wrap=True,
        help=EXAMPLES_HELP,
    )
    if shown and shown.note:
        st.markdown(spans.md(shown.note))


def open_text(pick: Pick) -> None:
    """Put a stored text on the page, coloured by the first feature to look at."""
    st.session_state["document"], st.session_state["text"] = pick.id, None
    if pick.features:
        st.session_state["feature"] = pick.features[0]
    else:
        st.session_state.pop("feature", None)


def own_text_form() -> None:
    """An own text. What is wrong with it is said here, and the page goes on showing what it showed."""
    own = st.session_state.get("text")
    if own is not None and st.session_state.get("_typed_from") != own:  # it came with a link
        st.session_state["_typed"], st.session_state["_typed_from"] = own.encode(errors="replace").decode(), own
    elif "_typed" not in st.session_state:
        st.session_state["_typed"] = own or ""
    tokens = public_mode.max_text_tokens(MAX_TEXT_TOKENS)
    explained = TEXT_HELP.format(tokens=tokens, words=tokens * 3 // 4 // 100 * 100)
    with st.form("own_text", border=False), st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.text_area(
            "Your own text", key="_typed", height=76, placeholder="Type or paste anything: a sentence, a mail, code …", help=explained
        )
        st.form_submit_button("Analyse", type="primary", on_click=_take_own_text)
    if problem := st.session_state.pop("_text_problem", None):
        st.error(spans.md(sentence(problem)), icon=":material/edit_off:")


def _take_own_text() -> None:
    text = st.session_state["_typed"] or ""
    try:
        text_view.check_own_text(text)
    except InputError as error:
        st.session_state["_text_problem"] = str(error)
        return
    if st.session_state.get("text") is None:  # the feature was chosen for another text: show all that fires on this one first
        st.session_state.pop("feature", None)
    st.session_state["text"] = st.session_state["_typed_from"] = text
    st.session_state["document"] = None


def colour_choice(bundle: Bundle, look_at: list[int], feature: int | None) -> None:
    """What the text is coloured by: one of a few features, the chosen one among them, or each token's strongest."""
    features = list(dict.fromkeys([*look_at, *([] if feature is None else [feature])]))
    labels = dict(zip(map(str, features), text_view.labels_of(bundle, features), strict=True))
    st.session_state["_colour"] = _ALL if feature is None else str(feature)

    def choose() -> None:
        chosen = st.session_state["_colour"]
        if chosen == _ALL:
            st.session_state.pop("feature", None)
        else:
            st.session_state["feature"] = int(chosen)

    st.pills(
        "Colour by",
        [*labels, _ALL],
        format_func=lambda option: "each token's strongest feature" if option == _ALL else spans.md(labels[option]),
        key="_colour",
        on_change=choose,
        required=True,
        wrap=True,
        help=COLOUR_HELP,
    )
