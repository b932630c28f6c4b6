"""What the two methods' commands share: which bundle, which features."""

from __future__ import annotations

import argparse
import hashlib
import json

from sae_explore import command_line
from sae_explore.bundles.bundle import Bundle, open_bundle
from sae_explore.errors import InputError
from sae_explore.features.diverse import clarity, diverse_features
from sae_explore.files import bundle_files

DIVERSE = 3  # features that a command shows unless told


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """Options of a method's command: --bundle, --features, --top, --json, and those of `build`, which train first."""
    found = command_line.Parser(prog=f"python -m sae_explore.{module}", description=description)
    found.add_argument("--bundle", metavar="NAME", help="default: what opens first; with build options, the name of the bundle to make")
    found.add_argument("--features", type=int, nargs="+", metavar="I", help=f"default: {DIVERSE} diverse ones")
    found.add_argument("--top", type=command_line.positive, default=10, metavar="K", help="examples or tokens to list")
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
    """The features asked for, or diverse ones: clearly labelled, live, neither dense nor trivial, |decoder cosine| below the limit.

    InputError for a feature that is not there, and where no feature is fit to be shown unasked.
    """
    if features:
        return [bundle.check_feature(f) for f in features]
    found = diverse_features(bundle.W_dec, clarity(bundle.features, bundle.manifest["features"]["dense_above"]), n)
    if not found:
        raise InputError(f"no feature of bundle {bundle.name!r} fires often enough to be chosen for you; name some with --features")
    return found


def headline(bundle: Bundle) -> str:
    """What is looked at, in one line."""
    m = bundle.manifest
    figures = m["metrics"]
    return (
        f"{bundle.name}: {m['model']['display']}, {bundle.hook}, {bundle.d_sae:,} features over {bundle.n_documents:,} texts "
        f"({m['corpus']['tokens']:,} tokens); explained variance {figures['explained_variance']:.3f} "
        f"on {figures['tokens_eval']:,} tokens, {figures['evaluated_on']}"
    )
