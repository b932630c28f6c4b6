"""A changed residual stream against plain forward hooks on a model of its own."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from lab_checks import hooked

from sae_explore.errors import ModelError
from sae_explore.models.model import load_model
from sae_explore.models.splice import logits_from, next_token_losses, with_edit
from sae_explore.types import HookPoint

HOOKS = [HookPoint(b, s) for b in range(4) for s in ("pre", "post")]
IDS = torch.randint(1, 600, (3, 14), generator=torch.Generator().manual_seed(8))


@pytest.fixture(params=["gpt2", "llama"])
def kind(request):
    return request.param


@pytest.fixture
def full(request, kind):
    return request.getfixturevalue(f"{kind}_full")


@torch.inference_mode()
def plain(full) -> torch.Tensor:
    return full(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("hook", HOOKS, ids=lambda h: h.name)
def test_the_unedited_residual_gives_the_models_own_logits(request, kind, full, hook):
    residual = load_model(request.getfixturevalue(f"{kind}_folder"), hook=hook).residual(IDS)
    torch.testing.assert_close(logits_from(full, hook, IDS, residual), plain(full), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hook", HOOKS, ids=lambda h: h.name)
def test_edits_equal_forward_hooks(full, hook):
    def edit(x):
        return 0.5 * x.flip(-1) + 0.1

    with torch.inference_mode():
        found = with_edit(full, hook, edit)(input_ids=IDS, use_cache=False).logits
    expected = hooked(full, IDS, hook, edit)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, plain(full), atol=1e-2)


@pytest.mark.parametrize("hook", HOOKS, ids=lambda h: h.name)
def test_another_residual_equals_a_hook_that_puts_it_there(full, hook):
    residual = torch.randn(3, 14, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits_from(full, hook, IDS, residual), hooked(full, IDS, hook, lambda _: residual), rtol=1e-5, atol=1e-5)


def test_the_shared_model_is_unchanged(full):
    before, logits = {name: (id(m), m._forward_hooks.copy()) for name, m in full.named_modules()}, plain(full)
    with_edit(full, HOOKS[3], lambda x: 0 * x)(input_ids=IDS)
    logits_from(full, HOOKS[3], IDS, torch.zeros(3, 14, 32))
    assert {name: (id(m), m._forward_hooks.copy()) for name, m in full.named_modules()} == before
    assert torch.equal(plain(full), logits)


def test_many_edits_at_once_give_each_its_own_answer(full):
    def scaled(factor):
        return logits_from(full, HOOKS[3], IDS, torch.full((3, 14, 32), factor).cumsum(-1))

    factors = [0.1 * i for i in range(1, 9)]
    alone = [scaled(f) for f in factors]
    with ThreadPoolExecutor(8) as pool:
        for i, found in enumerate(pool.map(scaled, factors * 3)):
            assert torch.equal(found, alone[i % 8])


def test_a_block_that_is_not_there_is_refused(full):
    with pytest.raises(ModelError, match=r"the model has 4 blocks; there is no blocks\.4\.hook_resid_post"):
        logits_from(full, HookPoint(4), IDS, torch.zeros(3, 14, 32))


def test_losses_are_cross_entropies_of_the_next_token(full):
    logits = plain(full)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), IDS[:, 1:], reduction="none")
    torch.testing.assert_close(next_token_losses(logits, IDS), expected)
