"""Messages of the program in the words of the pages."""

import ast
import re
from pathlib import Path

import pytest

import sae_explore
from sae_explore.wording import page_words, sentence

PACKAGE = Path(sae_explore.__file__).parent
OPTION = re.compile(r"--[a-z]")
TERMINAL = ("__main__", "command_line", "methods", "bench", "export", "push", "presets")  # pages do not show what these say
NOT_ON_PAGES = ("center", "device", "lr is", "--{what}")  # options that no page offers


def messages(file: Path) -> list[str]:
    """What the functions of a module raise or append to a list of warnings; what stands in braces is left as it is."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        said = (
            node.exc
            if isinstance(node, ast.Raise)
            else node
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "append"
            else None
        )
        for part in said.args if isinstance(said, ast.Call) else ():
            if isinstance(part, ast.Constant | ast.JoinedStr):
                found.append(ast.literal_eval(part) if isinstance(part, ast.Constant) else ast.unparse(part)[2:-1])
    return [text for text in found if isinstance(text, str)]


def test_no_message_of_a_build_or_a_bundle_names_an_option_on_a_page():
    files = [file for file in PACKAGE.rglob("*.py") if file.stem not in TERMINAL]
    named = [text for file in files for text in messages(file) if OPTION.search(text)]
    assert len(named) > 8
    left = [text for text in named if OPTION.search(page_words(text).partition("python -m")[0])]
    assert [text for text in left if not any(word in text for word in NOT_ON_PAGES)] == []


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("the files of x do not say where in the model it reads; say it with --hook", "choose the layer."),
        ("the SAE x reads a, but b was asked for; leave --hook out or choose another SAE", "leave the choice of the layer to it or choose another SAE."),
        ("try more texts, more --epochs, a larger --k or more --latents", "Try more texts, more epochs, a larger k or more latents."),
        ("a smaller --k, or a later layer (--hook)", "A smaller k, or a later layer."),
        ("try a smaller --batch-size, fewer --latents or a smaller --max-tokens", "Try a smaller batch, fewer latents or fewer tokens."),
        ("x is damaged; build it again with --force, or fetch it", "build it again, or fetch it."),
        ("it is old; build it again: python -m sae_explore build x --force --k 3", "build x --force --k 3."),
        ("--epochs is 0, but must be at least 1", "Epochs is 0, but must be at least 1."),
        ("--kind and --hooked are no options", "--kind and --hooked are no options."),
    ],
)  # fmt: skip
def test_options_become_words(said, shown):
    assert sentence(said).endswith(shown)


def test_a_sentence_begins_and_ends_as_one():
    assert sentence("it went wrong") == "It went wrong."
    assert sentence("It did.") == "It did."
    assert sentence("") == "."
