"""What the tests of strangers' SAE files share."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from sae_explore.errors import ExploreError
from sae_explore.saes.sae import Sae
from sae_explore.saes.sae_formats import load_sae
from sae_explore.types import HookPoint

hostile = settings(derandomize=True, max_examples=60)


def read_or_refuse(path: Path) -> Sae | None:
    """The SAE, whole and finite; None where it was refused in one short sentence. Any other error is passed on."""
    try:
        sae = load_sae(path)
    except ExploreError as error:
        return None if "\n" not in str(error) and len(str(error)) < 900 else pytest.fail(str(error))
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.isfinite(getattr(sae, name)).all()
    assert HookPoint.parse(sae.spec.hook).name == sae.spec.hook if sae.spec.hook else True
    return sae
