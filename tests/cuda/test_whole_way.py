"""Conversations whose model computes on a GPU: answered, kept, restored, and survived."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from rwkv_chat.chat.options import Options
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.chat.tree import Finish
from rwkv_chat.engine import cudalib
from rwkv_chat.engine.cudalib import CudaModel
from rwkv_chat.engine.model import Model
from rwkv_chat.engine.select import load_model
from tests.cuda.emulated import EmulatedGpu
from tests.tiny import Desk, model_file


@pytest.fixture
def installed(gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedGpu]:
    monkeypatch.setattr(cudalib, "library_path", lambda: gpu.path)
    cudalib.find_library.cache_clear()
    yield gpu
    cudalib.find_library.cache_clear()


def options(max_tokens: int = 12) -> Options:
    return Options(
        sampling=Sampling(temperature=1.0, top_p=0.9, seed=5), max_tokens=max_tokens, template="raw"
    )


@pytest.fixture
def model(installed: EmulatedGpu) -> Model:
    installed.reset()
    return load_model(model_file(), "bf16", "cuda", threads=1)


def test_an_answer_goes_on_from_its_kept_state(model: Model, tmp_path: Path) -> None:
    whole = Desk(tmp_path / "whole", model, options())
    at_once = whole.ask("Tell me")
    whole.close()
    first = Desk(tmp_path / "parts", model, options(5))
    begun = first.ask("Tell me")
    first.close()
    second = Desk(tmp_path / "parts", model, options(5))
    in_parts = second.go_on(begun.id, 7)
    second.close()
    assert in_parts.path()[-1].text == at_once.path()[-1].text
    assert len(at_once.path()[-1].ids) >= 12


def test_a_lost_gpu_ends_the_answer_and_the_cpu_takes_over(
    installed: EmulatedGpu, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path / "desk", model, options())
    found = desk.ask("Tell me")
    assert desk.failures == []
    steps = []

    def step(own: CudaModel, slots: Sequence[int], ids: Sequence[int]) -> list[int]:
        steps.append(ids)
        if len(steps) == 4:
            installed.lose_after(1)
        return real(own, slots, ids)

    real = CudaModel.step
    monkeypatch.setattr(CudaModel, "step", step)
    desk.ask("And then?", found.id)
    assert len(desk.failures) == 1
    assert desk.failures[0].startswith("The GPU failed")
    assert model.backend.name.startswith("cuda:0")
    again = desk.ask("Once more.", found.id)
    assert len(desk.failures) == 1
    assert "(the GPU was lost)" in model.backend.name
    assert again.path()[-1].finish is Finish.LENGTH
    desk.close()
