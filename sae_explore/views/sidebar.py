"""The sidebar: which bundle is open, what it is made of, and, on the demo, how to get to GPT-2."""

from __future__ import annotations

import streamlit as st

from sae_explore import public_mode
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing.spans import md
from sae_explore.views import addresses, setup_gpt2, shared_note
from sae_explore.wording import architecture_name


def empty() -> None:
    """Without any bundle there is nothing to choose."""
    st.sidebar.caption("No bundle is open.")
    _offer_gpt2(None)
    foot()


def choose(names: list[str], current: str) -> None:
    """A choice of bundle, where there is more than one."""
    if len(names) < 2:
        return

    def changed() -> None:
        st.session_state["bundle"] = st.session_state["_bundle_choice"]
        for key in addresses.CHOICES:
            st.session_state.pop(key, None)

    st.session_state["_bundle_choice"] = current  # a link may have changed it
    said = "A bundle is one model, one place in it, one SAE and one set of texts, with everything computed from them."
    st.sidebar.selectbox("Bundle", names, key="_bundle_choice", on_change=changed, help=said)


def describe(bundle: Bundle) -> None:
    """Model, hook, SAE, corpus, tokens, explained variance."""
    m, metrics = bundle.manifest, bundle.manifest["metrics"]
    sae, corpus = m["sae"], m["corpus"]
    side = "output" if m["hook"].endswith("post") else "input"
    architecture = architecture_name(sae["architecture"])
    with st.sidebar.container(gap="xsmall"):
        st.markdown(f"**{md(m['model']['display'])}**")
        rows = [
            ("Where", f"{side} of block {m['hook'].split('.')[1]} of {m['model']['n_layers']}", m["hook"]),
            ("SAE", f"{sae['d_sae']:,} features, {architecture}" + (f", k = {sae['k']}" if sae["k"] else ""), sae["source"]),
            ("Explained variance", f"{metrics['explained_variance']:.2f}", f"{metrics['evaluated_on']}; {metrics['tokens_eval']:,} tokens"),
            (
                "Texts",
                f"{corpus['documents']:,} ({corpus['tokens']:,} tokens)",
                ", ".join(map(public_mode.shown_name, corpus["texts"])),
            ),
        ]
        for label, value, help_text in rows:
            st.caption(f"{label}: {md(value)}", help=md(help_text))
    _offer_gpt2(bundle)
    foot()


def foot() -> None:
    """Bundles that are being fetched, and what a visitor of a public server cannot do."""
    shared_note.note()
    if public_mode.is_public():
        st.sidebar.caption(":material/lock: Public, read-only", help=public_words())


def public_words() -> str:
    """What public mode means for the visitor, in sentences."""
    return (
        "Everything can be explored, and nothing that you do is kept here: your labels and lists live in this browser tab until it is "
        f"closed (take them away as JSON on the page Lists). A text may have {public_mode.PUBLIC_TEXT_TOKENS} tokens, and the model reads "
        "a few texts a minute for each visitor."
    )


def _offer_gpt2(bundle: Bundle | None) -> None:
    with st.sidebar:
        setup_gpt2.offer(bundle)
