"""Training a TopK sparse autoencoder (Gao et al. 2024, arXiv:2406.04093) on residual activations.

    z = ReLU(TopK((x - b_dec) W_enc + b_enc)),   x_hat = z W_dec + b_dec
    loss = |x - x_hat|^2 / Var(x) + 1/32 * |e - e_hat|^2 / Var(e),   e = x - x_hat, e_hat from the top k_aux dead latents (AuxK)

Decoder rows keep unit norm: the gradient's component along each row is removed, and rows are renormalised after the step.
The data are scaled to a mean norm of sqrt(d_in) while training; the scale is folded out exactly at the end, so the SAE
works on raw residuals. Gradients are sparse (`sparse_grad`); all else is plain Adam with warm-up and linear decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from sae_explore.errors import InputError
from sae_explore.models.products import linear
from sae_explore.saes.sae import Sae, topk_rows
from sae_explore.saes.sparse_grad import decode_rows, dense_gradients, latent_sums, row_products, topk_gradients
from sae_explore.types import SaeSpec

AUX_COEFFICIENT = 1 / 32
_SAMPLE = 16_384  # rows from which scale, variance, centre and the encoder's scale are estimated
_ENCODED_ROWS, _ENCODED_ELEMENTS = (256, 512), 1 << 23  # rows encoded at once: fewer are slower; pre-activations of 32 MB in fp32
_AUX_DENSE = 4  # dense products where a token takes every 4th of the dead latents or more: twice as fast with 200 dead, slower with 2,500
_AUX_ROWS = 1_024  # rows of a batch on which AuxK is computed: an unbiased estimate at bounded cost


@dataclass(frozen=True)
class TrainConfig:
    """What decides the result. Zero means: chosen from the data, as `resolved` says."""

    latents: int = 2_048
    k: int = 32
    epochs: int = 15
    lr: float = 0.0  # 2e-4 / sqrt(latents / 2^14)
    batch_tokens: int = 0  # so that a small corpus still gets 2,000 steps, between 512 and 4,096
    dead_after: int = 0  # tokens without firing after which a latent counts as dead: 5 % of all tokens seen, at most 10 M
    seed: int = 0

    def resolved(self, tokens: int, d_in: int) -> TrainConfig:
        """The same with every choice made for this many tokens an epoch."""
        if self.latents < 1 or self.k < 1 or self.epochs < 1:
            raise InputError(f"latents, k and epochs must be at least 1; got {self.latents}, {self.k} and {self.epochs}")
        if self.k > self.latents:
            raise InputError(f"k = {self.k} is more than the number of latents, {self.latents}")
        if not (0 <= self.lr < 1 and self.batch_tokens >= 0 and self.dead_after >= 0):
            raise InputError(
                f"lr must lie between 0 and 1, batch_tokens and dead_after must not be negative (0: chosen from the data); "
                f"got {self.lr}, {self.batch_tokens} and {self.dead_after}"
            )
        if tokens < 256:
            raise InputError(f"{tokens} tokens are too few to train on; give at least 256, better 50,000")
        total = tokens * self.epochs
        batch = self.batch_tokens or min(4_096, max(512, 2 ** round(math.log2(max(1, total / 2_000)))))
        batch = min(batch, tokens)
        lr = self.lr or 2e-4 / math.sqrt(self.latents / 2**14)
        dead_after = self.dead_after or int(min(10_000_000, max(4 * batch, 0.05 * total)))
        return TrainConfig(self.latents, self.k, self.epochs, lr, batch, dead_after, self.seed)


class Activations(Protocol):
    """Rows to train on; see `activation_shards`."""

    tokens: int
    d_in: int

    def sample(self, rows: int, seed: int) -> torch.Tensor: ...

    def batches(self, epoch: int, batch: int, seed: int, skip: int = 0): ...


class Progress(NamedTuple):
    """What is reported while training; figures are running means on training batches."""

    step: int
    steps: int
    epoch: int
    loss: float
    explained_variance: float
    l0: float
    dead: int


class TrainState:
    """Parameters, Adam moments and firing counters: what a checkpoint holds."""

    names = ("W_encT", "b_enc", "W_dec", "b_dec")

    def __init__(self, params: dict[str, torch.Tensor], config: TrainConfig, scale: float, variance: float):
        self.params = {name: torch.nn.Parameter(params[name], requires_grad=False) for name in self.names}
        self.optimizer = torch.optim.Adam(self.params.values(), lr=config.lr, eps=6.25e-10, fused=True)
        self.silent = torch.zeros(config.latents, dtype=torch.int64, device=params["b_enc"].device)
        self.scale, self.variance, self.step = scale, variance, 0
        self._rounded: torch.Tensor | None = None

    def encoder(self, dtype: torch.dtype | None) -> tuple[torch.Tensor, torch.Tensor]:
        """W_encT and b_enc, rounded to `dtype` if one is given; valid until the next call."""
        W, b = self.params["W_encT"].data, self.params["b_enc"].data
        if dtype is None:
            return W, b
        if self._rounded is None or self._rounded.dtype != dtype:
            self._rounded = torch.empty_like(W, dtype=dtype)  # kept: at 24,576 latents new pages would take 16 ms of each step
        return self._rounded.copy_(W), b.to(dtype)

    def save(self, path: Path, config: TrainConfig) -> None:
        state = {
            "config": asdict(config),
            "params": {k: v.data for k, v in self.params.items()},
            "adam": self.optimizer.state_dict(),
            "silent": self.silent,
            "scale": self.scale,
            "variance": self.variance,
            "step": self.step,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, config: TrainConfig, device: torch.device) -> TrainState | None:
        """The state of an interrupted run with the same configuration, or None."""
        if not path.is_file():
            return None
        state = torch.load(path, weights_only=True, map_location=device)
        if state["config"] != asdict(config):
            return None
        self = cls(state["params"], config, state["scale"], state["variance"])
        self.optimizer.load_state_dict(state["adam"])
        self.silent, self.step = state["silent"], state["step"]
        return self


def train_topk(
    data: Activations,
    config: TrainConfig,
    *,
    spec: SaeSpec,
    device: str = "cpu",
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
    encoder_dtype: torch.dtype | None = None,
    report: Callable[[Progress], None] | None = None,
) -> tuple[Sae, TrainConfig]:
    """Train on `data` and return the SAE in the units of the raw residuals, and the configuration that was used.

    `report` is called every 20 steps; raising from it cancels. With `checkpoint` an interrupted run goes on
    where it was and ends with the same weights. `encoder_dtype`: see `train_step`.
    """
    config = config.resolved(data.tokens, data.d_in)
    dev = torch.device(device)
    state = TrainState.load(checkpoint, config, dev) if checkpoint else None
    state = state or initial_state(data, config, dev)
    per_epoch = data.tokens // config.batch_tokens
    steps = per_epoch * config.epochs
    running = _Running()
    while state.step < steps:
        epoch, skip = divmod(state.step, per_epoch)
        for x in data.batches(epoch, config.batch_tokens, config.seed, skip):
            x = x.to(dev, torch.float32) * state.scale
            _set_lr(state, config, steps)
            running.add(*train_step(state, config, x, encoder_dtype=encoder_dtype))
            state.step += 1
            if report and (state.step % 20 == 0 or state.step == steps):
                report(running.progress(state, config, steps, epoch))
            if checkpoint and state.step % checkpoint_every == 0 and state.step < steps:
                state.save(checkpoint, config)
    return _finished(state, config, spec), config


def initial_state(data: Activations, config: TrainConfig, device: torch.device) -> TrainState:
    """Where training starts: tied unit rows, the bias at the data's geometric median, scale and variance from a sample."""
    generator = torch.Generator().manual_seed(config.seed)
    sample = data.sample(_SAMPLE, config.seed).to(device, torch.float32)
    scale = math.sqrt(data.d_in) / float(sample.norm(dim=-1).mean())
    sample = sample * scale
    b_dec = geometric_median(sample)
    variance = float((sample - sample.mean(0)).square().sum(-1).mean())
    W_dec = torch.randn(config.latents, data.d_in, generator=generator).to(device)
    W_dec /= W_dec.norm(dim=-1, keepdim=True)
    # Tied at the start; one factor on the encoder makes the reconstruction the best multiple of itself on the sample.
    part = sample[:2048] - b_dec
    values, features = topk_rows(part @ W_dec.T, config.k)
    x_hat = decode_rows(features, values.relu(), W_dec)
    alpha = float((x_hat * part).sum() / x_hat.square().sum().clamp_min(1e-12))
    params = {
        "W_encT": W_dec * max(alpha, 1e-3),
        "b_enc": torch.zeros(config.latents, device=device),
        "W_dec": W_dec,
        "b_dec": b_dec,
    }
    return TrainState(params, config, scale, variance)


