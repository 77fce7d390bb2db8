"""Steps with q4 weights: the equations on the weights that they stand for, equal to the bit however
ids are split, batched or computed."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_chat import _native
from rwkv_chat.models.spec import ModelSpec
from tests.kernels.oracle import ODD_SPECS, Tensors, as_q4, exact, make_any_tensors, spec_fields
from tests.seeded import REFERENCES

TOLERANCE = 0.08  # of the largest value; 8-bit matrices round activations, see test_q8.py
PROJECTIONS = ("receptance", "key", "value", "output", "gate")

ISAS = st.sampled_from(_native.isas())
THREADS = st.sampled_from((1, 2, 5))
ID_LISTS = st.lists(st.integers(0, 130), min_size=1, max_size=120)
every_generation = pytest.mark.parametrize("generation", ODD_SPECS)


@cache
def q4_tensors(generation: str) -> Tensors:
    """All matrices of the layers in 4 bits that can be, and the others in 8."""
    return as_q4(make_any_tensors(ODD_SPECS[generation], 1))


@cache
def model_of(generation: str, isa: str, threads: int) -> _native.Model:
    return _native.Model(spec_fields(ODD_SPECS[generation]), q4_tensors(generation), threads, isa)


def ids_of(spec: ModelSpec, count: int = 60) -> list[int]:
    return np.random.default_rng(0).integers(0, spec.vocab_size, count).tolist()


def distance(x: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(x - truth).max() / np.abs(truth).max())


@every_generation
def test_every_generation_equals_its_reference_on_those_weights(generation: str) -> None:
    spec = ODD_SPECS[generation]
    truth = REFERENCES[generation](spec, exact(spec, q4_tensors(generation)), torch.float64)
    rows, end = truth.forward(ids_of(spec), truth.new_state())
    for isa in _native.isas():
        logits, state = model_of(generation, isa, 2).forward(ids_of(spec), None)
        assert distance(logits, rows[-1].numpy()) < TOLERANCE, isa
        assert distance(state, end.numpy().ravel()) < TOLERANCE, isa


@every_generation
@settings(max_examples=20, deadline=None)
@given(isa=ISAS, ids=ID_LISTS, data=st.data())
def test_any_split_and_any_threads_give_the_same_bits(
    generation: str, isa: str, ids: list[int], data: st.DataObject
) -> None:
    logits, state = model_of(generation, isa, 1).forward(ids, None)
    cuts = data.draw(st.lists(st.integers(1, len(ids)), max_size=8))
    split_state = None
    for start, end in pairwise(sorted({0, *cuts, len(ids)})):
        model = model_of(generation, isa, data.draw(THREADS))
        split_logits, split_state = model.forward(ids[start:end], split_state)
    assert np.array_equal(logits, split_logits)
    assert np.array_equal(state, split_state)


@every_generation
@settings(max_examples=10, deadline=None)
@given(isa=ISAS, prefixes=st.lists(ID_LISTS, min_size=1, max_size=17), threads=THREADS)
def test_a_batch_gives_the_bits_of_single_steps(
    generation: str, isa: str, prefixes: list[list[int]], threads: int
) -> None:
    model = model_of(generation, isa, threads)
    states = np.stack([model.forward(prefix, None)[1] for prefix in prefixes])
    ids = [prefix[0] for prefix in prefixes]
    logits, new = model.forward_batch(ids, states)
    for i, token in enumerate(ids):
        single_logits, single_state = model_of(generation, isa, 1).forward([token], states[i])
        assert np.array_equal(logits[i], single_logits)
        assert np.array_equal(new[i], single_state)


@pytest.mark.parametrize("isa", _native.isas())
def test_every_byte_matters(isa: str) -> None:
    """Of a matrix without padding: each scale, offset and number is read."""
    spec = ODD_SPECS["7"]
    tensors = q4_tensors("7")
    ids = list(range(spec.vocab_size))
    before, _ = _native.Model(spec_fields(spec), tensors, 1, isa).forward(ids, None)
    for name, values in tensors.items():
        if values.dtype == np.uint8:
            changed = {**tensors, name: values ^ np.uint8(1)}
            after, _ = _native.Model(spec_fields(spec), changed, 1, isa).forward(ids, None)
            assert not np.array_equal(before, after), name


def test_shapes_and_layouts_are_checked() -> None:
    spec, tensors = ODD_SPECS["7"], q4_tensors("7")
    key, value = "blocks.0.att.key.weight", "blocks.0.ffn.value.weight"
    for wrong, reason in (
        ({key: tensors[key][:, :, 1:].copy()}, f"Tensor {key} has the shape"),
        ({value: tensors[value][:, 1:].copy()}, f"Tensor {value} has the shape"),
        ({key: tensors[value]}, f"Tensor {key} has its weights in the other layout"),
        ({value: tensors[key]}, f"Tensor {value} has its weights in the other layout"),
    ):
        with pytest.raises(ValueError, match=reason):
            _native.Model(spec_fields(spec), {**tensors, **wrong}, 1, "")
