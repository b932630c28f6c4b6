"""Where a causal language model keeps its parts: found by structure, then checked by running the model on a few tokens.

What the explorer relies on, and checks when a model is loaded:
    blocks       the outermost list with as many modules as the configuration says; each is run once, in order
    residual     what a block puts out is what the next one reads: one tensor (batch, tokens, d_model)
    causal       a token's residual does not depend on later tokens, so that rows may be padded on the right
    final norm   reads the last block's output, gives the base model's answer, and is a LayerNorm or an RMSNorm
    unembedding  logits rise with norm(x) @ W_U (+ b): scales and soft caps after it change no order
A model that fails one of these is refused with that reason.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import nn

from sae_explore.errors import ModelError

_PROBE_TOKENS, _CHANGED = 10, 4
_PROBE_LOGITS = 16  # vocabulary rows that the unembedding is checked on: the whole matrix would be read into memory
_TOLERANCE = 1e-3  # of the largest entry


class Norm(NamedTuple):
    """A final norm as the logit lens reads it."""

    gain: torch.Tensor  # (d_model,)
    centred: bool  # LayerNorm (subtracts the mean) or RMSNorm


class StandIn(nn.Module):
    """Stands in a module's place; what a model reads off its modules (a block's kind of attention) comes from the module itself."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


def blocks_path(model: nn.Module, n_layers: int | None = None) -> str:
    """Path of the list of blocks, seen from the model: of `n_layers` modules, or the longest one. ModelError if there is none."""
    lists = {path: found for path, found in _outer_lists(model) if n_layers is None or len(found) == n_layers}
    if not lists:
        raise ModelError(f"{type(model).__name__} is not understood: it has no list of {n_layers or 'its'} blocks, one after the other")
    return max(lists, key=lambda path: (len(lists[path]), sum(p.numel() for p in lists[path].parameters())))


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The list of transformer blocks of a causal LM or its base model."""
    return model.get_submodule(blocks_path(model))


def _outer_lists(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.ModuleList]]:
    """Lists of modules that lie in no other list, with their paths."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield path + name, child
        else:
            yield from _outer_lists(child, f"{path}{name}.")


def path_of(model: nn.Module, module: nn.Module) -> str:
    return next(path for path, found in model.named_modules() if found is module)


