"""Small SAEs in the layouts in which others publish them, and their equations in numpy, to compare with.

Each `write_*` makes random weights in the format's own orientation and returns a function: rows (n, D) -> (activations (n, M),
reconstruction (n, D)), computed from those weights as the format's authors do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

D, M, K = 32, 48, 5
Equations = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# What jbloom/GPT2-Small-SAEs-Reformatted says of one of its SAEs: a whole training run's settings, flat, and nothing about centring.
OLD_CONFIG = {
    "model_name": "gpt2-small", "hook_point": "blocks.2.hook_resid_pre", "hook_point_layer": 2, "hook_point_head_index": None,
    "dataset_path": "Skylion007/openwebtext", "is_dataset_tokenized": False, "context_size": 64, "use_cached_activations": False,
    "cached_activations_path": "activations/Skylion007_openwebtext/gpt2-small/blocks.2.hook_resid_pre", "d_in": D,
    "n_batches_in_buffer": 128, "total_training_tokens": 300000000, "store_batch_size": 32, "device": "mps", "seed": 42,
    "dtype": "torch.float32", "b_dec_init_method": "geometric_median", "expansion_factor": 32, "from_pretrained_path": None,
    "l1_coefficient": 8e-05, "lr": 0.0004, "lr_scheduler_name": None, "lr_warm_up_steps": 5000, "train_batch_size": 4096,
    "use_ghost_grads": False, "feature_sampling_window": 1000, "feature_sampling_method": None, "resample_batches": 1028,
    "feature_reinit_scale": 0.2, "dead_feature_window": 5000, "dead_feature_estimation_method": "no_fire", "dead_feature_threshold": 1e-08,
    "log_to_wandb": True, "wandb_project": "mats_sae_training_gpt2_small_resid_pre_5", "wandb_entity": None, "wandb_log_frequency": 100,
    "n_checkpoints": 10, "checkpoint_path": "checkpoints/y1t51byy", "d_sae": M, "tokens_per_buffer": 67108864,
    "run_name": "24576-L1-8e-05-LR-0.0004-Tokens-3.000e+08",
}  # fmt: skip


class Weights:
    """Random float32 tensors by shape, always the same ones for a seed."""

    def __init__(self, seed: int = 0, scale: float = 0.4):
        self._generator, self._scale = torch.Generator().manual_seed(seed), scale

    def __call__(self, *shape: int) -> torch.Tensor:
        return self._scale * torch.randn(*shape, generator=self._generator)


def wide(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy().astype(np.float64)


def top(pre: np.ndarray, k: int) -> np.ndarray:
    """ReLU of the k largest entries of each row."""
    kept = np.argsort(-pre, axis=1)[:, :k]
    out = np.zeros_like(pre)
    np.put_along_axis(out, kept, np.maximum(np.take_along_axis(pre, kept, 1), 0), 1)
    return out


def save_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_old_saelens(folder: Path, *, seed: int = 0, quiet: float = 0.0, **changed: object) -> Equations:
    """As before SAELens 6; `quiet` is taken from every encoder bias."""
    draw = Weights(seed)
    W_enc, b_enc, W_dec, b_dec = draw(D, M), draw(M) - quiet, 2 * draw(M, D), draw(D)
    save_json(folder / "cfg.json", {**OLD_CONFIG, **changed})
    save_file({"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}, folder / "sae_weights.safetensors")
    save_file({"sparsity": draw(M)}, folder / "sparsity.safetensors")

    def equations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        acts = np.maximum((x - wide(b_dec)) @ wide(W_enc) + wide(b_enc), 0)
        return acts * np.linalg.norm(wide(W_dec), axis=1), acts @ wide(W_dec) + wide(b_dec)  # activations as the dashboards fold them

    return equations


def write_openai_in_saelens(folder: Path, *, seed: int = 0, **changed: object) -> Equations:
    """The OpenAI SAEs as jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs has them: called "standard", with a TopK activation function."""
    draw = Weights(seed)
    W_enc, b_enc, W_dec, b_dec = draw(D, M), draw(M), draw(M, D), draw(D)
    config = {
        "architecture": "standard", "d_in": D, "d_sae": M, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K},
        "apply_b_dec_to_input": True, "finetuning_scaling_factor": False, "context_size": 64, "model_name": "gpt2-small",
        "hook_name": "blocks.1.hook_resid_post", "hook_layer": 1, "hook_head_index": None, "prepend_bos": False, "dtype": "float32",
        "normalize_activations": "layer_norm", "dataset_path": "Skylion007/openwebtext", "sae_lens_training_version": None,
    }  # fmt: skip
    save_json(folder / "cfg.json", config | changed)
    save_file({"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}, folder / "sae_weights.safetensors")
    return _openai(W_enc, b_enc, W_dec, b_dec)


def _openai(W_enc: torch.Tensor, b_enc: torch.Tensor, W_dec: torch.Tensor, b_dec: torch.Tensor) -> Equations:
    def equations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, std = x.mean(1, keepdims=True), x.std(1, keepdims=True, ddof=1)
        normed = (x - mean) / (std + 1e-5)
        acts = top((normed - wide(b_dec)) @ wide(W_enc) + wide(b_enc), K)
        return acts, (acts @ wide(W_dec) + wide(b_dec)) * std + mean

    return equations


def write_openai(file: Path, *, seed: int = 0, kind: str = "TopK", options: dict | None = None, **changed: object) -> Equations:
    """A state dict of `Autoencoder`; a value of None leaves a key out."""
    draw = Weights(seed)
    encoder, latent_bias, decoder, pre_bias = draw(M, D), draw(M), draw(D, M), draw(D)
    state = {
        "pre_bias": pre_bias, "encoder.weight": encoder, "latent_bias": latent_bias, "decoder.weight": decoder,
        "stats_last_nonzero": torch.zeros(M, dtype=torch.long), "latents_activation_frequency": torch.ones(M),
        "latents_mean_square": torch.zeros(M), "activation": kind,
        "activation_state_dict": ({"k": K, "postact_fn": "ReLU"} if kind == "TopK" else {}) if options is None else options,
    } | changed  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({key: value for key, value in state.items() if value is not None}, file)
    if kind == "TopK":
        return _openai(encoder.T, latent_bias, decoder.T, pre_bias)

    def equations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        acts = np.maximum((x - wide(pre_bias)) @ wide(encoder).T + wide(latent_bias), 0)
        return acts * np.linalg.norm(wide(decoder), axis=0), acts @ wide(decoder).T + wide(pre_bias)

    return equations


def write_sparsify(folder: Path, *, seed: int = 0, **changed: object) -> Equations:
    draw = Weights(seed)
    encoder, bias, W_dec, b_dec = draw(M, D), draw(M), draw(M, D), draw(D)
    config = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": M, "k": K, "multi_topk": False,
              "skip_connection": False, "transcode": False, "d_in": D}  # fmt: skip
    save_json(folder / "cfg.json", {key: value for key, value in (config | changed).items() if value is not None})
    save_file({"encoder.weight": encoder, "encoder.bias": bias, "W_dec": W_dec, "b_dec": b_dec}, folder / "sae.safetensors")

    def equations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        acts = top(np.maximum((x - wide(b_dec)) @ wide(encoder).T + wide(bias), 0), K)
        return acts, acts @ wide(W_dec) + wide(b_dec)

    return equations


def write_gemma_scope(folder: Path, *, seed: int = 0) -> Equations:
    draw = Weights(seed)
    arrays = {"w_enc": draw(D, M), "b_enc": draw(M), "w_dec": draw(M, D), "b_dec": draw(D), "threshold": draw(M).abs()}
    w_dec = arrays["w_dec"] = torch.nn.functional.normalize(arrays["w_dec"], dim=1)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in arrays.items()})

    def equations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pre = x @ wide(arrays["w_enc"]) + wide(arrays["b_enc"])
        acts = np.where(pre > wide(arrays["threshold"]), np.maximum(pre, 0), 0)
        return acts, acts @ wide(w_dec) + wide(arrays["b_dec"])

    return equations


def write_dictionary_learning(
    folder: Path, kind: str, *, seed: int = 0, threshold: float = 0.5, buffer: dict | None = None, **changed: object
):
    """A trainer's folder; `changed` are keys of its "trainer"."""
    draw = Weights(seed)
    encoder, bias, decoder, b_dec, extra = draw(M, D), draw(M), draw(D, M), draw(D), draw(M)
    plain = {"W_enc": encoder.T.contiguous(), "b_enc": bias, "W_dec": decoder.T.contiguous(), "b_dec": b_dec}
    linear = {"encoder.weight": encoder, "encoder.bias": bias, "decoder.weight": decoder}
    buffers = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(threshold)}
    state = {
        "AutoEncoder": {**linear, "bias": b_dec},
        "AutoEncoderNew": {**linear, "decoder.bias": b_dec},
        "GatedAutoEncoder": {"decoder_bias": b_dec, "r_mag": extra, "gate_bias": bias, "mag_bias": bias / 2, "encoder.weight": encoder,
                             "decoder.weight": decoder},
        "JumpReluAutoEncoder": {**plain, "threshold": extra.abs()},
        "AutoEncoderTopK": {**buffers, **linear, "b_dec": b_dec},
        "BatchTopKSAE": {**buffers, **linear, "b_dec": b_dec},
        "MatryoshkaBatchTopKSAE": {**buffers, "group_sizes": torch.tensor([M // 4, M - M // 4]), **plain},
    }[kind]  # fmt: skip
    trainer = {"trainer_class": "SomeTrainer", "dict_class": kind, "lr": 1e-3, "activation_dim": D, "dict_size": M, "k": K, "layer": 1,
               "lm_name": "openai-community/gpt2", "submodule_name": "resid_post_layer_1", "seed": 0}  # fmt: skip
    of_buffer = {"d_submodule": D, "io": "out", "n_ctxs": 244, "ctx_len": 64, "refresh_batch_size": 32, "out_batch_size": 2048}
    save_json(folder / "config.json", {"trainer": trainer | changed, "buffer": of_buffer if buffer is None else buffer})
    torch.save(state, folder / "ae.pt")

    def equations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        as_it_is = kind in ("AutoEncoderNew", "JumpReluAutoEncoder")
        hidden = (x if as_it_is else x - wide(b_dec)) @ wide(encoder).T
        pre = hidden + wide(bias)
        acts = np.maximum(pre, 0)
        if kind == "GatedAutoEncoder":
            acts = (pre > 0) * np.maximum(np.exp(wide(extra)) * hidden + wide(bias) / 2, 0)
        elif kind == "JumpReluAutoEncoder":
            acts = acts * (pre > np.abs(wide(extra)))
        elif kind == "AutoEncoderTopK":
            acts = top(acts, K)
        elif kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
            acts = acts * (acts > threshold)
        norms = 1.0 if kind in ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE") else np.linalg.norm(wide(decoder), axis=0)
        return acts * norms, acts @ wide(decoder).T + wide(b_dec)

    return equations


DICTIONARIES = ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
                "MatryoshkaBatchTopKSAE")  # fmt: skip
