"""What all visitors share: open bundles, loaded models, traces of texts. The only place with `st.cache_*`.

A bundle is known by (name, version), the version coming from the modification times of its manifest and of what was checked by
hand, so that a rebuilt bundle is opened anew. Models load in a background thread of their own; pages look at the job's progress and
never wait for another visitor's.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from sae_explore import public_mode
from sae_explore.bundles import curated, default_bundle, shared_bundles
from sae_explore.bundles.bundle import Bundle
from sae_explore.errors import ModelError
from sae_explore.explore.browse import feature_frame, with_labels
from sae_explore.explore.compare import Comparison, compare_traces
from sae_explore.explore.find import TokenFound, by_token
from sae_explore.explore.find_tokens import TokenTexts
from sae_explore.explore.showcase import Pick, Start, openings, starts, worth_of_features
from sae_explore.features.diverse import clarity, diverse_features
from sae_explore.features.quality import StoreQuality, store_quality
from sae_explore.files import bundle_files
from sae_explore.model_jobs import LabJob, TracerJob
from sae_explore.models.tokens import MAX_TEXT_TOKENS
from sae_explore.notebook.notes import sae_of
from sae_explore.notebook.notes_store import FileStore
from sae_explore.types import FeatureCard, TextTrace
from sae_explore.whatif.edits import Attribution, Edit, Effect
from sae_explore.wording import OWN


def cache_folder() -> Path:
    return bundle_files.default_cache()


def bundle_names() -> list[str]:
    """Bundles that are there now, the one that opens first in front."""
    return default_bundle.ordered_names(cache_folder())


def builds_allowed() -> bool:
    """Whether bundles may be built from the pages: not where the app is shown to the public."""
    return public_mode.allows("build")


def _visitor() -> public_mode.Visitor | None:
    """Who is served by this thread: nobody, if it draws no page."""
    if get_script_run_ctx(suppress_warning=True) is None:
        return None
    headers = {name.lower(): value for name, value in st.context.headers.to_dict().items()}
    address = st.context.ip_address
    if not isinstance(address, str | None):  # AppTest, which has no connection, answers with a mock
        return public_mode.Visitor("127.0.0.1", {"host": "localhost"}, st.session_state)
    behind_socket = str(st.get_option("server.address") or "").startswith("unix:")
    if address is None and headers and not behind_socket:  # how Streamlit says that it is a loopback address; without headers it has gone
        address = "127.0.0.1"
    return public_mode.Visitor(address, headers, st.session_state)


public_mode.watch(_visitor)


@st.cache_resource(max_entries=2, show_spinner=False)
def _shared_bundles(wanted: str, cache: Path) -> shared_bundles.SharedBundles:
    return shared_bundles.SharedBundles(wanted, cache)


def shared_bundles_job() -> shared_bundles.SharedBundles | None:
    """The job that fetches the bundles which SAE_EXPLORE_BUNDLES names; None where it names none."""
    wanted = shared_bundles.wanted()
    return _shared_bundles(wanted, cache_folder()) if wanted else None


def version_of(name: str) -> int:
    """Changes when the bundle is rebuilt, and when what was checked by hand is edited."""
    return sum(_modified(cache_folder() / name / file) for file in (bundle_files.MANIFEST, curated.FILE))


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def get_bundle(name: str) -> Bundle:
    """The open bundle; BundleError if it is damaged."""
    return _bundle(name, version_of(name))


@st.cache_resource(max_entries=8, show_spinner=False)
def _bundle(name: str, version: int) -> Bundle:
    return Bundle(cache_folder() / bundle_files.check_name(name))


@st.cache_data(max_entries=512, show_spinner=False)
def _card(name: str, version: int, feature: int, top: int, convention: str) -> FeatureCard:
    return _bundle(name, version).card(feature, top=top, convention=convention)


def get_card(bundle: Bundle, feature: int, *, top: int = 10, convention: str | None = None) -> FeatureCard:
    """Everything about a feature; InputError if the bundle has none of this number."""
    card = _card(bundle.name, version_of(bundle.name), bundle.check_feature(feature), top, convention or bundle.lens_default)
    return replace(card, row=bundle.row(feature)) if feature in bundle.own_labels else card


@st.cache_resource(max_entries=4, show_spinner=False)
def _frame(name: str, version: int) -> pd.DataFrame:
    return feature_frame(_bundle(name, version))


def get_frame(bundle: Bundle) -> pd.DataFrame:
    """The table of all features (see `browse`), shared: not to be changed."""
    frame = _frame(bundle.name, version_of(bundle.name))
    return with_labels(frame, bundle.own_labels, OWN) if bundle.own_labels else frame


@st.cache_resource(max_entries=4, show_spinner=False)
def _map_points(name: str, version: int):
    from sae_explore.drawing.figures_map import points_of  # imports plotly

    frame = _frame(name, version)
    return points_of(_bundle(name, version).map_xy, frame["label"].tolist(), frame["density"].to_numpy())


def get_map_points(bundle: Bundle):
    """The map's points without a visitor's own labels (a `figures_map.Points`), shared: not to be changed."""
    return _map_points(bundle.name, version_of(bundle.name))


@st.cache_resource(max_entries=8, show_spinner=False)
def _quality(name: str, version: int) -> StoreQuality:
    return store_quality(_bundle(name, version))


def get_quality(bundle: Bundle) -> StoreQuality:
    """What the store and the decoder say about the SAE (see `quality`), shared: not to be changed."""
    return _quality(bundle.name, version_of(bundle.name))


@st.cache_resource(max_entries=4, show_spinner=False)
def _token_texts(name: str, version: int) -> TokenTexts:
    return TokenTexts(_bundle(name, version).vocabulary)


def get_token_texts(bundle: Bundle) -> TokenTexts:
    """The vocabulary, to be looked up by what a person types; shared."""
    return _token_texts(bundle.name, version_of(bundle.name))


@st.cache_data(max_entries=64, show_spinner=False)
def _on_token(name: str, version: int, ids: tuple[int, ...]) -> TokenFound:
    return by_token(_bundle(name, version), np.asarray(ids, np.int64))


def get_on_token(bundle: Bundle, ids: np.ndarray) -> TokenFound:
    """What fires on these vocabulary tokens in the stored texts (see `find`)."""
    return _on_token(bundle.name, version_of(bundle.name), tuple(map(int, ids)))


def notes_file(bundle: Bundle) -> FileStore:
    """Where the notes of this machine's owner are kept."""
    return FileStore(cache_folder(), bundle.name, sae=sae_of(bundle.manifest), d_sae=bundle.d_sae)


