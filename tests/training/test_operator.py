"""The compiled recurrence and its gradient against a float64 loop and finite differences.

The CUDA kernels run on a GPU where there is one, and everywhere on a GPU made of fibers.
"""

import ctypes
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rwkv_chat.errors import UsageError
from rwkv_chat.training import compiled, operator
from rwkv_chat.training.operator import recur, recur_from, recur_from_slowly, recur_slowly

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="training needs g++")

NAMES = (*"rwkvab", "state")
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA source as a C++ compiler reads it, with `tests/emulation/cuda_runtime.h`."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the emulated GPU runs on x86-64 only")
    target = tmp_path_factory.mktemp("emulated") / "wkv7.so"
    flags = ["-std=c++17", "-O2", "-Wno-unknown-pragmas", "-shared", "-fPIC", "-pthread"]
    include = f"-I{Path(__file__).parents[1]}/emulation"
    source = str(compiled.source("wkv7.cu"))
    subprocess.run(
        ["g++", "-x", "c++", *flags, include, "-o", str(target), source], check=True, text=True
    )
    return ctypes.CDLL(str(target))


@pytest.fixture(params=["cpu", "emulated", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where the tensors of a test lie; "emulated" runs the CUDA kernels on tensors of the CPU."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("there is no GPU that torch can use")
        return torch.device("cuda")
    if request.param == "emulated":
        kernels = compiled.CudaKernels(request.getfixturevalue("emulated_library"))

        @contextmanager
        def no_stream(device: torch.device) -> Iterator[ctypes.c_void_p]:
            yield ctypes.c_void_p(None)

        monkeypatch.setattr(compiled, "_current", no_stream)
        monkeypatch.setattr(operator, "kernels_for", lambda device: kernels)
    return torch.device("cpu")


def make_inputs(batch: int, steps: int, heads: int, seed: int = 0) -> list[Tensor]:
    """Six inputs as a model makes them: decay in (0.545, 1), a and b from one unit vector."""
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        shape = (batch, steps, heads, 64)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    unit = torch.nn.functional.normalize(noise(), dim=-1)
    decay = torch.exp(-0.606531 * torch.sigmoid(noise()))
    return [noise(), decay, noise(), noise(), -unit, unit * torch.sigmoid(noise())]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaves(tensors: list[Tensor], kind: torch.dtype, device: torch.device) -> list[Tensor]:
    """Copies that collect gradients."""
    return [x.detach().to(device, kind).requires_grad_() for x in tensors]


def compare_gradients(exact: list[Tensor], fast: list[Tensor], bound: float = 1e-5) -> None:
    for name, x, y in zip(NAMES, exact, fast, strict=False):
        expected, got = x.grad.cpu(), y.grad.cpu()
        error = (expected - got).abs().max() / expected.abs().max().clamp_min(1e-6)
        assert error < bound, f"gradient of {name}: relative error {error:.1e}"


@pytest.mark.parametrize("steps", [1, 15, 16, 17, 50])
def test_output_and_gradients_match_the_float64_loop(steps: int, device: torch.device) -> None:
    inputs = make_inputs(2, steps, 2, seed=steps)
    exact = leaves(inputs, torch.float64, torch.device("cpu"))
    fast = leaves(inputs, torch.float32, device)
    weight = draw(*inputs[0].shape, seed=1)
    expected, got = recur_slowly(*exact), recur(*fast)
    assert (got.cpu() - expected).abs().max() <= 2e-6 * expected.abs().max() + 1e-5
    (expected * weight).sum().backward()
    (got * weight.to(device)).sum().backward()
    compare_gradients(exact, fast)


@pytest.mark.parametrize("steps", [1, 16, 33])
@pytest.mark.parametrize("each", [True, False], ids=["a state for each", "one for all"])
def test_both_states_match_the_float64_loop(steps: int, each: bool, device: torch.device) -> None:
    """Also which index of the state is the value and which the key."""
    inputs = [
        *make_inputs(2, steps, 3, seed=steps),
        draw(*((2,) if each else ()), 3, 64, 64, seed=4),
    ]
    exact = leaves(inputs, torch.float64, torch.device("cpu"))
    fast = leaves(inputs, torch.float32, device)
    weight, last_weight = draw(*inputs[0].shape, seed=1), draw(2, 3, 64, 64, seed=2)
    expected, expected_last = recur_from_slowly(*exact)
    got, last = recur_from(*fast)
    assert (got.cpu() - expected).abs().max() <= 2e-6 * expected.abs().max() + 1e-5
    assert (last.cpu() - expected_last).abs().max() <= 2e-6 * expected_last.abs().max() + 1e-5
    ((expected * weight).sum() + (expected_last * last_weight).sum()).backward()
    on_device = (got * weight.to(device)).sum() + (last * last_weight.to(device)).sum()
    on_device.backward()
    compare_gradients(exact, fast)
    assert fast[6].grad.shape == inputs[6].shape


def test_the_last_state_alone_has_gradients(device: torch.device) -> None:
    inputs = [*make_inputs(1, 18, 1, seed=3), draw(1, 64, 64, seed=4)]
    exact = leaves(inputs, torch.float64, torch.device("cpu"))
    fast = leaves(inputs, torch.float32, device)
    (recur_from_slowly(*exact)[1] ** 2).sum().backward()
    (recur_from(*fast)[1] ** 2).sum().backward()
    exact[0].grad = torch.zeros_like(exact[0])  # what is read does not change the state
    compare_gradients(exact, fast)


@pytest.mark.parametrize("cut", [1, 16, 20])
def test_one_call_equals_two_with_the_state_passed(cut: int, device: torch.device) -> None:
    inputs = [*make_inputs(2, 37, 2, seed=5), draw(2, 64, 64, seed=6)]
    weight = draw(2, 37, 2, 64, seed=1).float().to(device)
    last_weight = draw(2, 2, 64, 64, seed=2).float().to(device)
    whole, halves = (leaves(inputs, torch.float32, device) for _ in range(2))
    y, last = recur_from(*whole)
    ((y * weight).sum() + (last * last_weight).sum()).backward()
    *parts, state = halves
    y1, middle = recur_from(*(x[:, :cut] for x in parts), state)
    y2, end = recur_from(*(x[:, cut:] for x in parts), middle)
    joined = torch.cat([y1, y2], 1)
    assert torch.equal(joined, y)
    assert torch.equal(end, last)
    ((joined * weight).sum() + (end * last_weight).sum()).backward()
    compare_gradients(whole, halves)


@pytest.mark.filterwarnings("ignore:Input #")  # about float32
def test_gradients_match_finite_differences(device: torch.device) -> None:
    """The result is linear in every single number, so that wide differences are exact."""
    inputs = leaves(
        [*make_inputs(1, 3, 1, seed=7), draw(1, 1, 64, 64, seed=8)], torch.float32, device
    )
    assert torch.autograd.gradcheck(
        recur_from, inputs, eps=0.05, atol=1e-3, rtol=1e-3, fast_mode=True
    )


def test_the_loop_matches_finite_differences_for_heads_of_any_size() -> None:
    inputs = [x[..., :5].clone() for x in make_inputs(2, 4, 2)]
    inputs.append(draw(2, 5, 5, seed=1))
    assert torch.autograd.gradcheck(recur_from_slowly, [x.requires_grad_() for x in inputs])


def test_bfloat16_is_read_as_it_is(device: torch.device) -> None:
    """Any of the inputs may be bfloat16; the rounding is that of the input alone."""
    inputs = make_inputs(1, 20, 2, seed=9)
    halves = [x.bfloat16() if i % 2 == 0 else x.float() for i, x in enumerate(inputs)]
    expected = recur(*(x.float().to(device) for x in halves))
    leaves = [x.to(device).requires_grad_() for x in halves]
    got = recur(*leaves)
    assert torch.equal(got, expected)
    got.sum().backward()
    assert [x.grad.dtype for x in leaves] == [x.dtype for x in halves]


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


@pytest.mark.parametrize("shape", [(64, 64), (2, 64, 64), (3, 1, 64, 64), (1, 1, 64, 32)])
def test_a_state_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    inputs = [x.float() for x in make_inputs(2, 2, 1)]
    for run in (recur_from, recur_from_slowly):
        with pytest.raises(UsageError, match="The state is"):
            run(*inputs, torch.zeros(shape))


def test_no_compiler_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *arguments, **options: None)
    compiled._cpu.cache_clear()
    with pytest.raises(UsageError, match=r"C\+\+ compiler"):
        compiled.kernels_for(torch.device("cpu"))
    with pytest.raises(UsageError, match="nvcc"):
        compiled._cuda(9, 0)
    compiled._cpu.cache_clear()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_cuda_kernels_compile_without_warnings_or_spills(
    architecture: int, tmp_path: Path
) -> None:
    compiler = compiled.nvcc()
    if compiler is None:
        pytest.skip("there is no nvcc to compile with")
    known = subprocess.run([compiler, "--list-gpu-arch"], capture_output=True, text=True).stdout
    if f"compute_{architecture}" not in known.split():
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    strict = ["-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror", "-Xptxas", "-v"]
    done = subprocess.run(
        [
            *(compiler, *compiled.CUDA_FLAGS, *strict, f"-arch=sm_{architecture}"),
            *("-o", str(tmp_path / "wkv7.so"), str(compiled.source("wkv7.cu"))),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr + done.stdout)
    assert len(spills) == 4, "forward and backward"
    assert set(spills) == {"0"}
