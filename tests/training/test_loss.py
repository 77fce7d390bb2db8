"""The loss and its gradient are those of torch, in both types and for any number of columns."""

import shutil

import pytest
import torch
from torch import Tensor

from rwkv_chat.training import loss as under_test
from rwkv_chat.training.compiled import pointwise
from rwkv_chat.training.loss import cross_entropy

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="training needs g++")


def _case(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + columns)
    x = torch.randn(rows, 16, generator=generator)
    head = torch.randn(columns, 16, generator=generator)
    targets = torch.randint(0, columns, (rows,), generator=generator)
    return x, head, targets, torch.rand(rows, generator=generator)


@pytest.mark.parametrize("columns", [1, 7, 16, 50, 333])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_loss_and_its_gradients_are_those_of_torch(kind: torch.dtype, columns: int) -> None:
    x, head, targets, weights = _case(700, columns)
    x, head = x.to(kind).requires_grad_(), head.to(kind).float().requires_grad_()
    loss = cross_entropy(x, head, targets, weights)
    loss.backward()
    got = x.grad.float(), head.grad.clone()
    exact = x.detach().float().requires_grad_()
    head.grad = None
    plain = torch.nn.functional.cross_entropy(exact @ head.T, targets, reduction="none")
    expected = (plain * weights).sum()
    expected.backward()
    narrow = kind == torch.bfloat16
    assert loss.item() == pytest.approx(expected.item(), rel=3e-3 if narrow else 1e-5, abs=1e-4)
    for a, b in zip(got, (exact.grad, head.grad), strict=True):
        assert (a - b).abs().max() <= (0.02 if narrow else 1e-5) * b.abs().max() + 1e-6


@pytest.mark.parametrize("spread", [1.0, 30.0, 1e4])
def test_extreme_logits_are_weighed_as_torch_weighs_them(spread: float) -> None:
    logits = torch.randn(40, 100, generator=torch.Generator().manual_seed(1)) * spread
    targets, weights = torch.arange(40), torch.linspace(0, 1, 40)
    expected_loss, expected = under_test._in_torch(logits.clone(), targets, weights)
    loss = pointwise().cross_entropy(logits, targets, weights)
    assert loss == pytest.approx(expected_loss.item(), rel=1e-5)
    assert torch.allclose(logits, expected, atol=1e-6)
