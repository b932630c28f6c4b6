"""The visitor's own labels in a table, and everything that they wrote out and in as JSON."""

from __future__ import annotations

import json

import pandas as pd
import streamlit as st

from sae_explore import public_mode
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing.spans import md, plain
from sae_explore.errors import ExploreError
from sae_explore.notebook.notes import Notes, sae_of
from sae_explore.notebook.notes_json import MAX_BYTES, merged, read_json, to_json
from sae_explore.views import addresses, own_notes


def labels(bundle: Bundle, found: Notes) -> None:
    st.header("Your labels", anchor=False)
    if not found.labels:
        st.caption("None yet. A feature's page has a button to label it yourself; your label is then shown everywhere in its place.")
        return
    features = sorted(found.labels)
    table = pd.DataFrame(
        {
            "Feature": features,
            "Label": [plain(found.labels[f].label) for f in features],
            "Note": [plain(found.labels[f].note.replace("\n", " ")) for f in features],
            "Automatic label": [plain(bundle.automatic_label(f)) for f in features],
        }
    )
    event = st.dataframe(
        table,
        hide_index=True,
        key=f"_own_labels-{bundle.name}-{len(features)}",
        on_select="rerun",
        selection_mode="single-row",
        column_config={"Feature": st.column_config.NumberColumn(format="%d", width=65)},
        height="content" if len(table) <= 10 else 388,
        alt="Your labels and notes",
    )
    picked = event["selection"]["rows"]
    if picked and picked[0] < len(features):
        addresses.feature_link(bundle, features[picked[0]], icon=":material/arrow_forward:")
    else:
        st.caption("Select a row to open its feature.")


def in_and_out(bundle: Bundle, found: Notes) -> None:
    st.header("Take away and bring in", anchor=False)
    st.caption(md(own_notes.where_words(bundle)))
    sae = sae_of(bundle.manifest)

    def as_json() -> str:
        return json.dumps(to_json(found, bundle=bundle.name, sae=sae), indent=1, ensure_ascii=False)

    left, right = st.columns(2, gap="large", vertical_alignment="center")
    left.download_button(
        "Labels and lists as JSON",
        as_json,
        f"{bundle.name}-notes.json",
        "application/json",
        icon=":material/download:",
        on_click="ignore",
        disabled=not (found.labels or found.lists),
    )
    key = f"_bring_in-{st.session_state.get('_brought_in', 0)}"

    def bring_in() -> None:
        file = st.session_state[key]
        if file is None:
            return
        try:
            theirs = read_json(file.getvalue(), d_sae=bundle.d_sae, sae=sae)
        except ExploreError as error:
            own_notes.say_problem(public_mode.shown(error))
        else:
            did: list[str] = []

            def edit(now: Notes) -> Notes:
                made, words = merged(now, theirs)
                did.append(words)
                return made

            if own_notes.change(bundle, edit) is not None:
                own_notes.say_done(f"brought in: {did[-1]}")
        st.session_state["_brought_in"] = st.session_state.get("_brought_in", 0) + 1

    right.file_uploader(
        "Bring in a JSON file",
        type=["json"],
        key=key,
        on_change=bring_in,
        max_upload_size=MAX_BYTES >> 20,
        help="It is merged with what is here: of two labels for a feature the newer one stays, lists of the same name become one.",
    )