def with_modules(module: nn.Module, changes: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of the module object with other modules at the given paths, which shares everything else with it."""
    view = copy.copy(module)
    view._modules = dict(module._modules)
    for name in {path.split(".")[0] for path in changes}:
        inside = {path.partition(".")[2]: new for path, new in changes.items() if path.split(".")[0] == name}
        view._modules[name] = inside[""] if "" in inside else with_modules(module._modules[name], inside)
    return view


def refuse_by_config(config, name: str) -> None:
    """Kinds of model that the configuration alone rules out."""
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder model ({config.model_type}); only decoder-only language models can be explored")
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{name} has quantised weights; load the original model instead, its weights are converted to fp32")


def refuse_by_class(skeleton: nn.Module, config, name: str) -> None:
    """Recurrent models: their blocks carry a state that is no part of the residual stream."""
    if getattr(skeleton, "_is_stateful", False) and "full_attention" not in (getattr(config, "layer_types", None) or ()):
        raise ModelError(
            f"{name} ({config.model_type}) hands a recurrent state from token to token; only models with attention can be explored"
        )


# ---- checks on the loaded model ------------------------------------------------------------------------------------------


@torch.inference_mode()
def checked_norm(model: nn.Module, path: str, name: str) -> tuple[str, Norm]:
    """Run a loaded model and check all that the module's docstring says; the path of its final norm and what it does.

    `path` leads to its blocks. ModelError in one sentence that says what is not as expected.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.weight.ndim != 2:
        raise ModelError(f"{name}: no unembedding matrix was found")
    vocabulary, d_model = head.weight.shape
    ids = (1 + 7919 * torch.arange(_PROBE_TOKENS)[None]) % min(vocabulary, model.get_input_embeddings().weight.shape[0])
    blocks = model.get_submodule(path)
    parent = model.get_submodule(path.rpartition(".")[0])
    norms = {n: m for n, m in parent.named_children() if _looks_like_a_norm(m)}
    seen, out = _watch(model, ids, [*blocks, *norms.values()], name)
    stream = _checked_stream(seen, blocks, d_model, name)
    chosen = _final_norm(seen, norms, stream, out, name)
    changed = ids.clone()
    changed[:, -_CHANGED:] = torch.arange(_CHANGED)
    _, other = _watch(model, changed, [], name)
    kept = slice(0, _PROBE_TOKENS - _CHANGED)
    if not _close(other[:, kept], out[:, kept]):
        raise ModelError(f"{name} is not understood: its tokens see later tokens, so it is no causal language model")
    norm = norms[chosen]
    _check_unembedding(model, head, norm(seen[norm][0]), ids, name)
    return path_of(model, norm), _measured_norm(norm, d_model, name)


def _looks_like_a_norm(module: nn.Module) -> bool:
    is_named = isinstance(module, nn.LayerNorm | nn.RMSNorm) or "norm" in type(module).__name__.lower()
    return is_named and all(p.ndim <= 1 for p in module.parameters())


def _watch(model: nn.Module, ids: torch.Tensor, modules: list[nn.Module], name: str):
    """({module: (what it read, what it answered, when)}, the base model's answer). The model is not shared yet: hooks are safe."""
    seen: dict[nn.Module, tuple] = {}

    def look(module, args, kwargs, answer) -> None:
        read = args[0] if args else kwargs.get("hidden_states")
        answer = answer[0] if isinstance(answer, tuple | list) else answer
        if module in seen or not (isinstance(read, torch.Tensor) and isinstance(answer, torch.Tensor)):
            raise ModelError(f"{name} is not understood: {type(module).__name__} is not run once with one tensor")
        seen[module] = (read.clone(), answer.clone(), len(seen))

    handles = [module.register_forward_hook(look, with_kwargs=True) for module in modules]
    try:
        out = model.base_model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
    except ModelError:
        raise
    except Exception as error:  # whatever a model's own code raises
        raise ModelError(f"{name} cannot be run up to the hook: {type(error).__name__}: {str(error)[:200]}") from error
    finally:
        for handle in handles:
            handle.remove()
    return seen, out


def _checked_stream(seen: dict, blocks: nn.ModuleList, d_model: int, name: str) -> torch.Tensor | None:
    """The last block's output, after a check that the blocks hand on one residual stream; None without blocks."""
    before = None
    for i, block in enumerate(blocks):
        if block not in seen:
            raise ModelError(f"{name} is not understood: its block {i} is not run")
        read, answer, _ = seen[block]
        if answer.shape != (1, _PROBE_TOKENS, d_model):
            raise ModelError(
                f"{name} is not understood: block {i} answers with shape {tuple(answer.shape)}, not with one residual stream of width {d_model}"
            )
        if not torch.isfinite(answer).all():
            raise ModelError(f"{name}: the residual after block {i} holds values that are not finite; its weights are damaged")
        if before is not None and not torch.equal(read, before):
            raise ModelError(f"{name} is not understood: block {i} does not read what block {i - 1} put out")
        before = answer
    return before


def _final_norm(seen: dict, norms: dict[str, nn.Module], stream: torch.Tensor | None, out: torch.Tensor, name: str) -> str:
    """The norm that reads the end of the stream and gives the base model's answer."""
    for norm_name, norm in norms.items():
        if norm in seen:
            read, answer, _ = seen[norm]
            if torch.equal(answer, out) and (stream is None or torch.equal(read, stream)):
                return norm_name
    found = f"; found: {', '.join(norms)}" if norms else ""
    raise ModelError(f"{name} is not understood: no final norm between its last block and its unembedding{found}")


def _check_unembedding(model: nn.Module, head: nn.Linear, normed: torch.Tensor, ids: torch.Tensor, name: str) -> None:
    """Logits of a few vocabulary rows must rise with norm(x) @ W_U + b."""
    rows = torch.linspace(0, head.weight.shape[0] - 1, _PROBE_LOGITS).long()
    small = nn.Linear(head.weight.shape[1], len(rows), bias=head.bias is not None)
    small.weight.data = head.weight[rows].float()
    if head.bias is not None:
        small.bias.data = head.bias[rows].float()
    expected = small(normed)[0].flatten()
    logits = with_modules(model, {path_of(model, head): small})(input_ids=ids.to(model.device), use_cache=False).logits
    sorted_logits = logits[0].flatten()[expected.argsort()]
    fall = (sorted_logits.cummax(0).values - sorted_logits).max()  # how far the logits ever fall as the expected ones rise
    if not fall <= _TOLERANCE * logits.abs().max() or logits.amax() == logits.amin():
        raise ModelError(f"{name} is not understood: its logits are not its final norm times an unembedding matrix")


def _measured_norm(norm: nn.Module, d_model: int, name: str) -> Norm:
    """The gain of a final norm and whether it centres, from what it does to random rows.

    Measured, because families store it in different ways: Gemma's, Nemotron's and Qwen3-Next's weights are the gain less 1,
    Gemma 4's are not, OLMo has none, Cohere's norm centres without being an `nn.LayerNorm`.
    """
    rows = 1e3 * torch.randn(32, d_model, generator=torch.Generator().manual_seed(0))  # large: the norm's eps does not show
    bias = norm(torch.zeros(1, d_model))
    out, shifted = norm(rows) - bias, norm(rows + 1e3) - bias
    tolerance = _TOLERANCE * float(out.abs().max())
    centred = float((shifted - out).abs().max()) < tolerance
    unit = rows - rows.mean(-1, keepdim=True) if centred else rows
    unit = unit / unit.square().mean(-1, keepdim=True).sqrt()
    gain = (out * unit).sum(0) / unit.square().sum(0)
    if not float((unit * gain - out).abs().max()) <= tolerance:
        raise ModelError(f"{name}: its final norm, {type(norm).__name__}, is neither a LayerNorm nor an RMSNorm; the logit lens needs one")
    return Norm(gain.clone(), centred)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= _TOLERANCE * b.abs().max())
