"""Both GPT-2 presets from nothing to the page, on a GPT-2 of full size: python benchmarks/gpt2_builds.py [--json] [--only gpt2|gpt2-topk]

A loopback server that speaks the Hub's protocol serves GPT-2 (`GPT2Config()`, random weights), an SAE of 24,576 latents in the layout of
jbloom/GPT2-Small-SAEs-Reformatted (random rows, its biases set so that about 60 latents are active on a token) and the four diverse data
sets in their layouts. Measured are `build` as a user gives it, then the bundle's model in a fresh process: private memory while it loads
and when it has, a text, a card. Speed and memory do not depend on the weights' values; what the features mean does.

The texts are those of a folder of corpora (`--corpora`, files as in `_SETS`), else the embedded ones, repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hub_server import HubServer  # noqa: E402
from sae_layouts import OLD_CONFIG, save_json  # noqa: E402

from benchmarks.inputs import write_tokenizer  # noqa: E402
from sae_explore.models import model_sources  # noqa: E402
from sae_explore.models.model import load_model  # noqa: E402
from sae_explore.saes import sae_names  # noqa: E402
from sae_explore.texts.embedded import embedded_rows  # noqa: E402
from sae_explore.types import HookPoint  # noqa: E402

HOOK = "blocks.7.hook_resid_pre"
LATENTS, ACTIVE = 24_576, 60
CORPORA = ROOT.parent / "shared" / "corpora"
_ROWS = 240  # of each data set; a preset reads 200
# data set -> (file in it, column, its card, file of the corpora, how many of their texts make one, characters at most)
_SETS = {
    "fancyzhx/ag_news": ("data/train-00000-of-00001.parquet", "text", "", "ag_news_test.jsonl.gz", 1, 0),
    "stanfordnlp/imdb": ("plain_text/unsupervised-00000-of-00001.parquet", "text", "", "imdb_reviews.jsonl.gz", 1, 0),
    "gfissore/arxiv-abstracts-2021": ("arxiv-abstracts.jsonl.gz", "abstract", "", "arxiv_abstracts.jsonl.gz", 1, 0),
    "wikimedia/wikipedia": ("20231101.en/train-00000-of-00041.parquet", "text", "20231101.en", "openstax_us_history.jsonl.gz", 3, 2_500),
}
_BUILD = """
import sys
from pathlib import Path
from sae_explore.building.build import build
from sae_explore.building.presets import request_for
build(request_for(sys.argv[1], **({"weights": "float16"} if sys.argv[3] == "half" else {})), cache=Path(sys.argv[2]),
          report=lambda stage, text, share=None: print(stage, flush=True))
"""
_EXPLORE = """
import json, sys, threading, time
import psutil
process, peak, done = psutil.Process(), [0], threading.Event()
def private():  # what the kernel cannot take back: without the pages of mapped files
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024 / 1e6
def watch():
    while not done.wait(0.02): peak[0] = max(peak[0], private())
threading.Thread(target=watch, daemon=True).start()
from streamlit.testing.v1 import AppTest
started = time.perf_counter()
at = AppTest.from_file(sys.argv[1], default_timeout=120); at.query_params.update({"bundle": sys.argv[2], "feature": "1"}); at.run()
assert not at.exception, at.exception
found = {"start to first page, s": time.perf_counter() - started, "private memory, pages alone, MB": private()}
from sae_explore import resources
bundle = resources.get_bundle(sys.argv[2]); job = resources.tracer_job(bundle)
started = time.perf_counter(); job.start(); assert job.wait(300) and job.tracer, job.error
found["loading the model, s"] = time.perf_counter() - started
text = " ".join(["The old map shows three rivers and a lake, but nobody has found the village that lies between them."] * 3)
job.tracer.trace(text)
times = []
for i in range(9):
    started = time.perf_counter(); trace = job.tracer.trace(f"{text} {i}"); times.append(time.perf_counter() - started)
found[f"a text of {len(trace.tokens)} tokens, ms"] = 1e3 * sorted(times)[4]
times = []
for feature in bundle.features["feature"].to_pylist()[:: bundle.d_sae // 200]:
    started = time.perf_counter(); bundle.card(feature); times.append(time.perf_counter() - started)
found["a card, 95th percentile, ms"] = 1e3 * sorted(times)[int(0.95 * len(times))]
found["private memory with model and SAE, MB"] = private()
found["the same with pages of mapped files, MB"] = process.memory_full_info().uss / 1e6
done.set(); found["its peak, MB"] = max(peak[0], private())
print(json.dumps(found))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["gpt2", "gpt2-topk"])
    parser.add_argument("--corpora", type=Path, default=CORPORA)
    parser.add_argument("--half", action="store_true", help="publish GPT-2 and store SAEs in fp16")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        hub = Path(folder) / "hub"
        _write_hub(hub, options.corpora, half=options.half)
        found = {}
        with HubServer(hub) as server:
            environment = server.environment(Path(folder) / "home") | {"SAE_EXPLORE_CACHE": str(Path(folder) / "cache")}
            for name in ("gpt2", "gpt2-topk"):
                if options.only in (None, name):
                    found[name] = _measure(name, environment, half=options.half)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, rows in found.items():
        print(f"{name}: {rows.pop('what')}")
        for what, value in rows.items():
            print(f"   {what:45} {value:10,.4g}")


