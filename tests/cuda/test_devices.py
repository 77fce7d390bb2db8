"""Which device is chosen, and what a person is told."""

from pathlib import Path

import numpy as np
import pytest

from rwkv_chat.checkpoints import catalog
from rwkv_chat.commands.arguments import parser
from rwkv_chat.engine import cudalib, devices
from rwkv_chat.engine.select import load_model
from rwkv_chat.errors import EngineError, MemoryLimitError, UsageError
from rwkv_chat.settings import Settings
from tests.cuda.emulated import EmulatedGpu
from tests.cuda.test_parity import weights_of
from tests.kernels.oracle import make_spec

SPEC = make_spec(heads=1, vocab=70, ffn=64)
TENSORS = weights_of(SPEC, "bf16")


@pytest.fixture
def installed(gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch) -> EmulatedGpu:
    """An installation that was built with the kernels, on a machine with a GPU."""
    monkeypatch.setattr(cudalib, "library_path", lambda: gpu.path)
    cudalib.find_library.cache_clear()
    yield gpu  # type: ignore[misc]
    cudalib.find_library.cache_clear()


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installation that was built without them."""
    monkeypatch.setattr(cudalib, "library_path", lambda: tmp_path / "none.so")
    cudalib.find_library.cache_clear()
    yield  # type: ignore[misc]
    cudalib.find_library.cache_clear()


def chosen(device: str) -> str | None:
    backend = devices.open_on_gpu(device, "a model", SPEC, TENSORS)
    return backend.name if backend else None


def test_the_gpu_that_is_asked_for_is_used(installed: EmulatedGpu) -> None:
    installed.set_devices(2)
    assert chosen("cpu") is None
    assert chosen("auto") == chosen("cuda") == chosen("cuda:0") == "cuda:0 Emulated GPU 0"
    assert chosen("cuda:1") == "cuda:1 Emulated GPU 1"
    with pytest.raises(UsageError, match=r"no GPU 2. There are: cuda:0 .*; cuda:1 .* GiB free"):
        chosen("cuda:2")


def test_no_gpu_is_a_sentence(installed: EmulatedGpu) -> None:
    installed.set_devices(0)
    assert chosen("auto") is None
    with pytest.raises(EngineError, match="There is no GPU that CUDA can use"):
        chosen("cuda:0")
    assert devices.describe_gpus().endswith("Models run on the CPU.")


@pytest.mark.usefixtures("without")
def test_no_kernels_are_a_sentence() -> None:
    assert chosen("auto") is None
    with pytest.raises(UsageError, match="no CUDA kernels"):
        chosen("cuda")
    assert devices.describe_gpus() == "this build has no CUDA kernels; models run on the CPU"


def test_what_does_not_fit_is_refused_with_figures(installed: EmulatedGpu) -> None:
    installed.limit_memory(installed.memory_used + (1 << 18))
    assert chosen("auto") is None
    with pytest.raises(MemoryLimitError, match=r"a model needs .* GiB .* free on cuda:0"):
        chosen("cuda")


def test_the_gpus_are_described(installed: EmulatedGpu) -> None:
    installed.limit_memory(8 << 30)
    assert devices.describe_gpus().startswith("cuda:0 Emulated GPU 0 (")
    assert devices.describe_gpus().endswith(" of 8.0 GiB free)")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "", "cuda:1111"])
def test_other_names_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="use auto, cpu, cuda or cuda:N"):
        load_model("nowhere", device=name)
    with pytest.raises(SystemExit):
        parser().parse_args(["--device", name])
    assert "no device" in capsys.readouterr().err
    with pytest.raises(UsageError):
        Settings(device=name)


def test_a_model_opens_on_the_gpu_and_its_states_fit_the_cpu(installed: EmulatedGpu) -> None:
    assert installed.memory_used >= 0
    path = catalog.find(catalog.EMBEDDED)
    ours = load_model(path, "bf16", "cuda:0")
    theirs = load_model(path, "bf16")
    assert ours.backend.name == "cuda:0 Emulated GPU 0"
    assert ours.fingerprint == theirs.fingerprint
    ids = ours.tokenizer.encode("User: Hi\n\nAssistant:")
    logits, state = ours.forward(ids[:4])
    expected, _ = theirs.forward(ids)
    logits, _ = theirs.forward(ids[4:], state)
    # Only the CPU rounds activations to bfloat16.
    assert np.abs(logits - expected).max() < 0.01 * np.abs(expected).max()
    assert logits.argmax() == expected.argmax()
