"""What the tests of texts share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sae_explore.errors import InputError
from sae_explore.texts.dataset import load_texts


def write_jsonl(path: Path, rows: list) -> str:
    """Write rows as JSON lines; the path as a specification."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts(*specs: str, **options) -> list[str]:
    return [document.text for document in load_texts(specs, **options).documents]


def refusal(spec: str, error: type[Exception] = InputError, **options) -> str:
    """The message, one line long, with which a specification is refused."""
    with pytest.raises(error) as caught:
        load_texts([spec], **options)
    message = str(caught.value)
    assert "\n" not in message
    return message