def _measure(name: str, environment: dict[str, str], *, half: bool) -> dict:
    """Build a preset and explore it, each in a process of its own."""
    started, peak = time.perf_counter(), 0
    command = [sys.executable, "-c", _BUILD, name, environment["SAE_EXPLORE_CACHE"], "half" if half else ""]
    log = Path(environment["HF_HOME"]).parent / f"{name}.log"
    with log.open("w") as errors:
        build = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    stages: dict[str, float] = {}
    reader = threading.Thread(target=_follow, args=(build.stdout, started, stages), daemon=True)
    reader.start()
    while build.poll() is None:
        with contextlib.suppress(OSError, StopIteration):  # it may have ended meanwhile
            peak = max(peak, _anonymous(build.pid))
        time.sleep(0.2)
    reader.join()
    seconds = time.perf_counter() - started
    if build.returncode:
        raise SystemExit(f"the build of {name} failed: {log.read_text()[-2000:]}")
    folder = Path(environment["SAE_EXPLORE_CACHE"]) / name
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    done = subprocess.run(
        [sys.executable, "-c", _EXPLORE, str(ROOT / "streamlit_app.py"), name],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"exploring {name} failed: {done.stderr[-2000:]}")
    corpus = manifest["corpus"]
    return {
        "what": f"{manifest['sae']['d_sae']:,} latents, {corpus['documents']:,} texts, {corpus['tokens']:,} tokens, "
        f"L0 {manifest['metrics']['l0']:.1f}, {os.cpu_count()} cores, PyTorch {torch.__version__}",
        "build from an empty cache, s": seconds,
        **{f"   of it {stage}, s": t for stage, t in stages.items()},
        "private memory of the build, peak, MB": peak / 1e6,
        "bundle on disk, MB": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6,
        **json.loads(done.stdout.splitlines()[-1]),
    }


def _anonymous(process: int | str) -> int:
    """Bytes of a process's memory that the kernel cannot take back: without the pages of mapped files."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _follow(lines, started: float, stages: dict[str, float]) -> None:
    """Seconds of each stage, from the names that the build prints whenever it reports."""
    name, since = "start", started
    for line in lines:
        if (stage := line.strip()) != name:
            now = time.perf_counter()
            stages[name] = stages.get(name, 0.0) + now - since
            name, since = stage, now
    stages[name] = stages.get(name, 0.0) + time.perf_counter() - since


# ---- what the loopback Hub serves --------------------------------------------------------------------------------------


def _write_hub(hub: Path, corpora: Path, *, half: bool) -> None:
    model, saes = hub / "models" / model_sources.GPT2, hub / "models" / sae_names.GPT2_SAES
    torch.manual_seed(0)
    net = GPT2LMHeadModel(GPT2Config())
    (net.half() if half else net).save_pretrained(model)
    write_tokenizer(model)
    _write_sae(saes / HOOK, model)
    for path, commit in ((model, model_sources._PINNED[model_sources.GPT2]), (saes, sae_names.PINNED[sae_names.GPT2_SAES])):
        (path / ".commit").write_text(commit)
    for name, (file, column, config, corpus, joined, characters) in _SETS.items():
        folder = hub / "datasets" / name
        (folder / file).parent.mkdir(parents=True)
        texts = _texts(corpora / corpus, joined)
        rows = [(" ".join(islice(texts, joined)))[: characters or None] for _ in range(_ROWS)]
        if file.endswith(".parquet"):
            pq.write_table(pa.table({column: rows}), folder / file)
        else:
            (folder / file).write_bytes(gzip.compress("\n".join(json.dumps({column: row}) for row in rows).encode()))
        split = "unsupervised" if "unsupervised" in file else "train"
        files = (
            f"configs:\n- config_name: {config or 'default'}\n  data_files:\n  - split: {split}\n    path: {Path(file).parent}/{split}-*\n"
        )
        (folder / "README.md").write_text(f"---\nlicense: unknown\n{files if file.endswith('.parquet') else ''}---\n")


def _texts(file: Path, joined: int) -> Iterator[str]:
    """The texts of a corpus file, or, where it is absent, the embedded ones, for ever."""
    if not file.is_file():
        return cycle(row.text for row in embedded_rows())
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return cycle([json.loads(line)["text"] for line in islice(lines, joined * _ROWS)])


def _write_sae(folder: Path, model: Path) -> None:
    """Random unit rows; one bias for all, so that ACTIVE latents pass it on average. Its input is centred, as that of the published one."""
    loaded = load_model(model, hook=HookPoint.parse(HOOK), name="", revision="")
    ids = torch.randint(0, 50_000, (16, 128), generator=torch.Generator().manual_seed(1))
    x = loaded.residual(ids)[:, 1:].reshape(-1, loaded.d_model)
    x = x - x.mean(1, keepdim=True)
    W_dec = torch.nn.functional.normalize(torch.randn(LATENTS, loaded.d_model, generator=torch.Generator().manual_seed(2)), dim=1)
    pre = (x[:512] - x.mean(0)) @ W_dec.T
    bias = float(pre.flatten().kthvalue(pre.numel() - 512 * ACTIVE).values)
    config = OLD_CONFIG | {"hook_point": HOOK, "hook_point_layer": 7, "d_in": loaded.d_model, "d_sae": LATENTS, "context_size": 128}
    save_json(folder / "cfg.json", config)
    tensors = {"W_enc": W_dec.T.contiguous(), "b_enc": torch.full((LATENTS,), -bias), "W_dec": W_dec, "b_dec": x.mean(0)}
    save_file(tensors, folder / "sae_weights.safetensors")
    save_file({"sparsity": torch.zeros(LATENTS)}, folder / "sparsity.safetensors")


if __name__ == "__main__":
    main()
