"""The other side of the comparison, run by the Python of an environment with sae-lens and sae-dashboard:

    PEER_PYTHON benchmarks/peer_side.py FOLDER dashboard|training

Imports nothing of this project. Reads the folder of `inputs`, writes `peers-dashboard.json` and `peers-top.npz`, or
`peers-training.json`, into it. SAEDashboard's SaeVisRunner runs in two ways: with its defaults, and as its own NeuronpediaRunner calls
it (that runner's layout, sizes and cache of the model's activations). The BOS is ignored in both; JSON is timed apart.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import resource
import time
from pathlib import Path

import numpy as np
import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WARM_UP = 3  # training steps before the measured ones
TOP = 20
WAYS = ("defaults", "neuronpedia")


def main() -> None:
    parser = argparse.ArgumentParser(description="the side of sae-lens and sae-dashboard")
    parser.add_argument("folder", type=Path)
    parser.add_argument("task", choices=("dashboard", "training"))
    args = parser.parse_args()
    setup = json.loads((args.folder / "setup.json").read_text(encoding="utf-8"))
    found = {"dashboard": dashboard, "training": training}[args.task](args.folder, setup)
    packages = ("torch", "transformers", "transformer-lens", "sae-lens", "sae-dashboard")
    found |= {
        "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}},
        "threads": torch.get_num_threads(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    (args.folder / f"peers-{args.task}.json").write_text(json.dumps(found), encoding="utf-8")


def dashboard(folder: Path, setup: dict) -> dict:
    """SAEDashboard's data of the features, made in both ways, and its strongest tokens of each feature.

    Of each way {"first", "first_features", "rest", "rest_features", "json"}: seconds for the first batch of features (with what is done
    once), for all others, and for writing the first batch as JSON.
    """
    from sae_lens import SAE

    model = _hooked_model(folder / "model")
    sae = SAE.load_from_disk(folder / "sae", device="cpu")
    sae.cfg.rescale_acts_by_decoder_norm = True  # decoder rows have norm 1, and SAEDashboard folds norms, which TopK SAEs refuse without
    tokens = torch.from_numpy(np.load(folder / "tokens.npy"))
    features = list(range(setup["peer_features"] or setup["latents"]))
    found, made = {}, {}
    for way in WAYS:
        now, made = CLOCKS[setup["clock"]], {}
        first = features[: _config(way, setup, features, tokens, folder).minibatch_size_features]
        times = {}
        for part, chosen in (("first", first), ("rest", features[len(first) :])):
            start = now()
            data = _made(_config(way, setup, chosen, tokens, folder), sae, model, tokens) if chosen else None
            times |= {part: now() - start, f"{part}_features": len(chosen)}
            if part == "first":
                start = now()
                data.save_json(folder / "peers.json")
                times["json"] = now() - start
            made |= data.feature_data_dict if data else {}
        found[way] = times
    _write_top(folder / "peers-top.npz", made, setup, tokens.shape[1])  # of the last way, whose lists leave no position out
    return {"ways": found}


def _made(config, sae, model, tokens: torch.Tensor):
    from sae_dashboard.sae_vis_runner import SaeVisRunner

    return SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)


def _config(way: str, setup: dict, features: list[int], tokens: torch.Tensor, folder: Path):
    """SaeVisConfig with its defaults, or as NeuronpediaRunner fills it in."""
    from sae_dashboard.components_config import (
        ActsHistogramConfig,
        Column,
        FeatureTablesConfig,
        LogitsHistogramConfig,
        LogitsTableConfig,
        SequencesConfig,
    )
    from sae_dashboard.layout import SaeVisLayoutConfig
    from sae_dashboard.neuronpedia.neuronpedia_runner_config import NeuronpediaRunnerConfig
    from sae_dashboard.sae_vis_data import SaeVisConfig

    common = {"hook_point": setup["hook"], "features": features, "device": "cpu", "dtype": "float32", "ignore_tokens": {int(tokens[0, 0])}}
    if way == "defaults":
        return SaeVisConfig(**common)
    theirs = NeuronpediaRunnerConfig(sae_set="", sae_path="", outputs_dir="")
    sequences = SequencesConfig(
        stack_mode="stack-all",
        buffer=None,
        compute_buffer=True,
        n_quantiles=theirs.n_quantiles,
        top_acts_group_size=theirs.top_acts_group_size,
        quantile_group_size=theirs.quantile_group_size,
    )
    column = Column(sequences, ActsHistogramConfig(), LogitsHistogramConfig(), LogitsTableConfig(), FeatureTablesConfig(n_rows=3))
    return SaeVisConfig(
        **common,
        minibatch_size_features=theirs.n_features_at_a_time,
        minibatch_size_tokens=theirs.n_prompts_in_forward_pass,
        quantile_feature_batch_size=theirs.quantile_feature_batch_size,
        feature_centric_layout=SaeVisLayoutConfig(columns=[column]),
        cache_dir=folder / "peers-cache",
    )


def _write_top(path: Path, made: dict, setup: dict, context: int) -> None:
    """(latents, TOP) places (row * context + column) and values of the group of strongest sequences."""
    places, values = np.zeros((2, setup["latents"], TOP))
    for feature, found in made.items():
        for i, sequence in enumerate(found.sequence_data.seq_group_data[0].seq_data[:TOP]):
            column = sequence.qualifying_token_index
            places[feature, i] = sequence.original_index * context + column
            values[feature, i] = sequence.feat_acts[column - 1] if column else 0  # its lists leave out column 0, the ignored BOS
    np.savez(path, places=places, values=values, features=sorted(made))


def _hooked_model(folder: Path):
    """The model in TransformerLens, its weights as they are. (By name it is loaded from the Hub only, so it is put together here.)"""
    from sae_lens import HookedSAETransformer
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    from transformers import AutoTokenizer, GPT2LMHeadModel

    hf_model = GPT2LMHeadModel.from_pretrained(folder)
    given = hf_model.config
    config = HookedTransformerConfig(
        d_model=given.n_embd,
        d_head=given.n_embd // given.n_head,
        n_heads=given.n_head,
        d_mlp=4 * given.n_embd,
        n_layers=given.n_layer,
        n_ctx=given.n_positions,
        eps=given.layer_norm_epsilon,
        d_vocab=given.vocab_size,
        act_fn=given.activation_function,
        use_attn_scale=True,
        normalization_type="LN",
        original_architecture="GPT2LMHeadModel",
        device="cpu",
    )
    model = HookedSAETransformer(config, tokenizer=AutoTokenizer.from_pretrained(folder))
    model.load_and_process_state_dict(
        convert_gpt2_weights(hf_model, config), fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return model.eval()


def training(folder: Path, setup: dict) -> dict:
    """Tokens a second of SAELens's trainer on residuals in memory, with dense and with sparse activations."""
    rows = torch.from_numpy(np.load(folder / "residuals.npy"))
    return {
        "training": {
            str(latents): {kind: _trained(rows, setup, latents, sparse=kind == "sparse") for kind in ("dense", "sparse")}
            for latents in setup["train_latents"]
        }
    }


