"""The compiled recurrence and its gradient against a float64 loop and finite differences."""

import shutil

import pytest
import torch

from rwkv_chat.errors import UsageError
from rwkv_chat.training.operator import recur, recur_slowly

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="training needs g++")

NAMES = "rwkvab"


def make_inputs(batch: int, steps: int, heads: int, seed: int = 0) -> list[torch.Tensor]:
    """Six inputs as a model makes them: decay in (0.545, 1), a and b from one unit vector."""
    generator = torch.Generator().manual_seed(seed)

    def noise() -> torch.Tensor:
        shape = (batch, steps, heads, 64)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    unit = torch.nn.functional.normalize(noise(), dim=-1)
    decay = torch.exp(-0.606531 * torch.sigmoid(noise()))
    return [noise(), decay, noise(), noise(), -unit, unit * torch.sigmoid(noise())]


@pytest.mark.parametrize("steps", [1, 15, 16, 17, 50])
def test_output_and_gradients_match_the_float64_loop(steps: int) -> None:
    inputs = make_inputs(2, steps, 3, seed=steps)
    exact = [x.clone().requires_grad_() for x in inputs]
    fast = [x.float().requires_grad_() for x in inputs]
    weight = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))
    expected, got = recur_slowly(*exact), recur(*fast)
    assert (got - expected).abs().max() <= 2e-6 * expected.abs().max() + 1e-5
    (expected * weight).sum().backward()
    (got * weight).sum().backward()
    for name, x, y in zip(NAMES, exact, fast, strict=True):
        error = (x.grad - y.grad).abs().max() / x.grad.abs().max().clamp_min(1e-6)
        assert error < 1e-5, f"gradient of {name}: relative error {error:.1e}"


def test_gradients_match_finite_differences() -> None:
    inputs = make_inputs(1, 20, 1, seed=7)
    weight = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(2)).double()
    fast = [x.float().requires_grad_() for x in inputs]
    (recur(*fast) * weight).sum().backward()
    generator = torch.Generator().manual_seed(3)
    for index, name in enumerate(NAMES):
        direction = torch.randn(inputs[0].shape, generator=generator, dtype=torch.float64)
        sides = []
        for step in (1e-5, -1e-5):
            moved = list(inputs)
            moved[index] = moved[index] + step * direction
            sides.append((recur_slowly(*moved) * weight).sum())
        expected = (sides[0] - sides[1]) / 2e-5
        got = (fast[index].grad.double() * direction).sum()
        assert abs(got - expected) < 1e-4 * max(abs(expected), 1.0), name


def test_threads_do_not_change_the_result() -> None:
    inputs = [x.float() for x in make_inputs(3, 33, 2)]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(recur(*inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_a_wrong_head_size_is_refused() -> None:
    x = torch.zeros(1, 2, 1, 32)
    with pytest.raises(UsageError, match="64"):
        recur(x, x, x, x, x, x)
