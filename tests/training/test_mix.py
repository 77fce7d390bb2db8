"""The compiled token shift and its gradients are those of torch."""

import shutil

import pytest
import torch

from rwkv_chat.training.mix import mix, mix_slowly

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="training needs g++")


@pytest.mark.parametrize("shape", [(1, 1, 16), (2, 7, 32), (3, 64, 16), (2, 130, 48)])
@pytest.mark.parametrize("count", [1, 6])
def test_it_equals_torch_forward_and_backward(shape: tuple[int, int, int], count: int) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator).requires_grad_()
    weights = [torch.randn(shape[-1], generator=generator).requires_grad_() for _ in range(count)]
    grads = [torch.randn(shape, generator=generator) for _ in range(count)]
    results = []
    for function in (mix, mix_slowly):
        out = function(x, weights)
        results.append((out, torch.autograd.grad(out, [x, *weights], grads)))
    (out, got), (expected_out, expected) = results
    for a, b in zip((*out, *got), (*expected_out, *expected), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_under_autocast_it_rounds_to_bfloat16_once() -> None:
    x, weight = torch.randn(2, 9, 32), torch.randn(32)
    with torch.autocast("cpu", torch.bfloat16):
        (got,) = mix(x, [weight])
    assert got.dtype == torch.bfloat16
    assert torch.allclose(got.float(), mix_slowly(x, [weight])[0], rtol=2**-8, atol=1e-6)


def test_a_gradient_in_bfloat16_gives_float32_gradients() -> None:
    x = torch.randn(2, 70, 32, requires_grad=True)
    weights = [torch.randn(32, requires_grad=True) for _ in range(2)]
    grads = [torch.randn(2, 70, 32).bfloat16() for _ in weights]
    with torch.autocast("cpu", torch.bfloat16):
        out = mix(x, weights)
    got = torch.autograd.grad(out, [x, *weights], grads)
    expected = torch.autograd.grad(
        mix_slowly(x, weights), [x, *weights], [g.float() for g in grads]
    )
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float32
        assert torch.allclose(a, b, atol=1e-3)


def test_widths_that_do_not_fit_the_lanes_and_other_types_go_through_torch() -> None:
    x, weight = torch.randn(1, 5, 10), torch.randn(10)
    assert torch.equal(mix(x, [weight])[0], mix_slowly(x, [weight])[0])
    assert mix(x.double(), [weight.double()])[0].dtype == torch.float64
