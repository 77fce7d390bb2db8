"""What the door of the compiled model refuses, and with which words."""

import numpy as np
import pytest

from rwkv_chat import _native
from tests.kernels.oracle import (
    ODD_SPECS,
    make_any_tensors,
    make_spec,
    make_tensors,
    spec_fields,
)

SPEC = make_spec()
STATE_SIZE = SPEC.n_layer * (2 + SPEC.head_size) * SPEC.n_embd


@pytest.fixture
def model() -> _native.Model:
    return _native.Model(spec_fields(SPEC), make_tensors(SPEC, 1), 2, "")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_layer", 0), ("n_layer", -1), ("n_layer", 2**40), ("n_embd", 0), ("head_size", 0),
        ("head_size", 24), ("head_size", 64), ("vocab_size", 0), ("vocab_size", 2**62),
        ("n_ffn", 0), ("rank_w", 0), ("rank_v", 0), ("group_norm_eps", float("nan")),
        ("group_norm_eps", 0.0), ("n_layer", "two"), ("group_norm_eps", "small"),
        ("n_att", 16), ("n_att", 64), ("generation", "8"), ("generation", 7),
    ],
)  # fmt: skip
def test_a_spec_that_makes_no_sense(field: str, value: object) -> None:
    fields = {**spec_fields(SPEC), field: value}
    with pytest.raises(ValueError, match=field):
        _native.Model(fields, make_tensors(SPEC, 1), 1, "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("generation", "field", "value"),
    [
        ("4", "n_att", 0), ("4", "n_ffn", 2**40), ("5.0", "head_size", 0), ("5.2", "head_size", 7),
        ("5.2", "n_att", 61), ("5.2", "group_norm_eps", 1.0), ("6", "rank_w", 0),
        ("6", "rank_mix", 0), ("6", "rank_mix", 2**40), ("7a", "rank_g", 0),
    ],
)  # fmt: skip
def test_sizes_that_a_generation_cannot_have(generation: str, field: str, value: object) -> None:
    spec = ODD_SPECS[generation]
    tensors = make_any_tensors(spec, 1)
    with pytest.raises(ValueError, match=field):
        _native.Model({**spec_fields(spec), field: value}, tensors, 1, "")  # type: ignore[dict-item]


def test_a_field_is_missing() -> None:
    fields = spec_fields(SPEC)
    del fields["rank_g"]
    with pytest.raises(ValueError, match="no field rank_g"):
        _native.Model(fields, make_tensors(SPEC, 1), 1, "")


every_generation = pytest.mark.parametrize("generation", ODD_SPECS)


@every_generation
def test_every_tensor_is_needed(generation: str) -> None:
    spec = ODD_SPECS[generation]
    tensors = make_any_tensors(spec, 1)
    for name in tensors:
        rest = {key: values for key, values in tensors.items() if key != name}
        with pytest.raises(ValueError, match=f"no tensor {name}\\."):
            _native.Model(spec_fields(spec), rest, 1, "")


@every_generation
def test_every_shape_is_checked(generation: str) -> None:
    spec = ODD_SPECS[generation]
    tensors = make_any_tensors(spec, 1)
    for name, values in tensors.items():
        for wrong in (values[:-1].copy(), values[..., :-1].copy(), values[None]):
            with pytest.raises(ValueError, match=f"Tensor {name} has the shape"):
                _native.Model(spec_fields(spec), {**tensors, name: wrong}, 1, "")


