"""What all visitors share: open bundles, loaded models, traces of texts. The only place with `st.cache_*`.

A bundle is known by (name, version), the version being its manifest's modification time, so that a rebuilt bundle is opened
anew. Models load in a background thread of their own; pages look at the job's progress and never wait for another visitor's.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pandas as pd
import streamlit as st

from sae_explore import bundle_files
from sae_explore.browse import feature_frame
from sae_explore.bundle import Bundle
from sae_explore.diverse import clarity, diverse_features
from sae_explore.errors import ExploreError
from sae_explore.showcase import Pick, pick_documents
from sae_explore.types import FeatureCard, TextTrace

log = logging.getLogger(__name__)

PREFERRED = ("gpt2", "demo")  # which bundle opens first


def cache_folder() -> Path:
    return bundle_files.default_cache()


def bundle_names() -> list[str]:
    """Bundles that are there now, the product's own model first."""
    names = bundle_files.bundle_names(cache_folder())
    return sorted(names, key=lambda n: (PREFERRED.index(n) if n in PREFERRED else len(PREFERRED), n))


def version_of(name: str) -> int:
    """Changes when the bundle is rebuilt."""
    try:
        return (cache_folder() / name / bundle_files.MANIFEST).stat().st_mtime_ns
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
    return _card(bundle.name, version_of(bundle.name), bundle.check_feature(feature), top, convention or bundle.lens_default)


@st.cache_resource(max_entries=4, show_spinner=False)
def _frame(name: str, version: int) -> pd.DataFrame:
    return feature_frame(_bundle(name, version))


def get_frame(bundle: Bundle) -> pd.DataFrame:
    """The table of all features (see `browse`), shared: not to be changed."""
    return _frame(bundle.name, version_of(bundle.name))


@st.cache_data(max_entries=64, show_spinner=False)
def _diverse(name: str, version: int, n: int) -> list[int]:
    bundle = _bundle(name, version)
    return diverse_features(bundle.W_dec, clarity(bundle.features, bundle.manifest["features"]["dense_above"]), n)


def get_diverse(bundle: Bundle, n: int) -> list[int]:
    """Clearly labelled features that differ from one another."""
    return _diverse(bundle.name, version_of(bundle.name), n)


@st.cache_data(max_entries=8, show_spinner=False)
def _picks(name: str, version: int) -> list[tuple]:
    return [tuple(pick) for pick in pick_documents(_bundle(name, version))]


def get_picks(bundle: Bundle) -> list[Pick]:
    """Stored texts worth showing first, the best one in front."""
    return [Pick(*pick) for pick in _picks(bundle.name, version_of(bundle.name))]


# ---- models ------------------------------------------------------------------------------------------------------------


class TracerJob:
    """Loads a bundle's model and SAE once, in a thread, for all sessions."""

    def __init__(self, name: str, version: int):
        self._bundle = _bundle(name, version)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.text, self.share = "waiting to start", None  # what is being done, and how much of it
        self.tracer = None
        self.error: str | None = None

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin, or begin again after a failure; does nothing while it runs or once it is done."""
        with self._lock:
            if self.tracer is None and not self.running:
                self.error = None
                self._thread = threading.Thread(target=self._run, name=f"load {self._bundle.name}", daemon=True)
                self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait a little; whether it has ended."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.running

    def _run(self) -> None:
        try:
            self.text = "loading PyTorch"
            from sae_explore.tracer import Tracer

            self.tracer = Tracer.load(self._bundle, report=self._report, load=_shared_model)
        except ExploreError as error:
            self.error = str(error)
        except Exception as error:  # a thread's last resort: the page shows a sentence, the log the traceback
            log.exception("loading the model of %s failed", self._bundle.name)
            self.error = f"the model could not be loaded ({type(error).__name__}); the server's log says more"

    def _report(self, text: str, share: float | None) -> None:
        self.text, self.share = text, share


_model_lock = threading.Lock()


@st.cache_resource(max_entries=2, show_spinner=False)
def _model(folder: Path, hook: str, name: str, revision: str):
    from sae_explore.model import load_model
    from sae_explore.types import HookPoint

    return load_model(folder, hook=HookPoint.parse(hook), name=name, revision=revision)


def _shared_model(folder: Path, *, hook, name: str, revision: str):
    """One loaded model for all bundles and sessions."""
    with _model_lock:
        return _model(folder, hook.name, name, revision)


@st.cache_resource(max_entries=4, show_spinner=False)
def _job(name: str, version: int) -> TracerJob:
    return TracerJob(name, version)


def tracer_job(bundle: Bundle) -> TracerJob:
    """The job that loads this bundle's model; `start()` it to have own texts read."""
    return _job(bundle.name, version_of(bundle.name))


def warm(bundle: Bundle) -> None:
    """Load the model in the background if it is on this machine already."""
    from sae_explore.model_sources import is_local

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
    return _job(name, version).tracer.trace(text)


def get_trace(bundle: Bundle, text: str) -> TextTrace:
    """An own text through the loaded model (the job must be done); InputError for a text that cannot be read."""
    return _trace(bundle.name, version_of(bundle.name), text)


@st.cache_data(max_entries=64, show_spinner=False)
def _document_trace(name: str, version: int, document: int) -> TextTrace:
    return _bundle(name, version).document_trace(document)


def get_document_trace(bundle: Bundle, document: int) -> TextTrace:
    """A stored document, as if its text had been pasted; needs no model."""
    return _document_trace(bundle.name, version_of(bundle.name), document)
