"""How the Feature page's feature does on the text that the visitor looked at last: what the charts mark."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from sae_explore import resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing.spans import dotted, md
from sae_explore.errors import ExploreError
from sae_explore.types import TextTrace

TEST_TEXT = "_test_text"  # the text tried last in the page's own box, kept for the next feature


@dataclass(frozen=True)
class Here:
    """A feature on the current text."""

    text: str  # which one: markdown
    value: float  # its largest activation there, 0 if it is silent
    token: str  # where that is
    following: tuple[float, str] | None  # folded lens logit and name of the token after it, where they are known


def on_current_text(bundle: Bundle, feature: int) -> Here | None:
    """On the text tried on this page, else the one of the Text page; None where there is none, or no model in memory to read it."""
    found = current_text(bundle)
    if found is None:
        return None
    name, trace = found
    column = trace.rows.column(feature) * ~trace.ignored
    if not column.any():
        return Here(name, 0.0, "", None)
    peak, tokens = int(column.argmax()), trace.tokens
    following = None
    if peak + 1 < len(tokens):
        logit = resources.get_lens_logit(bundle, feature, int(tokens.ids[peak + 1]))
        following = None if logit is None else (logit, dotted(tokens.texts[peak + 1], tokens.bytes[peak + 1]))
    return Here(name, float(column[peak]), dotted(tokens.texts[peak], tokens.bytes[peak]), following)


def current_text(bundle: Bundle) -> tuple[str, TextTrace] | None:
    """(name as markdown, trace) of the text that the visitor looked at last; None where there is none, or it needs a model that is not loaded."""
    state = st.session_state
    own = state.get(TEST_TEXT) or state.get("text")
    if own:
        if resources.tracer_job(bundle).tracer is None:
            return None
        try:
            return "your text", resources.get_trace(bundle, own)
        except ExploreError:  # said where the text was given
            return None
    row = None if state.get("document") is None else bundle.find_document(state["document"])
    if row is None:
        return None
    return f"the text {md(state['document'])}", resources.get_document_trace(bundle, row)