@torch.no_grad()
def train_step(
    state: TrainState, config: TrainConfig, x: torch.Tensor, *, encoder_dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, ...]:
    """One optimizer step on x (batch, d_in). Returns loss, squared error and variance of the batch, active pairs.

    With `encoder_dtype` (bf16 where the processor multiplies it faster) the product that chooses a token's k latents is computed
    in it; the chosen latents' activations, and all else, stay in fp32.
    """
    p = {name: param.data for name, param in state.params.items()}
    n, scale = len(x), 2.0 / (len(x) * state.variance)
    x_c = x - p["b_dec"]
    values, features = _strongest(x_c, *state.encoder(encoder_dtype), config.k)
    if encoder_dtype is not None:
        values = row_products(features, p["W_encT"], x_c) + p["b_enc"][features]
    values.relu_()
    error = decode_rows(features, values, p["W_dec"]).sub_(x_c)
    last = state.params["W_encT"].grad, state.params["W_dec"].grad
    grads = topk_gradients(x_c, features, values, error, p["W_dec"], scale=scale, out=last)

    state.silent += n
    state.silent[latent_sums(features, (values > 0).to(values.dtype), config.latents) > 0] = 0
    squared = _sum_squares(error)
    loss = squared / (n * state.variance)
    dead = torch.nonzero(state.silent > config.dead_after)[:, 0]
    if len(dead):
        aux_loss, aux = _aux_gradients(x_c, error, dead, config, p)
        loss = loss + AUX_COEFFICIENT * aux_loss
        for all_latents, of_dead in zip(grads, aux, strict=True):
            all_latents.index_add_(0, dead, of_dead)
    # b_dec is added to the reconstruction and subtracted from the encoder's input
    d_b_dec = error.sum(0) * scale - torch.mv(p["W_encT"].T, grads.b_enc)
    grads.W_dec.addcmul_(grads.along[:, None], p["W_dec"], value=-1)

    for param, grad in zip(state.params.values(), (grads.W_encT, grads.b_enc, grads.W_dec, d_b_dec), strict=True):
        param.grad = grad
    state.optimizer.step()
    p["W_dec"] /= p["W_dec"].norm(dim=-1, keepdim=True).clamp_min(1e-12)
    variance = _sum_squares(x_c) - x_c.sum(0).square().sum() / n
    return loss, squared, variance, (values > 0).sum()


