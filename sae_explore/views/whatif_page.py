"""What if: does a feature matter? Change it inside the model, steer with it, or ask which features a prediction rests on."""

from __future__ import annotations

import streamlit as st

from sae_explore import resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing.spans import md
from sae_explore.errors import ExploreError, InputError
from sae_explore.explore import text_view
from sae_explore.explore.browse import start_feature
from sae_explore.types import TextTrace
from sae_explore.views import addresses, model_wait
from sae_explore.views.whatif_scene import Scene, piece_of, refuse
from sae_explore.whatif import edits
from sae_explore.wording import sentence

TOOLS = {"change": "Change", "borrow": "Borrow", "steer": "Steer", "explain": "Explain"}
ABOUT = {
    "change": "Switch the feature off, set it or amplify it while the model reads the text, and see which words it expects next instead.",
    "borrow": "Give the feature, in this text, the activations that it has in another one: does what the model expects come along?",
    "steer": "Let the model write on from a beginning of its own, once as it is and once with the feature pushed at every word. The text "
    "above plays no part here.",
    "explain": "Which features, at this word and before it, does the model's next word rest on?",
}
INTRO = (
    "A feature that fires is not yet a feature that matters. Here you change features **inside the model while it runs** and see what it "
    "would write instead."
)
INTRO_HELP = (
    "At one place between two blocks, what the feature adds to the model's state is replaced; all else stays as it is, the part that the "
    "SAE cannot explain included. The rest of the model then runs as always."
)
MOST = edits.MAX_EDITS - 1  # features beside the chosen one
_OFFERED = 60


def render(bundle: Bundle) -> None:
    """Draw the page."""
    st.title("What if?", anchor=False)
    st.markdown(INTRO, help=INTRO_HELP)
    feature = _feature(bundle)
    text, document, row = _text(bundle, feature)
    left, right = st.columns([61, 39], gap="medium")
    with left:
        _text_form(text)
    with right:
        _feature_choice(bundle, feature)
    also = _also(bundle, feature)
    addresses.write_link(bundle, feature=feature, features=also, text=None if document else text, document=document)
    body = st.empty()
    try:
        text_view.check_own_text(text)
        if not model_wait.model_ready(bundle, body, whole=True):
            return
        with body, st.spinner("Reading the text …", show_time=True):
            trace = resources.get_trace(bundle, text) if row is None else resources.get_document_trace(bundle, row)
    except ExploreError as error:
        refuse(error, body)
        return
    with body.container():
        _tools(bundle, feature, also, trace)


# ---- what it is about --------------------------------------------------------------------------------------------------


def _feature(bundle: Bundle) -> int:
    """The session's feature, or one worth beginning with."""
    asked = st.session_state.get("feature")
    if asked is not None:
        try:
            return bundle.check_feature(asked)
        except InputError as error:
            st.warning(md(sentence(str(error))), icon=":material/link_off:")
    picked = resources.get_starts(bundle)
    found = st.session_state["feature"] = picked[0].feature if picked else start_feature(resources.get_frame(bundle))
    return found


def _also(bundle: Bundle, feature: int) -> list[int]:
    """Features that the session changes together with the chosen one."""
    asked = st.session_state.get("also_features", ())
    known = (f for f in dict.fromkeys(asked) if isinstance(f, int) and 0 <= f < bundle.d_sae)  # a browser may send what was not offered
    return [f for f in known if f != feature][:MOST]


def _text(bundle: Bundle, feature: int) -> tuple[str, str | None, int | None]:
    """(text, id of the stored text, its row) that the session holds, or a stored text on which the feature fires."""
    own, wanted = st.session_state.get("text"), st.session_state.get("document")
    if own is not None:
        return own, None, None
    row = None if wanted is None else bundle.find_document(wanted)
    if wanted is not None and row is None:
        st.warning(f"This bundle holds no text “{md(wanted[:80])}”, which the link asks for; here is another.", icon=":material/link_off:")
    if row is None:
        found = bundle.top_examples(feature, 1)
        row = found[0].document if found else resources.get_picks(bundle)[0].document
        st.session_state["document"] = bundle.documents["id"][row].as_py()
    return bundle.document_text(row), bundle.documents["id"][row].as_py(), row