@st.cache_data(max_entries=64, show_spinner=False)
def _diverse(name: str, version: int, n: int) -> list[int]:
    bundle = _bundle(name, version)
    return diverse_features(bundle.W_dec, clarity(bundle.features, bundle.manifest["features"]["dense_above"]), n)


def get_diverse(bundle: Bundle, n: int) -> list[int]:
    """Clearly labelled features that differ from one another."""
    return _diverse(bundle.name, version_of(bundle.name), n)


@st.cache_data(max_entries=8, show_spinner=False)
def _picks(name: str, version: int) -> list[tuple]:
    return [tuple(pick) for pick in openings(_bundle(name, version))]


def get_picks(bundle: Bundle) -> list[Pick]:
    """Stored texts worth showing first, the best one in front."""
    return [Pick(*pick) for pick in _picks(bundle.name, version_of(bundle.name))]


@st.cache_data(max_entries=8, show_spinner=False)
def _starts(name: str, version: int) -> list[tuple]:
    return [tuple(start) for start in starts(_bundle(name, version))]


def get_starts(bundle: Bundle) -> list[Start]:
    """Features to begin with, theme by theme."""
    return [Start(*start) for start in _starts(bundle.name, version_of(bundle.name))]


@st.cache_data(max_entries=8, show_spinner=False)
def _worth(name: str, version: int) -> np.ndarray:
    return worth_of_features(_bundle(name, version))


def get_worth(bundle: Bundle) -> np.ndarray:
    """(d_sae,) how much each feature says where it fires strongly (see `showcase`)."""
    return _worth(bundle.name, version_of(bundle.name))


# ---- models ------------------------------------------------------------------------------------------------------------


_model_lock = threading.Lock()


@st.cache_resource(max_entries=2, show_spinner=False)
def _model(folder: Path, hook: str, name: str, revision: str):
    from sae_explore.models.model import load_model
    from sae_explore.types import HookPoint

    return load_model(folder, hook=HookPoint.parse(hook), name=name, revision=revision)


def _shared_model(folder: Path, *, hook, name: str, revision: str):
    """One loaded model for all bundles and sessions."""
    with _model_lock:
        return _model(folder, hook.name, name, revision)


@st.cache_resource(max_entries=4, show_spinner=False)
def _job(name: str, version: int) -> TracerJob:
    return TracerJob(_bundle(name, version), load=_shared_model)


def tracer_job(bundle: Bundle) -> TracerJob:
    """The job that loads this bundle's model; `start()` it to have own texts read."""
    return _job(bundle.name, version_of(bundle.name))


@st.cache_resource(max_entries=2, show_spinner=False)
def _full(folder: Path):
    from sae_explore.models.model import load_full_model

    return load_full_model(folder)


def _shared_full(folder: Path):
    """The whole model, for all bundles and sessions."""
    with _model_lock:
        return _full(folder)


@st.cache_resource(max_entries=4, show_spinner=False)
def _lab_job(name: str, version: int) -> LabJob:
    return LabJob(_bundle(name, version), first=_job(name, version), load=_shared_full)


def lab_job(bundle: Bundle) -> LabJob:
    """The job that loads this bundle's model in full; `start()` it to change features in it."""
    return _lab_job(bundle.name, version_of(bundle.name))


