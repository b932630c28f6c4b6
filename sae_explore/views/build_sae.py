"""Which SAE a bundle is to have and which layer it reads: published, trained here, or given. A part of the Build page's form."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from sae_explore.building import build_choices
from sae_explore.building.build_choices import ASSUMED_LATENTS
from sae_explore.building.build_request import BuildRequest
from sae_explore.building.presets import request_for
from sae_explore.drawing.spans import md
from sae_explore.errors import ExploreError
from sae_explore.models.model_facts import ModelFacts
from sae_explore.models.model_sources import GPT2
from sae_explore.saes.sae_facts import facts_of_sae
from sae_explore.wording import sentence

_PUBLISHED, _TRAINED, _GIVEN = "Published", "Train one", "Another"
_KEPT = {"persist_state": "session"}


def choose_sae(facts: ModelFacts) -> tuple[BuildRequest, int]:
    """(a request that has no name and no texts yet, the layer). Its `sae` is "" where one is still to be named."""
    st.subheader("SAE and layer", anchor=False)
    kinds = [_PUBLISHED] * (facts.spec == GPT2) + [_TRAINED, _GIVEN]
    kind = st.segmented_control("SAE", kinds, default=kinds[0], required=True, key=f"build_sae_{kinds[0]}", label_visibility="collapsed", **_KEPT)  # fmt: skip
    base = request_for("new", preset="gpt2-topk", model=facts.spec)
    if kind == _GIVEN:
        return _given(base, facts)
    layer = _layer(facts)
    if kind == _PUBLISHED and (published := build_choices.published_at(facts.spec, layer)):
        st.caption(f"{md(published)}: {ASSUMED_LATENTS:,} features that others trained. Nothing is trained here.")
        return replace(base, sae=published, hook=published.partition(":")[2]), layer
    return replace(_trained(base, facts), hook=_hook(layer)), layer


def _layer(facts: ModelFacts) -> int:
    said = "The SAE reads what this block writes. Early blocks know words, middle ones meanings, late ones what comes next."
    last, layer = facts.layers - 1, build_choices.default_layer(facts)
    if not last:
        return layer
    return st.slider(f"After block (0 to {last})", 0, last, layer, help=said, key=f"build_layer_{facts.spec}", **_KEPT)


def _hook(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


def _trained(base: BuildRequest, facts: ModelFacts) -> BuildRequest:
    columns = st.columns(3)
    latents = columns[0].number_input(
        "Latents", 1, 1 << 20, 2_048, 1_024, help="How many features the SAE has.", key="build_latents", **_KEPT
    )
    k = columns[1].number_input("k", 1, 1_024, 32, help="How many of them are active on a token.", key="build_k", **_KEPT)
    said = "How often the training sees each token."
    epochs = columns[2].number_input("Epochs", 1, 1_000, 15 if facts.spec == GPT2 else 5, help=said, key="build_epochs", **_KEPT)
    return replace(base, latents=latents, k=k, epochs=epochs)


def _given(base: BuildRequest, facts: ModelFacts) -> tuple[BuildRequest, int]:
    said = (
        "In the format of SAELens, sparsify, OpenAI, dictionary_learning or Gemma Scope. On the Hub: USER/NAME:FOLDER, or USER/NAME where it "
        "holds one SAE only. On this machine: the folder, or OpenAI's .pt file."
    )
    given = st.text_input(
        "Hub id, folder or .pt file", placeholder="USER/NAME:FOLDER or /a/folder", help=said, key="build_sae_given", **_KEPT
    )
    sae = ""
    try:
        if given.strip():
            sae = build_choices.given_sae(given.strip())
            st.caption(build_choices.sae_words(facts_of_sae(sae)))
    except ExploreError as error:
        st.error(md(sentence(str(error))), icon=":material/error:")
    said = "Most SAEs say themselves which layer they read. OpenAI's .pt files do not, nor do some others."
    layer, hook = build_choices.default_layer(facts), None
    if st.checkbox("Choose the layer", help=said, key="build_sae_place", **_KEPT):
        layer = _layer(facts)
        hook = _hook(layer)
    return replace(base, sae=sae, hook=hook), layer
