"""The product on oneDNN's kernel against float64, and where it is left to PyTorch."""

import pytest
import torch
import torch.nn.functional as F

from sae_explore.models import products
from sae_explore.models.products import linear


@pytest.mark.parametrize("shape", [(7, 33), (2, 5, 33), (1, 33), (0, 33), (3, 0, 33)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("columns", [False, True])  # W as stored, or the transpose of a matrix
def test_it_is_the_product(shape, bias, columns):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    W = torch.randn(33, 101, generator=generator).T if columns else torch.randn(101, 33, generator=generator)
    b = torch.randn(101, generator=generator) if bias else None
    expected = F.linear(x.double(), W.double(), None if b is None else b.double())
    found = linear(x, W, b)
    assert found.shape == (*shape[:-1], 101)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_rows_that_are_not_contiguous():
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)).T
    W = torch.randn(9, 80, generator=torch.Generator().manual_seed(1))[:, ::2]
    torch.testing.assert_close(linear(x, W), F.linear(x, W), rtol=1e-5, atol=1e-5)


def test_gradients_pass():
    x = torch.randn(4, 6, requires_grad=True)
    W = torch.randn(5, 6)
    linear(x, W).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * (x.detach() @ W.T) @ W)


def test_other_precisions_and_other_versions_of_pytorch(monkeypatch):
    x, W = torch.randn(4, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    assert linear(x, W).dtype == torch.float64
    assert linear(x.bfloat16(), W.bfloat16()).dtype == torch.bfloat16
    monkeypatch.setattr(products, "_ONEDNN", None)
    assert torch.equal(linear(x.float(), W.float()), F.linear(x.float(), W.float()))


def test_autocast_keeps_its_say():
    x, W = torch.randn(4, 6), torch.randn(5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, W).dtype == torch.bfloat16


def test_a_model_of_gpt2s_kind_computes_the_same(gpt2_folder):
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    model = AutoModelForCausalLM.from_pretrained(gpt2_folder).eval()
    ids = torch.arange(1, 40)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        weights = dict(model.state_dict())
        products.use_in(model)
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert model.state_dict().keys() == weights.keys()
    kinds = {type(m).forward for m in model.modules() if isinstance(m, torch.nn.Linear | Conv1D)}
    assert len(kinds) == 2
    assert not kinds & {torch.nn.Linear.forward, Conv1D.forward}
