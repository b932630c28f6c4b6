"""What `crashes.py` kills: a build that trains, a build that downloads, and the fetching of a bundle; and the reader that looks on.

Each has two variants, which take each other's place in turn, so that there is always an old bundle that readers see until the new one is
whole (small runs make do with one). Paths of the Hub are those of `hub_server`.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

VARIANTS = 2
CONTEXT = 32
HOOK = "blocks.1.hook_resid_post"
BYTES_PER_SECOND = 800_000  # of the Hub, so that a download takes about as long as a training
_PIECE = 4_096  # bytes sent, and written, at once
_TEXTS = 16
_LATENTS = 512  # of the SAE that is downloaded


class Scenario(NamedTuple):
    """One kind of work, which ends with a bundle of this name."""

    name: str
    begin: Callable[[], None]  # forget what an earlier round has left outside of the cache
    run: Callable[[int, Path, bool], None]  # variant, cache, whether this is a round's first try


def start_hub(folder: Path) -> tuple[int, str]:
    """A slow Hub in a process of its own, which ends with this one: (a file descriptor to keep open, its address).

    To be called before anything that starts threads or reads HF_ENDPOINT is imported.
    """
    import hub_server

    said, say = os.pipe()
    held, hold = os.pipe()
    if not os.fork():
        os.close(hold)
        hub_server._PIECE = _PIECE
        with hub_server.HubServer(folder) as hub:
            hub._server.RequestHandlerClass = _slow(hub_server._Handler)
            os.write(say, hub.url.encode())
            os.close(say)
            os.read(held, 1)  # nothing, when the other end has gone
        os._exit(0)
    os.close(say)
    os.close(held)
    url = os.read(said, 1_000).decode()
    os.close(said)
    return hold, url


def _slow(handler: type) -> type:
    """The same handler on a slow line."""

    class Paced:
        def __init__(self, file):
            self._file = file

        def write(self, data: bytes) -> int:
            time.sleep(len(data) / BYTES_PER_SECOND)
            return self._file.write(data)

        def __getattr__(self, name: str):
            return getattr(self._file, name)

    class Slow(handler):
        def setup(self) -> None:
            super().setup()
            self.wfile = Paced(self.wfile)

    return Slow


def scenarios(folder: Path, home: Path) -> list[Scenario]:
    """Write models, texts and SAEs below `folder`, and return what can be done with them. `home` is the Hub client's own folder."""
    import killed_builds
    import tiny_models
    import torch
    from build_checks import write_corpus

    from sae_explore.building.build import build
    from sae_explore.building.build_request import BuildRequest
    from sae_explore.bundles import bundle_repo
    from sae_explore.bundles.pull import pull
    from sae_explore.files import hub_download
    from sae_explore.saes.sae import Sae
    from sae_explore.saes.sae_formats import save_sae
    from sae_explore.types import SaeSpec

    hub = folder / "hub" / "models" / "soak"
    paragraphs, texts = tiny_models.paragraphs(), folder / "texts.jsonl"
    write_corpus(texts, paragraphs, _TEXTS)
    model = tiny_models.save_model(tiny_models.tiny_gpt2(), tiny_models.byte_tokenizer(paragraphs), hub / "model")
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    spec = SaeSpec("topk", 32, _LATENTS, 5, HOOK, context=CONTEXT, prepend_bos=True)
    save_sae(Sae(spec, draw(32, _LATENTS), draw(_LATENTS), draw(_LATENTS, 32), draw(32)).checked(), hub / "sae")

    def small_pieces() -> None:
        killed_builds.small_steps()
        hub_download._SMALL = hub_download._PIECE = bundle_repo._PIECE = _PIECE

    def train(variant: int, cache: Path, first: bool) -> None:
        small_pieces()
        build(killed_builds.training("trained", str(model), str(texts), CONTEXT, hook=HOOK, seed=variant), cache=cache, force=first)

    def download(variant: int, cache: Path, first: bool) -> None:
        small_pieces()
        request = BuildRequest("downloaded", "soak/model", sae="soak/sae", texts=(str(texts),), context=CONTEXT)
        build(replace(request, max_texts=(None, _TEXTS - 4)[variant]), cache=cache, force=first)

    def fetch(variant: int, cache: Path, first: bool) -> None:
        small_pieces()
        pull(f"hf:soak/bundle-{variant}:pulled", cache=cache, force=True)

    return [
        Scenario("trained", lambda: None, train),
        Scenario("downloaded", lambda: shutil.rmtree(home / "hub", ignore_errors=True), download),
        Scenario("pulled", lambda: None, fetch),
    ]


def offer(folder: Path, cache: Path, variant: int) -> None:
    """Put the bundle that was trained in `cache` into the Hub, for others to fetch."""
    shutil.copytree(cache / "trained", folder / "hub" / "models" / "soak" / f"bundle-{variant}" / "pulled")


# ---- what is compared --------------------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, str]:
    """sha256 of a bundle's manifest and of every file of the generation that it names."""
    generation = folder / json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["folder"]
    files = [folder / "manifest.json", *(p for p in generation.rglob("*") if p.is_file())]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def left_over(cache: Path, name: str) -> list[str]:
    """What a finished build or download should not leave behind."""
    unfinished = [cache / f".build-{name}", cache / f".pull-{name}", *(cache / name).rglob("*.partial")]
    generations = list((cache / name).glob("g-*"))
    return [p.name for p in unfinished if p.exists()] + [f"{len(generations)} generations"] * (len(generations) > VARIANTS)


def signature(bundle) -> str:
    """What a reader sees of a bundle, in a word: some features, a text, the figures."""
    from sae_explore.json_output import feature_json, metrics_json, trace_json

    features = range(0, bundle.d_sae, max(1, bundle.d_sae // 4))
    seen = [metrics_json(bundle), trace_json(bundle.document_trace(1), bundle), *(feature_json(bundle.card(f)) for f in features)]
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def watch(cache: Path, expected: dict[str, dict[str, str]], stop: int, out: Path) -> None:
    """Read every bundle again and again, until something comes out of `stop`; then write what was seen.

    expected: generation -> signature, for each bundle. From when a bundle is first seen it must always be there.
    """
    from sae_explore.bundles.bundle import open_bundle
    from sae_explore.errors import ExploreError
    from sae_explore.files import bundle_files

    seen: Counter = Counter()
    problems: list[str] = []
    known: set[str] = set()
    while not select.select([stop], [], [], 0.05)[0]:
        names = bundle_files.bundle_names(cache)
        problems += [f"{name} has gone" for name in known - set(names)]
        known |= set(names)
        for name in names:
            try:
                bundle = open_bundle(name, cache=cache)
                bundle.verify()
                generation = bundle.manifest["folder"]
                if signature(bundle) != expected[name].get(generation):
                    problems.append(f"{name} {generation} holds something else")
                seen[f"{name} {generation}"] += 1
            except (ExploreError, OSError, ValueError, KeyError) as error:
                problems.append(f"{name}: {type(error).__name__}: {error}")
    partial = out.with_suffix(".partial")
    partial.write_text(
        json.dumps({"reads": sum(seen.values()), "seen": dict(sorted(seen.items())), "problems": list(dict.fromkeys(problems))[:20]})
    )
    os.replace(partial, out)
