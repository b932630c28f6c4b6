"""The reference for everything done to features inside a model: torch's own hooks on the whole model, and brute force."""

import numpy as np
import torch

from sae_explore.models.model_structure import blocks_of
from sae_explore.types import HookPoint
from sae_explore.whatif.interventions import Lab, Reading

TEXT = "The old map shows three rivers — and 🦜 a lake."


@torch.inference_mode()
def hooked(full, ids: torch.Tensor, hook: HookPoint, edit) -> torch.Tensor:
    """(texts, tokens, vocab) logits when a forward hook of torch, taken off again, changes the residual (texts, tokens, d)."""
    block = blocks_of(full)[hook.block]
    if hook.site == "pre":
        handle = block.register_forward_pre_hook(lambda _m, args, kwargs: ((edit(args[0]), *args[1:]), kwargs), with_kwargs=True)
    else:
        handle = block.register_forward_hook(lambda _m, _i, out: (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out))
    try:
        return full(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()


def hooked_logits(full, ids: torch.Tensor, hook: HookPoint, edit) -> torch.Tensor:
    """(tokens, vocab) of one text alone."""
    return hooked(full, ids, hook, edit)[0]


def dense(lab: Lab, reading: Reading) -> np.ndarray:
    """(n, d_sae) activations, by brute force."""
    x = reading.residual[reading.lead :]
    sae = lab.tracer.sae
    pre = sae.pre_activations(sae.prepare(x)[0])
    if sae.spec.architecture == "topk":
        best = pre.topk(sae.spec.k, dim=1)
        pre = torch.zeros_like(pre).scatter(1, best.indices, best.values)
    return pre.relu().numpy() * reading.counted[:, None]


def units(lab: Lab, reading: Reading) -> np.ndarray:
    """(n, 1) length in the residual of a unit in the SAE's space, from the definition."""
    x = reading.residual[reading.lead :].double().numpy()
    if lab.tracer.sae.spec.normalise == "layer_norm":
        return x.std(1, ddof=1, keepdims=True) + 1e-5
    if lab.tracer.sae.spec.normalise == "constant_norm":
        return np.linalg.norm(x, axis=1, keepdims=True) / x.shape[1] ** 0.5
    return np.ones((len(x), 1))


def strongest_features(lab: Lab, reading: Reading, n: int) -> list[int]:
    return np.argsort(-dense(lab, reading).sum(0))[:n].tolist()


def state_of(full) -> dict:
    """Everything that a call could leave on a shared model."""
    modules = {
        name: (id(m), len(m._forward_hooks), len(m._forward_pre_hooks), sorted(k for k in vars(m) if not k.startswith("__")))
        for name, m in full.named_modules()
    }
    return {"modules": modules, "weights": {n: (p.data_ptr(), float(p.double().sum()), p.grad) for n, p in full.named_parameters()}}
