"""Loads a bundle's model in the background: up to the hook point, or whole."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sae_explore.background import BackgroundJob
from sae_explore.bundles.bundle import Bundle
from sae_explore.errors import ExploreError, ModelError

log = logging.getLogger(__name__)
_STEP = 0.25  # seconds between two looks at a job that is waited for


class TracerJob(BackgroundJob):
    """Loads a bundle's model and SAE. `load` (see `Tracer.load`) is how bundles come to share a model."""

    def __init__(self, bundle: Bundle, *, load: Callable):
        super().__init__(f"load {bundle.name}")
        self._bundle, self._load_model = bundle, load
        self.tracer = None
        self.error: str | None = None

    def _wanted(self) -> bool:
        if self.tracer is not None:
            return False
        self.error = None
        return True

    def _run(self) -> None:
        try:
            self.text = "loading PyTorch"
            self.tracer = self._load()
        except ExploreError as error:
            self.error = str(error)
        except Exception as error:  # a thread's last resort: the page shows a sentence, the log the traceback
            log.exception("loading the model of %s failed", self._bundle.name)
            self.error = f"the model could not be loaded ({type(error).__name__}); the server's log says more"

    def _load(self):
        from sae_explore.bundles.tracer import Tracer

        return Tracer.load(self._bundle, report=self._report, load=self._load_model)


class LabJob(TracerJob):
    """Loads the blocks above the hook as well: what changing features needs. `tracer` is then a `Lab`, which uses that of `first`."""

    def __init__(self, bundle: Bundle, *, first: TracerJob, load: Callable):
        super().__init__(bundle, load=load)
        self._first = first

    def _load(self):
        from sae_explore.whatif.interventions import Lab

        self._first.start()
        while not self._first.wait(_STEP):
            self._report(self._first.text, self._first.share)
        if self._first.tracer is None:
            raise ModelError(self._first.error or "the work was interrupted")
        return Lab.load(self._bundle, self._first.tracer, report=self._report, load=self._load_model)
