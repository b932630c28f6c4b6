"""A Hugging Face causal language model up to a hook point, its tokenizer, and its unembedding.

The trick that serves every architecture: build the whole model without data, cut its list of blocks after the hook, load the
files into what is left, and put an identity in place of the final norm. `last_hidden_state` is then the residual stream at the
hook, the last block included (Hugging Face's own last hidden state is after the final norm). The configuration stays that of
the whole model, because some blocks depend on its depth (MiniCPM3 scales by it, Gemma 4 counts shared layers from its end).
Nothing is hooked, so a model is safe to share.

Precision: everything is computed in fp32. fp32 files are used where they lie, memory-mapped; see `stored_weights` for the others.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sae_explore.errors import InputError, ModelError
from sae_explore.memory import FilePages
from sae_explore.models import products
from sae_explore.models.model_structure import blocks_path, checked_norm, path_of, refuse_by_class, refuse_by_config
from sae_explore.models.stored_weights import expect_half, half_tensors, settle
from sae_explore.models.tokens import Vocabulary, tokenize, vocabulary_of
from sae_explore.models.windows import Window
from sae_explore.types import HookPoint, TokenizedText

log = logging.getLogger(__name__)

# While transformers loads a model it patches torch for the whole process: two at once leave tied weights untied for good.
_LOADING = threading.Lock()
# The place of a language model inside one that reads images, too, and of its unembedding.
_LANGUAGE_MODEL = {
    r"^(?:model\.)?language_model\.lm_head\.": "lm_head.",
    r"^(?:model\.)?language_model\.(?:model\.)?": "model.",
}


class Unembedding(NamedTuple):
    """What the logit lens needs: logits = norm(x) * gain (+ bias) @ W_U (+ b_U)."""

    W_U: torch.Tensor  # (vocab, d_model), as stored: memory-mapped, perhaps in half precision
    gain: torch.Tensor  # (d_model,) of the final norm
    centred_norm: bool  # LayerNorm (subtracts the mean) or RMSNorm


@dataclass(frozen=True)
class LanguageModel:
    """A causal LM cut off at a hook point. Shared between threads: holds no per-call state."""

    name: str
    revision: str
    hook: HookPoint
    base: torch.nn.Module
    tokenizer: object
    vocabulary: Vocabulary
    unembedding: Unembedding
    n_layers: int  # of the whole model
    d_model: int
    bos_id: int | None
    max_positions: int
    device: torch.device
    precision: str = "fp32"  # of the files, and how they are read, in words

    def tokenize(self, text: str) -> TokenizedText:
        return tokenize(self.tokenizer, self.vocabulary, text)

    @torch.inference_mode()
    def residual(self, ids: torch.Tensor, *, autocast: torch.dtype | None = None) -> torch.Tensor:
        """(batch, tokens) ids to (batch, tokens, d_model) fp32 residuals at the hook.

        Rows may be padded on the right: attention is causal, so what stands left of the padding never sees it.
        `autocast` computes the blocks' products in that dtype; the residual stream stays in fp32.
        """
        ids = ids.to(self.device)
        with _autocast(self.device, autocast):
            out = self.base(input_ids=ids, use_cache=False).last_hidden_state
        return out.float()

    def window_ids(self, windows: Sequence[Window], ids_of: Sequence[np.ndarray], *, bos: bool) -> torch.Tensor:
        """Pad the windows of a batch on the right: (batch, longest [+ 1]) int64, the BOS in front if wanted."""
        lead = int(bos)
        if bos and self.bos_id is None:
            raise ModelError(f"{self.name} has no BOS token, but the SAE wants one in front of each window")
        width = max(w.length for w in windows) + lead
        if width > self.max_positions:
            raise InputError(f"a context of {width} tokens is more than {self.name} can read, {self.max_positions}")
        out = np.zeros((len(windows), width), np.int64)
        for row, window in zip(out, windows, strict=True):
            if bos:
                row[0] = self.bos_id
            row[lead : lead + window.length] = ids_of[window.document][window.start : window.stop]
        return torch.from_numpy(out)

    def window_residuals(
        self, batch: Sequence[Window], ids_of: Sequence[np.ndarray], *, bos: bool, autocast: torch.dtype | None = None
    ) -> Iterator[tuple[Window, torch.Tensor]]:
        """Residuals of the tokens that each window answers for: (window, (stop - keep, d_model))."""
        lead = int(bos)
        residual = self.residual(self.window_ids(batch, ids_of, bos=bos), autocast=autocast)
        for row, window in zip(residual, batch, strict=True):
            yield window, row[lead + window.keep - window.start : lead + window.length]


def load_model(
    folder: Path,
    *,
    hook: HookPoint,
    name: str = "",
    revision: str = "",
    device: str = "cpu",
    weights: str = "auto",
) -> LanguageModel:
    """Load embeddings, blocks 0..L and the unembedding of a local Hugging Face folder, to be run in fp32.

    `weights`: what to do with half-precision files (`stored_weights.CHOICES`; no choice changes a result).
    Raises ModelError with a reason if the folder or the architecture is not understood, InputError if the layer is not there.
    """
    shown = name or str(folder)
    config, n_layers = read_config(folder)
    if hook.depth > n_layers or hook.block >= n_layers:
        raise InputError(f"{shown} has {n_layers} blocks (0 to {n_layers - 1}); there is no {hook.name}")

    def cut(model: torch.nn.Module, path: str) -> None:
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, model.get_submodule(path)[: hook.depth])

    with _quiet_transformers():
        model, path = _load_causal(folder, config, n_layers, shown, cut)
        products.use_in(model)
        precision = settle(model, model.get_submodule(path), weights, whole=False)
        norm_path, norm = checked_norm(model, path, shown)
    base = model.base_model
    unembedding = Unembedding(model.get_output_embeddings().weight.detach(), norm.gain, norm.centred)
    inside = norm_path.removeprefix(f"{path_of(model, base)}.")
    base.set_submodule(inside, torch.nn.Identity())
    base.eval().to(device)
    FilePages(unembedding.W_U).release()
    tokenizer = load_tokenizer(folder)
    return LanguageModel(
        name=shown,
        revision=revision,
        hook=hook,
        base=base,
        tokenizer=tokenizer,
        vocabulary=vocabulary_of(tokenizer, unembedding.W_U.shape[0]),
        unembedding=unembedding,
        n_layers=n_layers,
        d_model=unembedding.W_U.shape[1],
        bos_id=tokenizer.bos_token_id,
        max_positions=int(getattr(config, "max_position_embeddings", 1 << 20)),
        device=torch.device(device),
        precision=precision,
    )


def load_full_model(folder: Path, *, device: str = "cpu", weights: str = "auto") -> torch.nn.Module:
    """The whole causal LM, run in fp32, for losses, patching and steering. `weights` as for `load_model`."""
    config, n_layers = read_config(folder)
    with _quiet_transformers():
        model, path = _load_causal(folder, config, n_layers, str(folder), lambda _model, _path: None)
        products.use_in(model)
        settle(model, model.get_submodule(path), weights, whole=True)
    return model.eval().to(device)


def read_config(folder: Path):
    """The model's configuration and its number of blocks."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no model folder: it holds no config.json")
    try:
        with _quiet_transformers():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}/config.json is not understood: {_first_line(error)}") from error
    refuse_by_config(config, str(folder))
    config = config.get_text_config()  # of models that read images, too: the language model in them
    n_layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(n_layers, int):
        raise ModelError(f"{folder}/config.json does not say how many blocks the model has")
    return config, n_layers


