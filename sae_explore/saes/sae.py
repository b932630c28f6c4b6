"""Sparse autoencoders: encode to a sparse representation, decode from it, and the metrics of a batch.

Families and equations (x' is the input after `SaeSpec`'s centring and normalisation, minus b_dec where the spec says so):

    topk       z = ReLU(TopK(x' W_enc + b_enc))                      Gao et al. 2024, arXiv:2406.04093
    standard   z = ReLU(x' W_enc + b_enc)                            Bricken et al. 2023
    jumprelu   z = ReLU(pre) * (pre > threshold), pre = x' W_enc + b_enc   Rajamanoharan et al. 2024, arXiv:2407.14435
    batchtopk  at inference a jumprelu with the learned threshold    Bussmann et al. 2024, arXiv:2412.06410
    gated      z = (x' W_enc + b_gate > 0) * ReLU(exp(r_mag) * (x' W_enc) + b_mag)   arXiv:2404.16014

An `Sae` is shared by all threads: encode and decode keep no state on it; what decode needs, encode returns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from sae_explore.errors import SaeError
from sae_explore.models.products import linear
from sae_explore.types import SaeSpec

ARCHITECTURES = ("topk", "standard", "jumprelu", "batchtopk", "gated")
NORMALISATIONS = ("none", "layer_norm", "constant_norm")
_LAYER_NORM_EPS = 1e-5  # outside the root, as in openai/sparse_autoencoder and SAELens
_CHUNK_ELEMENTS = 1 << 24  # pre-activations held at once: 64 MB in fp32
_LARGEST_GROUP = 16  # of `topk_rows`
_FINITE_AT_ONCE = 1 << 20  # values checked at once: checking a whole matrix would take as much memory again


class SparseActs(NamedTuple):
    """CSR activations: token i holds features[offsets[i]:offsets[i+1]], strongest first, all values > 0."""

    offsets: torch.Tensor  # (n + 1,) int64
    features: torch.Tensor  # (nnz,) int64
    values: torch.Tensor  # (nnz,) float


class InputInfo(NamedTuple):
    """What decode needs to return to the units of the input, a row a token: x_hat = (x_hat' * scale) + shift."""

    shift: torch.Tensor | None  # (n, 1)
    scale: torch.Tensor | None  # (n, 1)


@dataclass(frozen=True)
class Sae:
    """Weights of an SAE in SAELens's orientation. Use `checked` to build one from foreign weights."""

    spec: SaeSpec
    W_enc: torch.Tensor  # (d_in, d_sae)
    b_enc: torch.Tensor  # (d_sae,); b_gate of a gated SAE
    W_dec: torch.Tensor  # (d_sae, d_in); may stay in half precision where it is only decoded with
    b_dec: torch.Tensor  # (d_in,)
    threshold: torch.Tensor | None = None  # (d_sae,) of jumprelu and batchtopk
    r_mag: torch.Tensor | None = None  # (d_sae,) of gated
    b_mag: torch.Tensor | None = None  # (d_sae,) of gated

    def checked(self) -> Sae:
        """This SAE, or SaeError naming the tensor whose shape or values are not what the spec says."""
        spec, d, m = self.spec, self.spec.d_in, self.spec.d_sae
        if spec.architecture not in ARCHITECTURES:
            raise SaeError(f"SAE architecture {spec.architecture!r} is not supported; known: {', '.join(ARCHITECTURES)}")
        if spec.normalise not in NORMALISATIONS:
            raise SaeError(f"input normalisation {spec.normalise!r} is not supported; known: {', '.join(NORMALISATIONS)}")
        if spec.architecture == "topk" and not (spec.k and 1 <= spec.k <= m):
            raise SaeError(f"k is {spec.k}, but must be between 1 and the number of latents, {m}")
        shapes = {"W_enc": (d, m), "b_enc": (m,), "W_dec": (m, d), "b_dec": (d,)}
        if spec.architecture in ("jumprelu", "batchtopk"):
            shapes["threshold"] = (m,)
        if spec.architecture == "gated":
            shapes |= {"r_mag": (m,), "b_mag": (m,)}
        for name, shape in shapes.items():
            tensor = getattr(self, name)
            if tensor is None:
                raise SaeError(f"the SAE has no {name}, which a {spec.architecture} SAE needs")
            if tuple(tensor.shape) != shape:
                raise SaeError(f"{name} has shape {tuple(tensor.shape)}, expected {shape} (d_in {d}, d_sae {m})")
            if not all(torch.isfinite(part).all() for part in tensor.reshape(-1).split(_FINITE_AT_ONCE)):
                raise SaeError(f"{name} holds values that are not finite")
        return self

    def to(self, device: str | torch.device, dtype: torch.dtype = torch.float32) -> Sae:
        tensors = {
            name: tensor.to(device=device, dtype=dtype)
            for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "r_mag", "b_mag")
            if (tensor := getattr(self, name)) is not None
        }
        return replace(self, **tensors)

    # ---- encode ----------------------------------------------------------------------------------------------------

    def prepare(self, x: torch.Tensor) -> tuple[torch.Tensor, InputInfo]:
        """Centre and normalise: (n, d_in) -> (n, d_in), and what `decode` needs to undo the normalisation.

        Centring is not undone: the reconstruction is of the centred residual, as the SAE was trained.
        """
        x = x.to(self.W_enc.dtype)
        if self.spec.center_input:
            x = x - x.mean(-1, keepdim=True)
        if self.spec.normalise == "layer_norm":
            shift = x.mean(-1, keepdim=True)
            x = x - shift
            std = x.std(-1, keepdim=True)  # unbiased
            return x / (std + _LAYER_NORM_EPS), InputInfo(shift, std)
        if self.spec.normalise == "constant_norm":
            scale = x.norm(dim=-1, keepdim=True).clamp_min(1e-12) / self.spec.d_in**0.5
            return x / scale, InputInfo(None, scale)
        return x, InputInfo(None, None)

    def pre_activations(self, prepared: torch.Tensor) -> torch.Tensor:
        """Dense (n, d_sae) pre-activations of already prepared rows: for references and small n only."""
        centred = prepared - self.b_dec if self.spec.apply_b_dec_to_input else prepared
        return linear(centred, self.W_enc.T, self.b_enc)

    def encode(self, x: torch.Tensor) -> tuple[SparseActs, InputInfo]:
        """Residual rows (n, d_in) to sparse activations. Rows are worked on in chunks of bounded size."""
        prepared, info = self.prepare(x)
        rows = max(16, _CHUNK_ELEMENTS // self.spec.d_sae)
        parts = [self._select(self.pre_activations(chunk)) for chunk in prepared.split(rows)]
        counts = torch.cat([p[0] for p in parts])
        offsets = F.pad(counts.cumsum(0), (1, 0))
        return SparseActs(offsets, torch.cat([p[1] for p in parts]), torch.cat([p[2] for p in parts])), info

    def _select(self, pre: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(counts per row, features, values), strongest first within each row."""
        if self.spec.architecture == "topk":
            values, features = topk_rows(pre, self.spec.k)
            keep = values > 0
            return keep.sum(-1), features[keep], values[keep]
        if self.spec.architecture in ("jumprelu", "batchtopk"):
            acts = pre.relu() * (pre > self.threshold)
        elif self.spec.architecture == "gated":
            linear = pre - self.b_enc
            acts = (linear * self.r_mag.exp() + self.b_mag).relu() * (pre > 0)
        else:
            acts = pre.relu()
        keep = acts > 0
        counts = keep.sum(-1)
        if not len(counts) or int(counts.max()) == 0:
            return counts, pre.new_zeros(0, dtype=torch.int64), pre.new_zeros(0)
        # As many as the busiest row has, strongest first: the same shape of answer as TopK gives.
        values, features = topk_rows(acts, int(counts.max()))
        keep = values > 0
        return counts, features[keep], values[keep]

    # ---- decode ----------------------------------------------------------------------------------------------------

    def decode(self, acts: SparseActs, info: InputInfo) -> torch.Tensor:
        """Sparse activations to the reconstruction (n, d_in), in the units of the (centred) input."""
        if not len(acts.features):
            out = self.b_dec.expand(len(acts.offsets) - 1, -1).clone()
        else:
            features, W_dec = acts.features, self.W_dec
            if W_dec.dtype != acts.values.dtype:  # kept as stored, in half precision: the rows at hand are converted, exactly
                wanted, features = torch.unique(features, return_inverse=True)
                W_dec = W_dec[wanted].to(acts.values.dtype)
            out = F.embedding_bag(features, W_dec, acts.offsets[:-1], mode="sum", per_sample_weights=acts.values)
            out = out + self.b_dec
        if info.scale is not None:
            out = out * info.scale
        return out if info.shift is None else out + info.shift

    def target(self, x: torch.Tensor) -> torch.Tensor:
        """What the reconstruction is compared with: the input, centred if the SAE wants it centred."""
        return x - x.mean(-1, keepdim=True) if self.spec.center_input else x

    def fold_decoder_norms(self) -> Sae:
        """Unit-norm decoder rows, the norms moved into the encoder [SAELens#463]: activations become comparable.

        Refused for TopK families, where it would change which latents are chosen.
        """
        if self.spec.architecture in ("topk", "batchtopk"):
            raise SaeError(f"decoder norms of a {self.spec.architecture} SAE must not be folded: it would change the selection")
        norms = self.W_dec.norm(dim=-1).clamp_min(1e-12)
        changes: dict = {"W_dec": self.W_dec / norms[:, None]}
        if self.spec.architecture == "gated":  # the gate's sign does not change, its magnitude path is scaled
            changes |= {"r_mag": self.r_mag + norms.log(), "b_mag": self.b_mag * norms}
        else:
            changes |= {"W_enc": self.W_enc * norms, "b_enc": self.b_enc * norms}
        if self.threshold is not None:
            changes["threshold"] = self.threshold * norms
        return replace(self, spec=replace(self.spec, decoder_norms_folded=True), **changes)

    def scale_input(self, factor: float) -> Sae:
        """The SAE that does to x what this one does to x * factor, its output divided by it again: a constant scale, folded exactly.

        Activations and thresholds keep their units.
        """
        changes = {"W_enc": self.W_enc * factor, "W_dec": self.W_dec / factor, "b_dec": self.b_dec / factor}
        return replace(self, **changes)


def topk_rows(pre: torch.Tensor, k: int, *, ordered: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """`torch.topk(pre, k, dim=-1)`, exact, faster on wide rows; strongest first unless `ordered` is False.

    The k largest entries of a row lie in the k groups with the largest maxima: one sequential pass for the maxima and a topk
    over the few groups and candidates replace a topk over the whole row, each again in this way while it is wide.
    (n, m) -> values (n, k), indices (n, k) int64.
    """
    n, m = pre.shape
    # Every (m / size)-th entry, not `size` neighbours: the maxima are then taken of whole vectors, 4 times faster on a CPU.
    size = 1 if pre.is_cuda else next((s for s in range(min(_LARGEST_GROUP, m // (4 * k)), 1, -1) if m % s == 0), 1)
    if size == 1:
        return torch.topk(pre, k, dim=-1, sorted=ordered)
    grouped = pre.reshape(n, size, m // size)
    chosen = topk_rows(grouped.amax(1), k, ordered=False)[1]  # (n, k)
    candidates = torch.gather(grouped, 2, chosen[:, None, :].expand(-1, size, -1)).view(n, size * k)
    values, at = topk_rows(candidates, k, ordered=ordered)
    return values, torch.gather(chosen, 1, at % k) + at.div(k, rounding_mode="floor") * (m // size)


class ReconstructionStats:
    """Explained variance, L0 and fired latents, summed over batches in float64.

    Explained variance = 1 - sum|x - x_hat|^2 / sum|x - mean(x)|^2, both sums over the whole evaluation set.
    """

    def __init__(self, d_in: int, d_sae: int):
        self.tokens = 0
        self.active = 0
        self.squared_error = 0.0
        self._sum = torch.zeros(d_in, dtype=torch.float64)
        self._sum_squares = 0.0
        self.fired = torch.zeros(d_sae, dtype=torch.bool)

    def add(self, x: torch.Tensor, x_hat: torch.Tensor, acts: SparseActs) -> None:
        x64 = x.double()
        self.tokens += len(x)
        self.active += len(acts.features)
        self.squared_error += float((x64 - x_hat.double()).square().sum())
        self._sum += x64.sum(0).cpu()
        self._sum_squares += float(x64.square().sum())
        self.fired[acts.features.unique().cpu()] = True

    @property
    def variance(self) -> float:
        """sum|x - mean(x)|^2 over all rows seen."""
        return self._sum_squares - float(self._sum.square().sum()) / max(self.tokens, 1)

    @property
    def explained_variance(self) -> float:
        return 1.0 - self.squared_error / self.variance if self.variance > 0 else float("nan")

    @property
    def l0(self) -> float:
        return self.active / max(self.tokens, 1)

    @property
    def dead(self) -> int:
        return int((~self.fired).sum())
