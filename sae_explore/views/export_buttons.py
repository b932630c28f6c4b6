"""Buttons that take features along as files; what they hold is made when they are pressed."""

from __future__ import annotations

import io

import streamlit as st

from sae_explore import export
from sae_explore.bundles.bundle import Bundle
from sae_explore.notebook.notes import SavedList
from sae_explore.views import own_notes

_MIME = {"parquet": "application/vnd.apache.parquet", "csv": "text/csv", "jsonl": "application/jsonl"}
_OPTIONS = {"on_click": "ignore", "icon": ":material/download:"}


def feature_buttons(bundle: Bundle, feature: int) -> None:
    """The feature as one HTML file: for the Feature page."""

    def as_html() -> str:
        own = own_notes.notes_of(bundle).labels.get(feature)
        return export.feature_html(bundle, [feature], notes={feature: own.note} if own else None)

    st.download_button(
        "HTML",
        as_html,
        f"{bundle.name}-feature-{feature}.html",
        "text/html",
        key=f"_export-{feature}",
        help="This feature as one file to keep or send: examples, logit lens, histogram. It opens anywhere, without a network.",
        **_OPTIONS,
    )


def list_buttons(bundle: Bundle, saved: SavedList) -> None:
    """A list as one HTML file."""

    def as_html() -> str:
        said = {entry.feature: entry.note for entry in saved.entries}
        return export.feature_html(bundle, saved.features, title=saved.name, note=saved.note, notes=said)

    st.download_button(
        "HTML",
        as_html,
        f"{bundle.name}-list.html",
        "text/html",
        key="_export-list",
        disabled=not saved.entries,
        help="All features of the list as one file to keep or send. It opens anywhere, without a network.",
        **_OPTIONS,
    )


def table_buttons(bundle: Bundle) -> None:
    """All features as a table, in each format: for the Browse page."""

    def maker(form: str):
        def make() -> bytes:
            out = io.BytesIO()
            export.write_table(out, bundle, range(bundle.d_sae), form, notes=own_notes.notes_of(bundle))
            return out.getvalue()

        return make

    with st.popover("All features as a table", icon=":material/download:"):
        st.caption("A row a feature: label, figures, lens tokens, nearest features, histogram, firings by category.")
        with st.container(horizontal=True):
            for form in export.TABLES:
                name = {"parquet": "Parquet", "csv": "CSV", "jsonl": "JSON lines"}[form]
                st.download_button(name, maker(form), f"{bundle.name}-features.{form}", _MIME[form], key=f"_export-{form}", **_OPTIONS)
