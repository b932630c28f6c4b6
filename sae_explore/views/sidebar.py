"""The sidebar: which bundle is open, what it is made of, and, on the demo, how to get to GPT-2."""

from __future__ import annotations

import streamlit as st

from sae_explore.bundle import Bundle
from sae_explore.spans import md

CHOICES = ("feature", "text", "document", "lens_features")  # what a session has chosen in a bundle


def empty() -> None:
    """Without any bundle there is nothing to choose."""
    st.sidebar.caption("No bundle is open.")


def choose(names: list[str], current: str) -> None:
    """A choice of bundle, where there is more than one."""
    if len(names) < 2:
        return

    def changed() -> None:
        st.session_state["bundle"] = st.session_state["_bundle_choice"]
        for key in CHOICES:
            st.session_state.pop(key, None)

    st.session_state["_bundle_choice"] = current  # a link may have changed it
    said = "A bundle is one model, one place in it, one SAE and one set of texts, with everything computed from them."
    st.sidebar.selectbox("Bundle", names, key="_bundle_choice", on_change=changed, help=said)


def describe(bundle: Bundle) -> None:
    """Model, hook, SAE, corpus, tokens, explained variance."""
    m, metrics = bundle.manifest, bundle.manifest["metrics"]
    sae, corpus = m["sae"], m["corpus"]
    side = "output" if m["hook"].endswith("post") else "input"
    with st.sidebar:
        st.markdown(f"**{md(m['model']['display'])}**")
        rows = [
            ("Where", f"{side} of block {m['hook'].split('.')[1]} of {m['model']['n_layers']}", m["hook"]),
            ("SAE", f"{sae['d_sae']:,} features, {sae['architecture']}" + (f", k = {sae['k']}" if sae["k"] else ""), sae["source"]),
            ("Explained variance", f"{metrics['explained_variance']:.2f}", f"{metrics['evaluated_on']}; {metrics['tokens_eval']:,} tokens"),
            ("Texts", f"{corpus['documents']:,} texts, {corpus['tokens']:,} tokens", ", ".join(corpus["texts"])),
        ]
        for label, value, help_text in rows:
            st.caption(f"{label}: {md(value)}", help=md(help_text))
        if bundle.name == "demo":
            st.caption("This is the demo on a small model. GPT-2 is one step away:")
            st.code("python -m sae_explore build gpt2", language=None, wrap_lines=True)