def _text_form(text: str) -> None:
    if st.session_state.get("_whatif_from") != text:
        st.session_state["_whatif_typed"], st.session_state["_whatif_from"] = text.encode(errors="replace").decode(), text
    with st.form("whatif_text", border=False):
        st.text_area("Text", key="_whatif_typed", height=96, help="A stored text, or one of your own: change it as you like.")
        st.form_submit_button("Use this text", on_click=_take_text, args=(text,))


def _take_text(shown: str) -> None:
    typed = st.session_state.get("_whatif_typed") or ""
    if typed != shown.encode(errors="replace").decode():
        st.session_state["text"], st.session_state["document"] = typed, None


def _feature_choice(bundle: Bundle, feature: int) -> None:
    state = st.session_state
    state["_whatif_number"] = feature

    def chosen() -> None:
        if state["_whatif_number"] is not None:
            state["feature"] = int(state["_whatif_number"])

    with st.container(gap="small"):
        st.number_input("Feature", 0, bundle.d_sae - 1, step=1, key="_whatif_number", on_change=chosen, width=170)
        (label,) = text_view.labels_of(bundle, [feature])
        st.markdown(f"**{md(label)}**")
        addresses.feature_link(bundle, feature, "Open this feature's page", icon=":material/arrow_forward:")


# ---- the tools ---------------------------------------------------------------------------------------------------------


def _tools(bundle: Bundle, feature: int, also: list[int], trace: TextTrace) -> None:
    chosen_on = st.session_state.get("_whatif_piece")  # (feature, piece) of a row chosen in a table of that piece: it stays
    kept = chosen_on is not None and chosen_on[0] == feature and chosen_on[1].text == trace.text
    piece = chosen_on[1] if kept else piece_of(bundle, trace, int(trace.rows.column(feature).argmax()))
    with st.container(horizontal=True, gap="medium"):
        tool = st.segmented_control(
            "What to do", list(TOOLS), format_func=TOOLS.get, default="change", required=True, key="_whatif_tool", persist_state="session"
        )
        others = [] if tool == "explain" else _others(bundle, feature, also, trace)
    scene = Scene(bundle, piece, trace, (feature, *others), f"{bundle.name}-{hash(piece) & 0xFFFFFFFF:08x}")
    st.markdown(ABOUT[tool])
    if tool in ("change", "borrow") and len(scene) < len(trace.tokens):
        st.caption(f"The text has {len(trace.tokens):,} tokens; the model reads tokens {piece.start} to {piece.stop - 1} of it here.")
    module = __import__(f"sae_explore.views.whatif_{tool}", fromlist=["render"])
    module.render(scene)


def _others(bundle: Bundle, feature: int, also: list[int], trace: TextTrace) -> list[int]:
    """Features to change together with the chosen one: those that are, and more out of those that fire on the text."""
    state = st.session_state
    rows = text_view.ranked(trace, text_view.scale_of(bundle), by="share").feature.tolist()
    offered = list(dict.fromkeys([*also, *(f for f in rows[:_OFFERED] if f != feature)]))
    labels = dict(zip(offered, text_view.labels_of(bundle, offered), strict=True))
    state["_whatif_also"] = also

    def chosen() -> None:
        state["also_features"] = list(state["_whatif_also"])

    return st.multiselect(
        "Together with",
        offered,
        format_func=lambda f: f"{f}  {labels.get(f, '')}",
        key="_whatif_also",
        on_change=chosen,
        max_selections=MOST,
        placeholder="no other feature",
        width=420,
        help="Other features that are changed in the same way, each by its own maximum. Offered are those that fire on this text.",
    )
