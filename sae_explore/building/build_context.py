"""What the stages of a build share: the request, the working folder, the model and SAE, and the texts as token ids."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sae_explore.building.build_request import BuildRequest
from sae_explore.building.build_work import Report, Work
from sae_explore.building.given_sae import read_given_sae
from sae_explore.bundles import bundle
from sae_explore.bundles.tracer import bundle_sae
from sae_explore.errors import InputError
from sae_explore.models.model import LanguageModel, load_model
from sae_explore.models.model_sources import ModelSource, resolve_model
from sae_explore.saes.sae import Sae
from sae_explore.texts.dataset import is_held_out
from sae_explore.types import HookPoint

TRAIN_DOCUMENTS = "train_documents.parquet"
_TOKENIZE = 512  # texts at once


class Context:
    """What the stages share: the request, the working folder, and the model and SAE, loaded when first needed."""

    def __init__(self, request: BuildRequest, cache: Path, work: Work, report: Report):
        self.request, self.cache, self.work, self._report = request, cache, work, report
        self.out = work.out
        self.device = _device(request.device)
        self.foreign = read_given_sae(request, work, lambda text, share: self.report("sae", text, share)) if request.sae else None
        spec = self.foreign.spec if self.foreign else None
        self.hook = HookPoint.parse(spec.hook if spec else request.hook)
        self.window = spec.context if spec else request.context

    def report(self, stage: str, text: str, share: float | None = None) -> None:
        self._report(stage, text, share)

    @cached_property
    def source(self) -> ModelSource:
        found = resolve_model(
            self.request.model,
            models=self.cache / "models",
            revision=self.request.revision,
            report=lambda text, share: self.report("model", text, share),
        )
        self.work.same(f"the model {self.request.model}", found.revision)
        return found

    @cached_property
    def model(self) -> LanguageModel:
        source = self.source
        self.report("model", f"loading {source.display}")
        model = load_model(source.folder, hook=self.hook, name=source.spec, revision=source.revision, device=self.device)
        if self.window > model.max_positions:
            raise InputError(f"a context of {self.window} tokens is more than the {model.max_positions} positions of {source.display}")
        return model

    @cached_property
    def bos(self) -> bool:
        """Whether windows start with a BOS: as a given SAE's config says, or as the model's tokenizer does; for SAEs trained here
        wherever the model has one."""
        has = self.model.bos_id is not None
        if self.foreign is None:
            return has
        stated = self.foreign.spec.prepend_bos
        if stated and not has:
            raise InputError(f"the SAE {self.request.sae} was trained with a BOS in front, but {self.source.display} has none")
        return stated if stated is not None else has and adds_bos(self.model)

    @cached_property
    def sae(self) -> Sae:
        """The SAE as the bundle's files hold it: what is shown is computed with the weights that are stored."""
        return bundle_sae(self.out / bundle.SAE_FOLDER, self.work.state["done"]["sae"]["spec"]).to(self.device)

    @cached_property
    def documents(self) -> pa.Table:
        return pq.read_table(self.out / bundle.DOCUMENTS_FILE)

    @cached_property
    def ids_of(self) -> list[np.ndarray]:
        """Token ids of the documents to explore."""
        return tokenized(self.model, self.documents["text"], lambda share: self.report("tokens", "reading the texts", share))

    @cached_property
    def evaluated(self) -> tuple[list[int], str, str]:
        """Documents on which the SAE is judged (none that it was trained on here), the name of the set, and a sentence about it."""
        texts = self.documents["text"].to_pylist()
        everything = list(range(len(texts)))
        if self.request.sae:
            return everything, "all", "all texts of this bundle; what the SAE was trained on is not known here"
        trained_on, _ = training_split(self.work.folder)
        seen = set(trained_on["text"].to_pylist())
        if seen.isdisjoint(texts):
            return everything, "all", "all texts of this bundle; none was trained on"
        held_out = [i for i, text in enumerate(texts) if is_held_out(text)]
        if held_out and seen.isdisjoint(texts[i] for i in held_out):
            return held_out, "held_out", "held-out texts, never trained on (sha256 of the text mod 50 = 0)"
        return everything, "all", "in-sample: too few texts to hold some out"


def adds_bos(model: LanguageModel) -> bool:
    """Whether the model's tokenizer puts its BOS in front of a text by itself: GPT-2's does not, Llama's does."""
    return model.tokenizer("a", verbose=False)["input_ids"][:1] == [model.bos_id]


def _device(requested: str) -> str:
    if requested == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if requested != "cpu" and int(requested.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {requested}: PyTorch finds {torch.cuda.device_count()} GPUs here; use auto or cpu")
    return requested


def training_split(folder: Path) -> tuple[pa.Table, pa.Table]:
    """(documents to train on, documents held out); all are trained on where there would be none."""
    table = pq.read_table(folder / TRAIN_DOCUMENTS)
    held = np.asarray([is_held_out(text.as_py()) for text in table["text"]], bool)
    if held.all():
        held[:] = False
    return table.filter(pa.array(~held)), table.filter(pa.array(held))


def tokenized(model: LanguageModel, texts, report, *, enough: int | None = None) -> list[np.ndarray]:
    """Token ids of many texts, without special tokens; of the first ones only, once there are `enough` tokens."""
    found: list[np.ndarray] = []
    total = 0
    for a in range(0, len(texts), _TOKENIZE):
        chunk = [t.as_py() if isinstance(t, pa.Scalar) else t for t in texts[a : a + _TOKENIZE]]
        encoded = model.tokenizer(chunk, add_special_tokens=False, verbose=False)["input_ids"]
        found.extend(np.asarray(ids, np.int32) for ids in encoded)
        total += sum(map(len, encoded))
        report(max((a + len(chunk)) / len(texts), total / enough if enough else 0))
        if enough and total >= enough:
            break
    return found
