"""The library that other programs import."""

from pathlib import Path

import numpy as np
import pytest

import rwkv_chat
from rwkv_chat.errors import CheckpointError, SnapshotError, UsageError
from tests.tiny import model_file


@pytest.fixture
def model() -> rwkv_chat.Model:
    return rwkv_chat.load_model(model_file(), threads=1)


def test_forward_returns_logits_and_a_new_state(model: rwkv_chat.Model) -> None:
    logits, state = model.forward(list(b"Hello"), None)
    assert (logits.shape, logits.dtype) == ((256,), np.float32)
    assert isinstance(state, rwkv_chat.State)
    before = state.data.copy()
    _, after = model.forward([65], state)
    np.testing.assert_array_equal(state.data, before)
    assert not np.array_equal(after.data, before)
    assert (state.tokens, after.tokens) == (5, 6)
    with pytest.raises(ValueError, match="read-only"):
        state.data[0] = 1


def test_a_batch_is_the_same_as_one_by_one(model: rwkv_chat.Model) -> None:
    _, first = model.forward(list(b"One"), None)
    _, second = model.forward(list(b"Another"), None)
    logits, states = model.forward_batch([1, 2, 3], [first, second, None])
    assert logits.shape == (3, 256)
    for row, token, state, after in zip(
        logits, [1, 2, 3], [first, second, None], states, strict=True
    ):
        alone, alone_state = model.forward([token], state)
        np.testing.assert_array_equal(row, alone)
        np.testing.assert_array_equal(after.data, alone_state.data)
    before = states[0].logits.copy()
    logits[0] = 0
    np.testing.assert_array_equal(states[0].logits, before)


def test_a_state_survives_a_file(model: rwkv_chat.Model, tmp_path: Path) -> None:
    _, state = model.forward(list(b"Hello"), None)
    state.save(tmp_path / "a.state")
    loaded = model.load_state(tmp_path / "a.state")
    np.testing.assert_array_equal(loaded.data, state.data)
    np.testing.assert_array_equal(loaded.logits, state.logits)
    assert loaded.tokens == 5
    np.testing.assert_array_equal(model.forward([66], loaded)[0], model.forward([66], state)[0])


@pytest.mark.parametrize("weights", ["bf16", "q8"])
def test_a_state_of_other_weights_is_refused(
    model: rwkv_chat.Model, tmp_path: Path, weights: str
) -> None:
    _, state = model.forward(list(b"Hello"), None)
    state.save(tmp_path / "a.state")
    other = rwkv_chat.load_model(model_file(), weights=weights, threads=1)
    with pytest.raises(SnapshotError, match="different weights"):
        other.load_state(tmp_path / "a.state")
    with pytest.raises(UsageError, match=f"another model than tiny with {weights} weights"):
        other.forward([1], state)
    _, state = other.forward(list(b"Hello"), None)
    state.save(tmp_path / "a.state")
    with pytest.raises(SnapshotError, match="different weights"):
        model.load_state(tmp_path / "a.state")


def test_the_tokenizer_goes_both_ways(model: rwkv_chat.Model) -> None:
    ids = model.tokenizer.encode("Grüße")
    assert model.tokenizer.decode(ids) == "Grüße"


@pytest.mark.parametrize("ids", [[], [256], [-1]])
def test_bad_ids_are_refused(model: rwkv_chat.Model, ids: list[int]) -> None:
    with pytest.raises(UsageError):
        model.forward(ids, None)


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="device"):
        rwkv_chat.load_model(model_file(), device="cuda")
    with pytest.raises(UsageError, match="weights"):
        rwkv_chat.load_model(model_file(), weights="q2")
    with pytest.raises(UsageError, match="threads"):
        rwkv_chat.load_model(model_file(), threads=0)
    with pytest.raises(CheckpointError, match="missing"):
        rwkv_chat.load_model(tmp_path / "missing.pth")


def test_the_door_names_what_it_has() -> None:
    assert set(rwkv_chat.__all__) == set(dir(rwkv_chat))
    with pytest.raises(AttributeError):
        rwkv_chat.nothing  # noqa: B018