def _load_causal(folder: Path, config, n_layers: int, name: str, cut: Callable[[torch.nn.Module, str], None]):
    """(the causal LM after `cut(model, path of its blocks)`, that path), its parameters as the files hold them.

    ModelError where a file is bad, or lacks weights: transformers would draw those at random.
    """
    from transformers import AutoModelForCausalLM

    with _LOADING:
        try:
            with torch.device("meta"):
                skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        except Exception as error:  # transformers raises its own kinds for what it does not know
            raise ModelError(f"{name} is no causal language model that is understood: {_first_line(error)}") from error
        refuse_by_class(skeleton, config, name)
        path, kind = blocks_path(skeleton, n_layers), type(skeleton)
        dtypes = {_renamed(tensor): dtype for tensor, dtype in half_tensors(folder).items()}

        def __init__(self, config, *args, **options) -> None:
            kind.__init__(self, config, *args, **options)
            cut(self, path)
            expect_half(self, dtypes)

        # Of the same name, by which transformers knows how to read the files of old versions.
        small = type(kind.__name__, (kind,), {"__init__": __init__, "__module__": kind.__module__})
        try:
            model, info = small.from_pretrained(
                folder, config=config, dtype=torch.float32, key_mapping=_LANGUAGE_MODEL, local_files_only=True, weights_only=True,
                output_loading_info=True,
            )  # fmt: skip
        except pickle.UnpicklingError as error:
            raise ModelError(
                f"the weights in {folder} hold other objects than tensors, of which none is made here; take the model's safetensors files"
            ) from error
        except Exception as error:  # transformers, safetensors and torch each raise their own kinds for a bad file
            raise ModelError(f"the model in {folder} could not be loaded: {_first_line(error)}") from error
    model.__class__ = kind
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"the files in {folder} lack {len(missing)} of the model's weights ({missing[0]}, ...); download the model again")
    return model, path


def _renamed(tensor: str) -> str:
    """What transformers calls a tensor of a file."""
    for pattern, name in (_LANGUAGE_MODEL | {r"^embed_out\.": "lm_head."}).items():  # GPT-NeoX's unembedding
        tensor = re.sub(pattern, name, tensor)
    return tensor


def load_tokenizer(folder: Path):
    from transformers import AutoTokenizer

    try:
        with _quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above
        raise ModelError(f"the tokenizer in {folder} could not be loaded: {_first_line(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"the tokenizer in {folder} has no fast version, which exact token texts need")
    return tokenizer


def _autocast(device: torch.device, dtype: torch.dtype | None):
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No report of the blocks that are left out on purpose, no second progress bar."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
