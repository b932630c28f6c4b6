"""A Hugging Face causal language model up to a hook point, its tokenizer, and its unembedding.

The trick that serves every architecture: load the checkpoint with a configuration of only as many blocks as the hook needs
and an identity in place of the final norm. `last_hidden_state` is then the residual stream at the hook, the last block
included (Hugging Face's own last hidden state is after the final norm). Nothing is hooked, so a model is safe to share.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sae_explore.errors import InputError, ModelError
from sae_explore.tokens import Vocabulary, tokenize, vocabulary_of
from sae_explore.types import HookPoint, TokenizedText
from sae_explore.windows import Window

log = logging.getLogger(__name__)

# Where each kind of model keeps its blocks and final norm, seen from its base model. Found by structure, checked at load.
_NORM_NAMES = ("ln_f", "norm", "final_layer_norm", "final_layernorm")
_BLOCK_NAMES = ("h", "layers")
# While transformers loads a model it patches torch for the whole process: two at once leave tied weights untied for good.
_LOADING = threading.Lock()


class Unembedding(NamedTuple):
    """What the logit lens needs: logits = norm(x) * gain (+ bias) @ W_U (+ b_U)."""

    W_U: torch.Tensor  # (vocab, d_model), rows as stored
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
) -> LanguageModel:
    """Load embeddings and blocks 0..L of a local Hugging Face folder, in fp32, memory-mapped where the files are fp32.

    Raises ModelError with a reason if the folder or the architecture is not understood, InputError if the layer is not there.
    """
    from transformers import AutoModelForCausalLM

    config, n_layers = read_config(folder)
    if hook.depth > n_layers or hook.block >= n_layers:
        raise InputError(f"{name or folder} has {n_layers} blocks (0 to {n_layers - 1}); there is no {hook.name}")
    config.num_hidden_layers = hook.depth
    for per_layer in ("layer_types", "no_rope_layers", "attention_layers"):
        if isinstance(getattr(config, per_layer, None), list):
            setattr(config, per_layer, getattr(config, per_layer)[: hook.depth])
    with _quiet_transformers():
        model = load_weights(AutoModelForCausalLM, folder, config)
    base = model.base_model
    unembedding = _unembedding(model, base, name or str(folder))
    setattr(base, _find(base, _NORM_NAMES, "final norm"), torch.nn.Identity())
    blocks = getattr(base, _find(base, _BLOCK_NAMES, "blocks"))
    if len(blocks) != hook.depth:
        raise ModelError(f"{name or folder}: asked for {hook.depth} blocks and got {len(blocks)}; its structure is not understood")
    base.requires_grad_(False).eval().to(device)
    tokenizer = load_tokenizer(folder)
    return LanguageModel(
        name=name or str(folder),
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
    )


def load_full_model(folder: Path, *, device: str = "cpu") -> torch.nn.Module:
    """The whole causal LM in fp32, for losses, patching and steering."""
    from transformers import AutoModelForCausalLM

    config, _ = read_config(folder)
    with _quiet_transformers():
        model = load_weights(AutoModelForCausalLM, folder, config)
    return model.requires_grad_(False).eval().to(device)


def blocks_of(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The list of transformer blocks of a causal LM or its base model."""
    base = getattr(model, "base_model", model)
    return getattr(base, _find(base, _BLOCK_NAMES, "blocks"))


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
    n_layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(n_layers, int):
        raise ModelError(f"{folder}/config.json does not say how many blocks the model has")
    return config, n_layers


def load_weights(auto_class, folder: Path, config):
    """A model from local files in fp32. ModelError where a file is bad, or lacks weights: transformers would draw those at random."""
    try:
        with _LOADING:
            model, info = auto_class.from_pretrained(
                folder, config=config, dtype=torch.float32, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
    except Exception as error:  # transformers, safetensors and torch each raise their own kinds for a bad file
        raise ModelError(f"the model in {folder} could not be loaded: {_first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"the files in {folder} lack {len(missing)} of the model's weights ({missing[0]}, ...); download the model again")
    return model


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


def _unembedding(model: torch.nn.Module, base: torch.nn.Module, name: str) -> Unembedding:
    head = model.get_output_embeddings()
    if head is None or head.weight.ndim != 2:
        raise ModelError(f"{name}: no unembedding matrix was found")
    norm = getattr(base, _find(base, _NORM_NAMES, "final norm"))
    return Unembedding(head.weight.detach(), *_measured_norm(norm, head.weight.shape[1], name))


@torch.inference_mode()
def _measured_norm(norm: torch.nn.Module, d_model: int, name: str) -> tuple[torch.Tensor, bool]:
    """(gain, whether it centres) of a final norm, from what it does to random rows.

    Measured, because families store it in different ways: Gemma's, Nemotron's and Qwen3-Next's weights are the gain less 1,
    Gemma 4's are not, OLMo has none, Cohere's norm centres without being an `nn.LayerNorm`.
    """
    rows = 1e3 * torch.randn(32, d_model, generator=torch.Generator().manual_seed(0))  # large: the norm's eps does not show
    out = norm(rows) - norm(torch.zeros(1, d_model))  # the norm of zeros is its bias
    tolerance = 1e-3 * float(out.abs().max())
    shifted = norm(rows + 1e3) - norm(torch.zeros(1, d_model))
    centred = float((shifted - out).abs().max()) < tolerance
    unit = rows - rows.mean(-1, keepdim=True) if centred else rows
    unit = unit / unit.square().mean(-1, keepdim=True).sqrt()
    gain = (out * unit).sum(0) / unit.square().sum(0)
    if float((unit * gain - out).abs().max()) > tolerance:
        raise ModelError(f"{name}: its final norm, {type(norm).__name__}, is neither a LayerNorm nor an RMSNorm; the logit lens needs one")
    return gain.clone(), centred


def _find(base: torch.nn.Module, names: Sequence[str], what: str) -> str:
    for name in names:
        if hasattr(base, name):
            return name
    raise ModelError(
        f"{type(base).__name__} is not understood: no {what} under the names {', '.join(names)}; "
        "models of GPT-2's, Llama's, GPT-NeoX's, Gemma's and Qwen's kind are"
    )


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