def warm(bundle: Bundle) -> None:
    """Load the model in the background if it is on this machine already."""
    from sae_explore.models.model_sources import is_local

    job = tracer_job(bundle)
    if (
        job.tracer is None
        and not job.running
        and job.error is None
        and is_local(bundle.manifest["model"]["spec"], models=cache_folder() / "models")
    ):
        job.start()


@st.cache_data(max_entries=128, show_spinner=False)
def _trace(name: str, version: int, text: str) -> TextTrace:
    public_mode.spend()
    return _job(name, version).tracer.trace(text, max_tokens=public_mode.max_text_tokens(MAX_TEXT_TOKENS))


def get_trace(bundle: Bundle, text: str) -> TextTrace:
    """An own text through the loaded model (the job must be done); InputError for a text that cannot be read."""
    return _trace(bundle.name, version_of(bundle.name), text)


@st.cache_data(max_entries=64, show_spinner=False)
def _document_trace(name: str, version: int, document: int) -> TextTrace:
    return _bundle(name, version).document_trace(document)


def get_document_trace(bundle: Bundle, document: int) -> TextTrace:
    """A stored document, as if its text had been pasted; needs no model."""
    return _document_trace(bundle.name, version_of(bundle.name), document)


@st.cache_data(max_entries=32, show_spinner=False)
def _comparison(name: str, version: int, a: str | int, b: str | int) -> Comparison:
    traces = [_document_trace(name, version, t) if isinstance(t, int) else _trace(name, version, t) for t in (a, b)]
    return compare_traces(*traces, _bundle(name, version).maxima)


def get_comparison(bundle: Bundle, a: str | int, b: str | int) -> Comparison:
    """What differs between two texts: own ones (the job must be done), or rows of stored ones. InputError as in `compare`."""
    return _comparison(bundle.name, version_of(bundle.name), a, b)


@st.cache_resource(max_entries=4, show_spinner=False)
def _mean_row(name: str, version: int, _unembedding):
    from sae_explore.features.lens import mean_row

    return mean_row(_unembedding)


def get_lens_logit(bundle: Bundle, feature: int, token: int) -> float | None:
    """What a feature's direction writes into a token's logit (folded lens); None while the model is not in memory: it is not loaded for this."""
    tracer = tracer_job(bundle).tracer
    if tracer is None:
        return None
    from sae_explore.features.lens import folded_logit

    unembedding = tracer.model.unembedding
    mean = _mean_row(bundle.name, version_of(bundle.name), unembedding)
    return folded_logit(bundle.W_dec[feature], unembedding, token, mean=mean)


# ---- features changed inside the model ---------------------------------------------------------------------------------


class Piece(NamedTuple):
    """Tokens start..stop of a text: what is read, and changed, at once."""

    text: str
    start: int
    stop: int


def get_lab(bundle: Bundle):
    """The `Lab` that `lab_job` has loaded; ModelError if other models have taken its place since."""
    if (lab := lab_job(bundle).tracer) is None:
        raise ModelError("the model is not in memory any more; open the page again to load it")
    return lab


@st.cache_resource(max_entries=32, show_spinner=False)
def _reading(name: str, version: int, piece: Piece, _lab):
    public_mode.spend()
    return _lab.read(*piece)


def get_reading(bundle: Bundle, piece: Piece):
    """The piece up to the hook (an `interventions.Reading`), shared: not to be changed."""
    return _reading(bundle.name, version_of(bundle.name), piece, get_lab(bundle))


@st.cache_data(max_entries=64, show_spinner=False)
def _effect(name: str, version: int, piece: Piece, edits: tuple[Edit, ...], _lab) -> tuple[Effect, float]:
    public_mode.spend()
    started = time.perf_counter()
    effect = _lab.effect(_reading(name, version, piece, _lab), edits)
    return effect, time.perf_counter() - started


def get_effect(bundle: Bundle, piece: Piece, edits: tuple[Edit, ...]) -> tuple[Effect, float]:
    """(what the edits do to the predictions, the seconds that it took)."""
    return _effect(bundle.name, version_of(bundle.name), piece, edits, get_lab(bundle))


@st.cache_data(max_entries=64, show_spinner=False)
def _attribution(name: str, version: int, piece: Piece, position: int, foil: int | None, _lab) -> tuple[Attribution, float]:
    from sae_explore.whatif.attribution import attribute

    public_mode.spend(2)
    started = time.perf_counter()
    found = attribute(_lab, _reading(name, version, piece, _lab), position, foil=foil)
    return found, time.perf_counter() - started


def get_attribution(bundle: Bundle, piece: Piece, position: int, *, foil: int | None = None) -> tuple[Attribution, float]:
    """(which features support the prediction made at a position, the seconds that it took)."""
    return _attribution(bundle.name, version_of(bundle.name), piece, position, foil, get_lab(bundle))