@every_generation
def test_tensors_of_another_generation_do_not_fit(generation: str) -> None:
    tensors = make_any_tensors(ODD_SPECS[generation], 1)
    for other in ODD_SPECS.keys() - {generation}:
        fields = {**spec_fields(ODD_SPECS[generation]), "generation": other}
        if (generation, other) in {("7a", "7"), ("5.1", "5.0")}:  # it has all that the other has
            _native.Model(fields, tensors, 1, "")
            continue
        with pytest.raises(ValueError, match=r"no tensor|has the shape|must lie"):
            _native.Model(fields, tensors, 1, "")


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((61, 32), dtype=np.float64), np.zeros((61, 32), dtype=np.int16),
        np.zeros((61, 32), dtype=">f4"), np.zeros((32, 61), dtype=np.float32).T,
        np.zeros((61, 64), dtype=np.float32)[:, ::2], "weights", None,
    ],
)  # fmt: skip
def test_a_tensor_of_another_kind(values: object) -> None:
    tensors = {**make_tensors(SPEC, 1), "head.weight": values}
    with pytest.raises(ValueError, match=r"Tensor head\.weight"):
        _native.Model(spec_fields(SPEC), tensors, 1, "")  # type: ignore[arg-type]


def test_a_vector_must_be_float32() -> None:
    tensors = make_tensors(SPEC, 1)
    tensors["blocks.0.att.w0"] = np.zeros(SPEC.n_embd, dtype=np.uint16)
    with pytest.raises(ValueError, match=r"blocks\.0\.att\.w0 must be float32"):
        _native.Model(spec_fields(SPEC), tensors, 1, "")


def test_unknown_kernels_are_named_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = make_tensors(SPEC, 1)
    with pytest.raises(ValueError, match=r'"sse9".*available: scalar'):
        _native.Model(spec_fields(SPEC), tensors, 1, "sse9")
    monkeypatch.setenv("RWKV_CHAT_ISA", "sse9")
    with pytest.raises(ValueError, match=r'RWKV_CHAT_ISA.*"sse9".*available: scalar'):
        _native.Model(spec_fields(SPEC), tensors, 1, "")
    monkeypatch.setenv("RWKV_CHAT_ISA", "scalar")
    assert _native.Model(spec_fields(SPEC), tensors, 1, "").isa == "scalar"


@pytest.mark.parametrize("token", [-1, SPEC.vocab_size, 2**40, -(2**40)])
def test_ids_outside_the_vocabulary(model: _native.Model, token: int) -> None:
    with pytest.raises(IndexError, match=f"{token} is outside the vocabulary of 61"):
        model.forward([1, token], None)
    with pytest.raises(IndexError, match=str(token)):
        model.forward_batch([token], np.zeros((1, STATE_SIZE), dtype=np.float32))


def test_no_ids(model: _native.Model) -> None:
    with pytest.raises(ValueError, match="at least one"):
        model.forward([], None)
    with pytest.raises(ValueError, match="at least one"):
        model.forward_batch([], np.zeros((0, STATE_SIZE), dtype=np.float32))


@pytest.mark.parametrize(
    "state",
    [
        np.zeros(STATE_SIZE - 1, dtype=np.float32), np.zeros(STATE_SIZE + 1, dtype=np.float32),
        np.zeros((1, STATE_SIZE), dtype=np.float32), np.zeros(STATE_SIZE, dtype=np.float64),
        np.zeros(STATE_SIZE, dtype=np.uint16), np.zeros(2 * STATE_SIZE, dtype=np.float32)[::2],
    ],
)  # fmt: skip
def test_a_state_of_another_size_or_type(model: _native.Model, state: np.ndarray) -> None:
    with pytest.raises(ValueError, match="state must be a"):
        model.forward([1], state)


def test_threads(model: _native.Model) -> None:
    assert model.threads == 2
    tensors = make_tensors(SPEC, 1)
    assert _native.Model(spec_fields(SPEC), tensors, 0, "").threads >= 1
    with pytest.raises(ValueError, match="threads"):
        _native.Model(spec_fields(SPEC), tensors, 10_000, "")


def test_active_channels_are_counted(model: _native.Model) -> None:
    assert model.active_channels == 0
    model.forward(list(range(20)), None)
    share = model.active_channels / (20 * SPEC.n_layer * SPEC.n_ffn)
    assert 0.2 < share < 0.8