def _trained(rows: torch.Tensor, setup: dict, latents: int, *, sparse: bool) -> dict:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    batch = min(setup["train_batch"], len(rows))
    steps = WARM_UP + setup["train_steps"]
    torch.manual_seed(setup["seed"])
    # with decoder norms in the activations, which is its default, SAELens cannot go backward through sparse ones on a CPU
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=rows.shape[1], d_sae=latents, k=setup["k"], use_sparse_activations=sparse, rescale_acts_by_decoder_norm=not sparse
        )
    )
    # the rate is too small to change anything, so that the latents that are made dead stay dead
    config = SAETrainerConfig(
        total_training_samples=steps * batch,
        train_batch_size_samples=batch,
        lr=1e-9,
        lr_end=1e-9,
        logger=LoggingConfig(log_to_wandb=False),
    )
    x = rows * (rows.shape[1] ** 0.5 / rows.norm(dim=-1).mean())
    trainer = SAETrainer(config, sae, data_provider=iter(()))
    dead = latents // 10
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(0))
        pre = (x - sae.b_dec) @ sae.W_enc[:, :dead]
        sae.b_enc[:dead] -= pre.amax(0)
    trainer.n_forward_passes_since_fired[:dead] = 2 * config.dead_feature_window
    times, now = [], CLOCKS[setup["clock"]]
    for step in range(steps):
        at = step * batch % (len(rows) - batch + 1)
        start = now()
        trainer.step(x[at : at + batch])
        trainer.n_training_steps += 1
        times.append(now() - start)
    return {"tokens_per_second": batch / float(np.median(times[WARM_UP:])), "dead": int(trainer.dead_neurons.sum()), "batch": batch}


if __name__ == "__main__":
    main()
