from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv_chat import _native
from rwkv_chat.checkpoints.converted import open_model
from rwkv_chat.models.rwkv7 import Rwkv7
from rwkv_chat.models.spec import ModelSpec
from tests.models.oracle import check_kernels, official_logits
from tests.seeded import converted_arrays, official, random_weights, shared_model, small_spec

SHAPES = [
    small_spec(n_layer=1),
    small_spec(n_layer=3, n_embd=48, head_size=16, vocab_size=70, ranks=(48, 5, 7, 3)),
    small_spec(n_layer=2, n_embd=128, head_size=64, vocab_size=90, ranks=(16, 16, 8, 32)),
    small_spec(n_layer=4, n_embd=64, head_size=8, vocab_size=256, n_ffn=96),
]


def tokens(spec: ModelSpec, count: int = 64) -> list[int]:
    return [int(n) for n in np.random.default_rng(5).integers(0, spec.vocab_size, count)]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, dict[str, np.ndarray]]]:
    """What the official package computes for each of SHAPES, with the models it read."""
    folder = tmp_path_factory.mktemp("oracle")
    jobs = []
    for number, spec in enumerate(SHAPES):
        path = folder / f"m{number}.pth"
        torch.save(official(random_weights(spec, number)), path)
        jobs.append((path, tokens(spec)))
    results = official_logits(jobs, RWKV_V7_ON="1")
    return [(path, logits) for (path, _), logits in zip(jobs, results, strict=True)]


@pytest.mark.parametrize("number", range(len(SHAPES)))
@pytest.mark.parametrize("form", ["sequence", "steps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_official_package(
    oracle: list[tuple[Path, dict[str, np.ndarray]]], number: int, form: str, dtype: torch.dtype
) -> None:
    path, expected = oracle[number]
    loaded = open_model(path, "f32")
    assert loaded.spec == SHAPES[number]
    model = Rwkv7(loaded.spec, loaded.tensors, dtype)
    state, ids = model.new_state(), tokens(loaded.spec)
    if form == "sequence":
        logits, _ = model.forward(ids, state)
    else:
        rows = []
        for token in ids:
            row, state = model.forward([token], state)
            rows.append(row)
        logits = torch.cat(rows)
    assert np.abs(expected[form]).max() > 0.5
    assert np.abs(logits.numpy() - expected[form]).max() <= 1e-5


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_the_kernels_equal_the_official_package(
    oracle: list[tuple[Path, dict[str, np.ndarray]]], number: int, isa: str
) -> None:
    path, expected = oracle[number]
    loaded = open_model(path, "f32")
    check_kernels(loaded, tokens(loaded.spec), expected, isa)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_published_logits_of_a_trained_model(dtype: torch.dtype) -> None:
    loaded = open_model(shared_model("tiny-rwkv-7v0-834K.pth"), "f32")
    model = Rwkv7(loaded.spec, loaded.tensors, dtype)
    logits, _ = model.forward([34, 105, 110], model.new_state())
    expected = np.load(shared_model("expected-logits-7v0-834K.npy"))
    assert np.abs(logits[-1].numpy() - expected).max() <= 1e-5


def test_a_state_is_a_value() -> None:
    spec = small_spec()
    model = Rwkv7(spec, converted_arrays(spec))
    _, state = model.forward([1, 2], model.new_state())
    before = state.clone()
    first, _ = model.forward([3, 4], state)
    again, _ = model.forward([3, 4], state)
    assert torch.equal(state, before)
    assert torch.equal(first, again)


def test_the_state_carries_all_that_was_read() -> None:
    spec = small_spec()
    model = Rwkv7(spec, converted_arrays(spec), torch.float64)
    whole, end = model.forward([5, 6, 7, 8], model.new_state())
    _, middle = model.forward([5, 6], model.new_state())
    rest, end_again = model.forward([7, 8], middle)
    assert torch.allclose(whole[2:], rest, atol=1e-12, rtol=0)
    assert torch.allclose(end, end_again, atol=1e-12, rtol=0)
    fresh, _ = model.forward([7, 8], model.new_state())
    assert (fresh - rest).abs().max() > 1e-2
