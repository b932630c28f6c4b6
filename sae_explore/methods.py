"""What the two methods' commands share: which bundle, which features."""

from __future__ import annotations

import argparse
import hashlib
import json

import numpy as np

from sae_explore import bundle_files, command_line
from sae_explore.bundle import Bundle, open_bundle
from sae_explore.diverse import diverse_features
from sae_explore.errors import InputError

DIVERSE = 3  # features that a command shows unless told
SIMILARITY_LIMIT = 0.7  # |cosine| of decoder rows between chosen features stays below it


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """Options of a method's command: --bundle, --features, --top, --json, and those of `build`, which train first."""
    found = argparse.ArgumentParser(prog=f"python -m sae_explore.{module}", description=description)
    found.add_argument("--bundle", metavar="NAME", help="default: gpt2, else demo; with build options, the name of the bundle to make")
    found.add_argument("--features", type=int, nargs="+", metavar="I", help=f"default: {DIVERSE} diverse ones")
    found.add_argument("--top", type=int, default=10, metavar="K", help="examples or tokens to list")
    found.add_argument("--json", action="store_true", help="print JSON")
    command_line.add_build_options(found)
    return found


def bundle_of(args: argparse.Namespace) -> Bundle:
    """The bundle to look at; with build options one made from them (or gone on with, or the finished one of before)."""
    options = command_line.build_options(args)
    if not options and not args.preset:
        return command_line.best_bundle(args.bundle)
    key = json.dumps({"preset": args.preset, **options}, sort_keys=True, default=str)
    name = args.bundle or f"run-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    cache = bundle_files.default_cache()
    if (cache / name / bundle_files.MANIFEST).is_file():
        if args.bundle:
            raise InputError(f"there is a bundle {name!r} already; leave out the build options to look at it, or choose another --bundle")
        return open_bundle(name, cache=cache)
    return command_line.build_with_progress(name, args)


def chosen_features(bundle: Bundle, features: list[int] | None, n: int = DIVERSE) -> list[int]:
    """The features asked for, or diverse ones: clearly labelled, live, not dense, |decoder cosine| below the limit."""
    if features:
        return [bundle.check_feature(f) for f in features]
    confidence = bundle.features["confidence"].to_numpy().astype(np.float64)
    density = bundle.features["density"].to_numpy()
    usable = (density > 0) & (density <= bundle.manifest["features"]["dense_above"]) & (bundle.features["count"].to_numpy() >= 10)
    # Among equally clear labels the sharper direction first: the one whose lens stands out most.
    score = np.where(usable, confidence + 1e-3 * np.tanh(bundle.features["lens_kurtosis"].to_numpy() / 10), np.nan)
    return diverse_features(bundle.W_dec, score, n, limit=SIMILARITY_LIMIT)


def cosines(bundle: Bundle, features: list[int]) -> np.ndarray:
    """Decoder cosines between features, (n, n)."""
    rows = bundle.W_dec[features].astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows @ rows.T


def headline(bundle: Bundle) -> str:
    """What is looked at, in one line."""
    m = bundle.manifest
    figures = m["metrics"]
    return (f"{bundle.name}: {m['model']['display']}, {bundle.hook}, {bundle.d_sae:,} features over {bundle.n_documents:,} texts "
            f"({m['corpus']['tokens']:,} tokens); explained variance {figures['explained_variance']:.3f} on {figures['tokens_eval']:,} tokens, "
            f"{figures['evaluated_on']}")  # fmt: skip
