"""The command line: python -m sae_explore COMMAND. Each command takes --json; without it, it prints for people."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sae_explore import command_line, export
from sae_explore.building.build_work import work_folder
from sae_explore.bundles import default_bundle
from sae_explore.bundles.bundle import Bundle, open_bundle
from sae_explore.bundles.bundle_checks import check_facts
from sae_explore.errors import ExploreError, InputError
from sae_explore.files import bundle_files
from sae_explore.json_output import feature_json, metrics_json, trace_json
from sae_explore.notebook.notes import SavedList, sae_of
from sae_explore.notebook.notes_store import FileStore
from sae_explore.strength import band_of
from sae_explore.terminal import clean, example_line, say, shown_token
from sae_explore.types import TextTrace
from sae_explore.wording import count_of, label_line


def main(argv: list[str]) -> None:
    """Parse and run one command."""
    args = _parser().parse_args(argv)
    args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(prog="python -m sae_explore", description="What do the features of a sparse autoencoder mean?")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.set_defaults(run=run)
        return sub

    build = command("build", _build, "make a bundle: model, SAE, activation store and everything shown from them")
    build.add_argument("name", help="name of the bundle; gpt2, gpt2-topk and demo are presets")
    again = build.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with an unfinished build (the default where the options are the same)")
    again.add_argument("--force", action="store_true", help="start from the beginning and replace the bundle")
    command_line.add_build_options(build)
    command("bundles", _bundles, "list the bundles")
    text = command("text", _text, "which features fire on a text")
    text.add_argument("bundle")
    text.add_argument("text", help="the text; - reads standard input")
    text.add_argument("--top", type=command_line.positive, default=20, metavar="N", help="features to print")
    feature = command("feature", _feature, "a feature's examples, lens tokens and neighbours")
    feature.add_argument("bundle")
    feature.add_argument("index", type=int)
    metrics = command("metrics", _metrics, "the SAE's figures")
    metrics.add_argument("bundle")
    metrics.add_argument("--recompute", action="store_true", help="measure again from the bundle's own files")
    drawn = command("map", _map, "draw the map of a bundle's features, which the page Map shows")
    drawn.add_argument("bundle")
    taken = command("export", _export, "take features along: one HTML file, a table of features, or what fires on a text")
    taken.add_argument("bundle")
    what = taken.add_mutually_exclusive_group(required=True)
    what.add_argument("--features", type=int, nargs="+", metavar="I", help="these features")
    what.add_argument("--list", metavar="NAME", help="a list that was made in the app")
    what.add_argument("--all", action="store_true", help="all features")
    what.add_argument("--text", metavar="TEXT", help="what fires on this text; - reads standard input")
    what.add_argument("--document", metavar="ID", help="what fires on this text of the bundle")
    taken.add_argument(
        "--format",
        metavar="FORMAT",
        help=f"{', '.join(export.FORMATS)}; of texts {' or '.join(export.TRACES)} (default: as the file's name ends)",
    )
    taken.add_argument("--out", required=True, type=Path, metavar="FILE", help="the file to write; one that is there is replaced")
    push = command("push", _push, "put a bundle into a repository of the Hugging Face Hub")
    push.add_argument("bundle")
    push.add_argument("repository", help="hf:USER/REPO; made if it is not there, as a private one")
    push.add_argument("--public", action="store_true", help="into a repository that everybody can read")
    pull = command("pull", _pull, "fetch bundles from a repository of the Hugging Face Hub")
    pull.add_argument("repository", help="hf:USER/REPO for all of its bundles, hf:USER/REPO:NAME for one")
    pull.add_argument("--revision", metavar="REVISION", help="branch, tag or commit (default: main)")
    pull.add_argument("--force", action="store_true", help="replace a bundle of the same name")
    bench = command("bench", _bench, "speed and memory, each beside its limit in the same run")
    bench.add_argument("bundle", nargs="?", help="also measure this bundle's cards and texts (default: the best there is)")
    bench.add_argument("--quick", action="store_true", help="smaller sizes, a minute instead of several")
    return parser


def _build(args: argparse.Namespace) -> None:
    name = bundle_files.check_name(args.name)
    cache = bundle_files.default_cache()
    if name in bundle_files.bundle_names(cache) and not args.force:
        if not args.resume:
            raise InputError(f"there is a bundle {name!r} already; --force builds it again, another name keeps it")
        if not work_folder(cache, name).is_dir():
            raise InputError(f"there is a bundle {name!r} and no unfinished build of it; --force builds it again")
    bundle = command_line.build_with_progress(name, args, force=args.force)
    default_bundle.make_default(cache, name)
    if args.json:
        command_line.print_json({"bundle": name, "folder": str(bundle.folder), **metrics_json(bundle)})
    else:
        say(f"bundle {name}: {bundle.d_sae:,} features over {bundle.n_documents:,} texts")
        _print_metrics(metrics_json(bundle))
        if bundle.map_xy is None:
            from sae_explore.features.feature_map import INSTALL

            say(f"no map of its features yet: {INSTALL} && python -m sae_explore map {name}")
        say("explore it: streamlit run streamlit_app.py")


def _bundles(args: argparse.Namespace) -> None:
    cache, rows = bundle_files.default_cache(), []
    for name in bundle_files.bundle_names(cache):
        try:
            m = bundle_files.read_manifest(cache / name)
            check_facts(m, name)
            rows.append(
                {
                    "bundle": name,
                    "model": m["model"]["display"],
                    "hook": m["hook"],
                    "latents": m["sae"]["d_sae"],
                    "texts": m["corpus"]["documents"],
                    "tokens": m["corpus"]["tokens"],
                    "explained_variance": m["metrics"]["explained_variance"],
                }
            )
        except ExploreError as error:  # the others are still listed
            rows.append({"bundle": name, "error": str(error)})
    if args.json:
        command_line.print_json(rows)
        return
    if not rows:
        say(f"no bundle in {cache}; build one: python -m sae_explore build gpt2")
    for row in rows:
        if "error" in row:
            say(f"{row['bundle']:12} {row['error']}")
        else:
            say(
                f"{row['bundle']:12} {row['model']}, {row['hook']}, {row['latents']:,} latents, {row['texts']:,} texts, "
                f"{row['tokens']:,} tokens, explained variance {row['explained_variance']:.3f}"
            )


def _text(args: argparse.Namespace) -> None:
    text = command_line.read_text(args.text)
    bundle = open_bundle(args.bundle)
    from sae_explore.bundles.tracer import Tracer  # imports torch

    trace = Tracer.load(bundle).trace(text)
    if args.json:
        command_line.print_json(trace_json(trace, bundle))
        return
    ignored = int(trace.ignored.sum())
    say(
        f"{len(trace.tokens)} tokens, {ignored} ignored (attention sinks and special tokens); "
        f"{bundle.name}, {trace.hook}, values in {trace.units}"
    )
    for hit in trace.hits()[: args.top]:
        maximum = float(bundle.maxima[hit.feature])
        share = f"{hit.max / maximum:4.0%} of its own maximum, {band_of(hit.max / maximum)}" if maximum else "silent on the corpus"
        where = shown_token(trace.tokens.texts[hit.position])
        say(f"{hit.feature:6}  max {hit.max:7.2f} ({share}) on {where} at {hit.position}, {hit.count} tokens  {bundle.label(hit.feature)}")


def _feature(args: argparse.Namespace) -> None:
    bundle = open_bundle(args.bundle)
    card = bundle.card(args.index)
    if args.json:
        command_line.print_json(feature_json(card))
        return
    row = card.row
    say(f"feature {args.index} of {bundle.name} ({bundle.manifest['model']['display']}, {bundle.hook}): {label_line(row)}")
    if not row["count"]:
        say("it never fires on this corpus")
    else:
        say(f"fires on {row['count']:,} tokens ({row['density']:.3%}), maximum {row['max']:.2f}, mean {row['mean']:.2f}")
    for example in card.top:
        say(example_line(example, maximum=row["max"]))
    say(f"promotes ({card.lens_convention} lens):", "  ".join(f"{shown_token(t.token)} {t.logit:+.2f}" for t in card.positive[:10]))
    say("suppresses:", "  ".join(f"{shown_token(t.token)} {t.logit:+.2f}" for t in card.negative[:10]))
    say("nearest by decoder cosine:", "  ".join(f"{f} ({c:.2f})" for f, c in card.neighbours[:5]))


def _metrics(args: argparse.Namespace) -> None:
    bundle = open_bundle(args.bundle)
    found = metrics_json(bundle)
    if args.recompute:
        from sae_explore.building.recompute import recompute_metrics  # imports torch

        with command_line.TerminalProgress(quiet=args.json) as progress:
            found |= recompute_metrics(bundle, report=lambda share: progress("metrics", "running the model", share))
    if args.json:
        command_line.print_json(found)
    else:
        _print_metrics(found)


def _map(args: argparse.Namespace) -> None:
    bundle = open_bundle(args.bundle)
    from sae_explore.features.feature_map import add_map  # imports torch and a library of its own when it draws

    with command_line.TerminalProgress(quiet=args.json) as bar:
        done = add_map(bundle, report=lambda text, share=None: bar("map", text, share))
    if args.json:
        command_line.print_json(done._asdict())
    elif done.state == "new":
        say(f"the map of bundle {done.bundle} is drawn: {count_of(done.features, 'feature')}, {done.bytes:,} bytes; the page Map shows it")
    else:
        say(f"bundle {done.bundle} has its map already; the page Map shows it")


def _export(args: argparse.Namespace) -> None:
    of_text = args.text is not None or args.document is not None
    allowed = export.TRACES if of_text else export.FORMATS
    form = (args.format or args.out.suffix.removeprefix(".")).lower()
    if form not in allowed:
        raise InputError(
            f"--format {form or '(none)'} is not one of {', '.join(allowed)}, the formats of {'a text' if of_text else 'features'}"
        )
    text = None if args.text is None else command_line.read_text(args.text)
    bundle = open_bundle(args.bundle)
    if of_text:
        size, what = export.write_trace(args.out, bundle, _trace_of(bundle, text, args.document), form), {}
    else:
        own = FileStore(bundle_files.default_cache(), bundle.name, sae=sae_of(bundle.manifest), d_sae=bundle.d_sae).read()
        saved = own.list_named(args.list) if args.list is not None else SavedList("")
        if saved is None:
            known = ", ".join(f"“{found.name}”" for found in own.lists) or "there are none"
            raise InputError(f"bundle {bundle.name!r} has no list “{args.list}”; lists: {known}")
        features = range(bundle.d_sae) if args.all else args.features if args.features is not None else saved.features
        features = [bundle.check_feature(feature) for feature in dict.fromkeys(features)]
        said = {entry.feature: entry.note for entry in saved.entries}
        size = export.write_features(args.out, bundle, features, form, notes=own, title=saved.name, note=saved.note, entry_notes=said)
        what = {"features": len(features)}
    if args.json:
        command_line.print_json({"bundle": bundle.name, "format": form, "file": str(args.out), "bytes": size, **what})
    else:
        say(f"{args.out}: {size:,} bytes" + (f", {count_of(what['features'], 'feature')}" if what else ""))


def _trace_of(bundle: Bundle, text: str | None, document: str | None) -> TextTrace:
    """An own text through the model, or a stored one, which needs none."""
    if text is not None:
        from sae_explore.bundles.tracer import Tracer  # imports torch

        return Tracer.load(bundle).trace(text)
    row = bundle.find_document(document)
    if row is None:
        raise InputError(f"bundle {bundle.name!r} has no text {document!r}; the column id of its documents.parquet names them")
    return bundle.document_trace(row)


def _print_metrics(m: dict) -> None:
    trained = f"{m['tokens_train']:,} tokens" if m["tokens_train"] else "not here"
    say(f"trained on           {trained}")
    say(f"evaluated on         {m['tokens_eval']:,} tokens: {m['evaluated_on']}")
    in_sample = (
        f" (in-sample, on training tokens: {m['explained_variance_train']:.3f})" if m["explained_variance_train"] is not None else ""
    )
    say(f"explained variance   {m['explained_variance']:.3f}{in_sample}")
    say(f"L0                   {m['l0']:.1f} of {m['latents']:,} latents; {m['dead']} never fire on the store's texts")
    say(
        f"cross entropy (nats) clean {m['ce_clean']:.3f}, with SAE {m['ce_sae']:.3f} ({m['ce_increase']:+.3f}), "
        f"mean-ablated {m['ce_mean']:.3f}, zero-ablated {m['ce_zero']:.3f}"
    )
    say(f"recovered            {m['ce_recovered']:.1%} of the loss of zero ablation, {m['ce_recovered_mean']:.1%} of mean ablation")


def _push(args: argparse.Namespace) -> None:
    from sae_explore.bundles.push import push

    done = push(args.bundle, args.repository, public=args.public, quiet=args.json or not sys.stderr.isatty())
    for note in done.notes:
        print(clean(f"note: {note}"), file=sys.stderr)
    if args.json:
        command_line.print_json(done._asdict())
        return
    what = f"bundle {done.bundle}: {count_of(done.files, 'file')}, {done.bytes / 1e6:,.1f} MB"
    say(f"{what}, in {done.url} ({'private' if done.private else 'public'})" if done.changed else f"{done.url} holds this bundle already")
    say(f"fetch it elsewhere: python -m sae_explore pull hf:{done.repo}:{done.bundle}")


def _pull(args: argparse.Namespace) -> None:
    from sae_explore.bundles.pull import pull

    with command_line.TerminalProgress(quiet=args.json) as bar:
        found = pull(args.repository, revision=args.revision, force=args.force, report=lambda text, share: bar("pull", text, share))
    if args.json:
        command_line.print_json([done._asdict() for done in found])
        return
    for done in found:
        how = {"new": "is here", "replaced": "was replaced", "unchanged": "was here already"}[done.state]
        say(
            f"bundle {done.bundle} {how}: {count_of(done.files, 'file')}, {done.bytes / 1e6:,.1f} MB, commit {done.commit[:12]} of hf:{done.repo}"
        )


def _bench(args: argparse.Namespace) -> None:
    from sae_explore.bench import run_bench

    anything = args.bundle or bundle_files.bundle_names(bundle_files.default_cache())
    bundle = command_line.best_bundle(args.bundle) if anything else None
    results = run_bench(bundle, quick=args.quick, report=None if args.json else say)
    if args.json:
        command_line.print_json(results)


if __name__ == "__main__":
    raise SystemExit(command_line.run(main))