def _strongest(x_c: torch.Tensor, W: torch.Tensor, b: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest entries of each row of x_c W^T + b, computed in W's dtype, in no order: values and latents, both (n, k)."""
    # A few hundred rows at a time: their pre-activations lie in memory that the allocator takes again, and in the cache.
    rows = len(x_c) if x_c.is_cuda else max(_ENCODED_ROWS[0], min(_ENCODED_ROWS[1], _ENCODED_ELEMENTS // len(W)))
    parts = [topk_rows(linear(part.to(W.dtype), W, b), k, ordered=False) for part in x_c.split(rows)]
    values, features = (torch.cat(part) for part in zip(*parts, strict=True))
    return values, features


def _sum_squares(x: torch.Tensor) -> torch.Tensor:
    """Sum of the squares of all entries, in one pass and without a copy of them."""
    return x.norm(dim=-1).square().sum()


def _aux_gradients(x_c: torch.Tensor, error: torch.Tensor, dead: torch.Tensor, config: TrainConfig, p: dict[str, torch.Tensor]):
    """AuxK on a part of the batch: dead latents model the error -e of the live ones, decoded without a bias.

    Gradients are for the dead latents only, (len(dead), d_in), already multiplied by the coefficient.
    """
    k_aux = min(x_c.shape[1] // 2, 512, len(dead))
    rows = max(1, min(len(x_c), _AUX_ROWS, max(64, len(x_c) * config.k // k_aux)))
    target, x_c, W_dead = -error[:rows], x_c[:rows], p["W_dec"][dead]
    # Computed again, for these rows and latents: keeping the pre-activations of the whole batch for them would take longer.
    pre = torch.addmm(p["b_enc"][dead], x_c, p["W_encT"][dead].T)
    values, at = topk_rows(pre, k_aux, ordered=False) if k_aux < len(dead) else (pre, None)
    values.relu_()
    dense = len(dead) <= _AUX_DENSE * k_aux
    if dense:
        z = values if at is None else torch.zeros_like(pre).scatter_(1, at, values)
    difference = (z @ W_dead if dense else decode_rows(at, values, W_dead)).sub_(target)
    norm = _sum_squares(target - target.mean(0)).clamp_min(1e-12)
    loss = _sum_squares(difference) / norm
    grad_out = difference.mul_(2.0 * AUX_COEFFICIENT / norm)
    return loss, dense_gradients(x_c, z, grad_out, W_dead) if dense else topk_gradients(x_c, at, values, grad_out, W_dead)


def _set_lr(state: TrainState, config: TrainConfig, steps: int) -> None:
    """Linear warm-up over 5 % of the steps (at most 1,000), linear decay over the last fifth."""
    warm, decay = min(1_000, max(1, steps // 20)), max(1, steps // 5)
    factor = min(1.0, (state.step + 1) / warm, max(0.0, (steps - state.step) / decay))
    state.optimizer.param_groups[0]["lr"] = config.lr * factor


def _finished(state: TrainState, config: TrainConfig, spec: SaeSpec) -> Sae:
    """Fold the data's scale out: (s x - b) W + b_e = s ((x - b/s) W + b_e/s); the decoder's directions stay unit."""
    p = {name: param.data.float().cpu() for name, param in state.params.items()}
    s = state.scale
    return Sae(spec, p["W_encT"].T.contiguous(), p["b_enc"] / s, p["W_dec"], p["b_dec"] / s).checked()


def geometric_median(x: torch.Tensor, *, iterations: int = 32) -> torch.Tensor:
    """Weiszfeld's iteration on rows (n, d)."""
    median = x.mean(0)
    for _ in range(iterations):
        weights = 1.0 / (x - median).norm(dim=-1, keepdim=True).clamp_min(1e-8)
        median = (x * weights).sum(0) / weights.sum()
    return median


class _Running:
    """Exponential means of the last hundred steps or so; read only when reported, so that a GPU is not waited for."""

    def __init__(self) -> None:
        self._values: tuple[torch.Tensor, ...] | None = None

    def add(self, *values: torch.Tensor) -> None:
        if self._values is None:
            self._values = tuple(v.double() for v in values)
        else:
            self._values = tuple(0.98 * old + 0.02 * new for old, new in zip(self._values, values, strict=True))

    def progress(self, state: TrainState, config: TrainConfig, steps: int, epoch: int) -> Progress:
        loss, error, variance, active = (float(v) for v in self._values)
        dead = int((state.silent > config.dead_after).sum())
        return Progress(state.step, steps, epoch, loss, 1 - error / max(variance, 1e-12), active / config.batch_tokens, dead)
