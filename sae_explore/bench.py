"""How fast, and how near to the limit: python -m sae_explore bench

Every figure is printed beside a limit measured in the same run: the bare forward pass, one encoder product, or a stated bound.
The model is a full-size GPT-2 with random weights (speed does not depend on their values); stores and cards are synthetic.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sae_explore.activations.activation_shards import MemoryActivations
from sae_explore.activations.activation_store import StoreWriter
from sae_explore.activations.collect import batch_tokens, residual_blocks
from sae_explore.activations.encoding import trace_text, training_dtype, write_block
from sae_explore.bench_data import random_gpt2, random_sae, synthetic_bundle
from sae_explore.bundles.bundle import Bundle
from sae_explore.models.model import LanguageModel
from sae_explore.models.windows import length_batches, windows_of
from sae_explore.saes import train
from sae_explore.types import HookPoint

HOOK = HookPoint.parse("blocks.6.hook_resid_post")
CONTEXT = 128
LATENTS = (2_048, 24_576)
WIDTH = 768  # of GPT-2


class Sizes(NamedTuple):
    """How much is measured."""

    store_tokens: int
    batch: int
    card_tokens: int


FULL = Sizes(store_tokens=32_512, batch=4_096, card_tokens=1_000_000)
QUICK = Sizes(store_tokens=8_128, batch=1_024, card_tokens=100_000)
_START = """
import time; t = time.perf_counter()
import sys, os
from streamlit.testing.v1 import AppTest
from sae_explore import resources
resources.warm = lambda bundle: None  # a model that is on this machine would be loaded behind the page
at = AppTest.from_file(sys.argv[1], default_timeout=60)
at.query_params["feature"] = "1"
at.run()
assert not at.exception, at.exception
seconds = time.perf_counter() - t
try:  # ru_maxrss of a child counts the memory of the process that started it, too
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
except OSError:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
print(seconds, peak, "torch" in sys.modules)
"""


class Results:
    """Rows {"what", "value", "unit", "limit", "limit_is", "ratio"}, printed as they come."""

    def __init__(self, report: Callable[[str], None] | None):
        self.rows: list[dict] = []
        self._report = report or (lambda _line: None)
        self._report(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}")

    def add(
        self, what: str, value: float, unit: str, *, limit: float | None = None, limit_is: str = "", ratio: float | None = None
    ) -> None:
        self.rows.append({"what": what, "value": value, "unit": unit, "limit": limit, "limit_is": limit_is, "ratio": ratio})
        beside = f"   limit {limit:,.4g} {unit} ({limit_is})" if limit is not None else ""
        share = f"   ratio {ratio:.2f}" if ratio is not None else ""
        self._report(f"{what:58} {value:10,.4g} {unit}{beside}{share}")


def run_bench(bundle: Bundle | None, *, quick: bool = False, report: Callable[[str], None] | None = None) -> list[dict]:
    """All figures. `bundle`: its cards are measured too."""
    results, sizes = Results(report), QUICK if quick else FULL
    torch.manual_seed(0)
    model = random_gpt2(HOOK, width=WIDTH)
    for latents in LATENTS:
        _store_build(results, model, latents, tokens=sizes.store_tokens)
    for latents in LATENTS:
        for dtype in (None, training_dtype("auto")) if training_dtype("auto") else (None,):
            _training_step(results, latents, batch=sizes.batch, dtype=dtype)
    _text(results, model, LATENTS[-1])
    del model
    with tempfile.TemporaryDirectory() as folder:
        synthetic = synthetic_bundle(Path(folder), latents=LATENTS[-1], tokens=sizes.card_tokens, d_in=WIDTH)
        _cards(results, synthetic, f"card, {LATENTS[-1]:,} latents x {sizes.card_tokens:,} tokens")
    if bundle is not None:
        _cards(results, bundle, f"card, bundle {bundle.name}")
        _start(results)
    return results.rows


def _seconds(run: Callable[[], object], repeat: int = 3) -> float:
    """Best of a few runs after one to warm up."""
    run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _store_build(results: Results, model: LanguageModel, latents: int, *, tokens: int) -> None:
    """Build of a store against transformers' eager forward of the same batches plus one encoder product, in fp32."""
    sae = random_sae(model.d_model, latents)
    rng = np.random.default_rng(0)
    ids_of = [rng.integers(0, 50_000, CONTEXT - 1).astype(np.int32) for _ in range(tokens // (CONTEXT - 1))]
    windows = [w for d, ids in enumerate(ids_of) for w in windows_of(len(ids), CONTEXT - 1, document=d)]
    eager = random_gpt2(HOOK, eager=True, width=WIDTH)

    def limit() -> None:
        for batch in length_batches(windows, 32, batch_tokens(model.device)):
            rows = eager.residual(eager.window_ids(batch, ids_of, bos=True))
            _ = rows.view(-1, eager.d_model) @ sae.W_enc

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            writer = StoreWriter(Path(folder) / "parts", latents)
            for part, (_, _, rows) in enumerate(residual_blocks(model, ids_of, context=CONTEXT, bos=True)):
                write_block(writer, part, sae, rows, torch.zeros(len(rows), dtype=torch.bool))
            writer.finish(Path(folder) / "store.safetensors")

    n = sum(map(len, ids_of))
    a, b = n / _seconds(limit, 2), n / _seconds(ours, 2)
    results.add(
        f"store build, {latents:,} latents, fp32", b, "tokens/s", limit=a, limit_is="eager forward + one encoder product", ratio=b / a
    )


def _training_step(results: Results, latents: int, *, batch: int, dtype: torch.dtype | None) -> None:
    """One optimizer step with AuxK on a tenth of the latents dead, in encoder products x @ W_enc of the same batch and dtype.

    `dtype`: in which the latents are chosen (see `train.train_step`); None is fp32.
    """
    x = torch.randn(batch, WIDTH)
    config = train.TrainConfig(latents, 32, 1, 1e-4, batch, dead_after=10**9)
    state = train.initial_state(MemoryActivations(x), config, torch.device("cpu"))
    state.silent[: latents // 10] = 1 << 40
    state.params["b_enc"].data[: latents // 10] = -1e3  # dead for good: they never fire, which would set their counters back
    in_dtype, W = x.to(dtype or torch.float32), torch.randn(WIDTH, latents, dtype=dtype or torch.float32)
    product = _seconds(lambda: in_dtype @ W)
    ours = _seconds(lambda: train.train_step(state, config, x, encoder_dtype=dtype))
    results.add(
        f"training step, {latents:,} latents, batch {batch:,}, {'bf16' if dtype else 'fp32'}",
        ours,
        "s",
        limit=product,
        limit_is="one encoder product",
        ratio=ours / product,
    )


def _text(results: Results, model: LanguageModel, latents: int) -> None:
    """A custom text of 64 tokens, warm, against its forward of blocks 0..6 plus one encoder product."""
    sae = random_sae(model.d_model, latents)
    ids = np.arange(1_000, 1_064, dtype=np.int32)
    text = model.tokenizer.text_of(ids)
    window = windows_of(len(ids), CONTEXT - 1)

    def limit() -> None:
        model.residual(model.window_ids(window, [ids], bos=True))[0] @ sae.W_enc

    def ours() -> None:
        trace_text(model, sae, text, bundle="bench", units="", context=CONTEXT, bos=True, median_norm=1e9)

    a, b = _seconds(limit, 10), _seconds(ours, 10)
    results.add(
        f"own text of 64 tokens, {latents:,} latents", 1e3 * b, "ms", limit=1e3 * a, limit_is="forward + one encoder product", ratio=b / a
    )


def _cards(results: Results, bundle: Bundle, what: str, n: int = 400) -> None:
    """95th percentile of `Bundle.card` over random features, each asked once, and the densest one."""
    rng = np.random.default_rng(0)
    live = np.flatnonzero(bundle.features["count"].to_numpy() > 0)
    densest = int(np.argmax(bundle.features["count"].to_numpy()))
    bundle.card(int(live[0]))
    times = []
    for feature in [*rng.choice(live, min(n, len(live)), replace=False), densest]:
        start = time.perf_counter()
        bundle.card(int(feature))
        times.append(1e3 * (time.perf_counter() - start))
    p95 = float(np.percentile(times, 95))
    results.add(f"{what}, 95th percentile", p95, "ms", limit=5.0, limit_is="stated bound", ratio=p95 / 5.0)
    density = float(bundle.features["density"][densest].as_py())
    results.add(f"{what}, its densest feature ({density:.2f})", times[-1], "ms", limit=5.0, limit_is="stated bound", ratio=times[-1] / 5.0)


def _start(results: Results) -> None:
    """From a cold process to the first page drawn with a feature open, and its peak memory, without a model."""
    app = Path(__file__).resolve().parents[1] / "streamlit_app.py"
    done = subprocess.run([sys.executable, "-c", _START, str(app)], capture_output=True, text=True, check=True, cwd=app.parent)
    seconds, megabytes, with_torch = done.stdout.split()[-3:]
    results.add(
        "start to first page (server side, no model)", float(seconds), "s", limit=3.0, limit_is="stated bound", ratio=float(seconds) / 3
    )
    results.add(
        "peak memory before a model is loaded", float(megabytes), "MB", limit=250.0, limit_is="stated bound", ratio=float(megabytes) / 250
    )
    if with_torch == "True":
        raise AssertionError("the first page imported torch")
