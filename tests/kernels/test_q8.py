"""Steps with q8 weights: the equations on the weights that they stand for, equal to the bit however
ids are split, batched or computed."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_chat import _native
from rwkv_chat.checkpoints.layout import converted_shapes
from rwkv_chat.checkpoints.q8 import pack_tiles, unpack_tiles
from rwkv_chat.models.spec import ModelSpec
from tests.kernels.oracle import (
    ODD_SPECS,
    Oracle,
    Tensors,
    as_q8,
    exact,
    make_any_tensors,
    make_spec,
    make_tensors,
    spec_fields,
)
from tests.seeded import REFERENCES

SPECS = {
    "two layers": make_spec(),
    "one layer, odd vocabulary": make_spec(
        layers=1, heads=3, vocab=33, ffn=40, ranks=(1, 2, 0, 17)
    ),
    "two groups to a row": make_spec(
        heads=3, head_size=64, vocab=257, ffn=300, ranks=(31, 33, 16, 65)
    ),
    "heads of 10": make_spec(heads=5, head_size=10, vocab=77),
    "one head of 7": make_spec(layers=3, heads=1, head_size=7, ffn=19, ranks=(1, 1, 1, 1)),
}
TOLERANCE = 0.08  # of the largest value; an activation is within 1/254 of the largest of its 32
LOSS = 0.1  # of the largest value; a weight is within 1/254 of the largest of its group

ISAS = st.sampled_from(_native.isas())
THREADS = st.sampled_from((1, 2, 5))
ID_LISTS = st.lists(st.integers(0, 130), min_size=1, max_size=120)
every_generation = pytest.mark.parametrize("generation", ODD_SPECS)


def q8_tensors(spec: ModelSpec, seed: int) -> Tensors:
    return as_q8(make_tensors(spec, seed))


@cache
def odd_model(generation: str, isa: str, threads: int) -> _native.Model:
    spec = ODD_SPECS[generation]
    return model_of(spec, as_q8(make_any_tensors(spec, 1)), isa, threads)


def ids_of(spec: ModelSpec, count: int = 60) -> list[int]:
    return np.random.default_rng(0).integers(0, spec.vocab_size, count).tolist()


def distance(x: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(x - truth).max() / np.abs(truth).max())


def model_of(spec: ModelSpec, tensors: Tensors, isa: str, threads: int = 1) -> _native.Model:
    return _native.Model(spec_fields(spec), tensors, threads, isa)


@pytest.mark.parametrize("name", SPECS)
def test_it_equals_the_equations_on_the_weights_it_stands_for(name: str) -> None:
    spec = SPECS[name]
    tensors = q8_tensors(spec, seed=1)
    ids = ids_of(spec)
    expected_logits, expected_state = Oracle(spec, tensors).forward(ids)
    for isa in _native.isas():
        logits, state = model_of(spec, tensors, isa, 2).forward(ids, None)
        assert distance(logits, expected_logits) < TOLERANCE, isa
        assert distance(state, expected_state) < TOLERANCE, isa


@every_generation
def test_every_generation_equals_its_reference_on_those_weights(generation: str) -> None:
    spec = ODD_SPECS[generation]
    tensors = as_q8(make_any_tensors(spec, 1))
    truth = REFERENCES[generation](spec, exact(spec, tensors), torch.float64)
    rows, end = truth.forward(ids_of(spec), truth.new_state())
    for isa in _native.isas():
        logits, state = model_of(spec, tensors, isa, 2).forward(ids_of(spec), None)
        assert distance(logits, rows[-1].numpy()) < TOLERANCE, isa
        assert distance(state, end.numpy().ravel()) < TOLERANCE, isa


@pytest.mark.parametrize("name", SPECS)
def test_it_is_near_the_weights_it_was_made_of(name: str) -> None:
    spec = SPECS[name]
    ids = ids_of(spec)
    expected, _ = Oracle(spec, make_tensors(spec, seed=1)).forward(ids)
    logits, _ = model_of(spec, q8_tensors(spec, seed=1), "").forward(ids, None)
    assert 1e-3 < distance(logits, expected) < LOSS


@pytest.mark.parametrize("isa", _native.isas())
def test_every_number_and_scale_matters(isa: str) -> None:
    spec = SPECS["two layers"]
    tensors = q8_tensors(spec, seed=2)
    ids = list(range(spec.vocab_size))
    before, _ = model_of(spec, tensors, isa).forward(ids, None)
    for name, values in tensors.items():
        if values.dtype != np.int8:
            continue
        if values.ndim == 3:
            numbers, scales = unpack_tiles(values, converted_shapes(spec, "f32")[name][1])
            smaller, larger = pack_tiles(numbers // 2, scales), pack_tiles(numbers, scales * 2)
            changes = {name: smaller}, {name: larger}
        else:
            scale = f"{name}.scale"
            changes = {name: values // 2}, {scale: tensors[scale] * np.float32(1.5)}
        for changed in changes:
            after, _ = model_of(spec, {**tensors, **changed}, isa).forward(ids, None)
            assert not np.array_equal(before, after), changed.keys()


@every_generation
@settings(max_examples=25)
@given(isa=ISAS, ids=ID_LISTS, data=st.data())
def test_any_split_and_any_threads_give_the_same_bits(
    generation: str, isa: str, ids: list[int], data: st.DataObject
) -> None:
    logits, state = odd_model(generation, isa, 1).forward(ids, None)
    cuts = data.draw(st.lists(st.integers(1, len(ids)), max_size=8))
    split_state = None
    for start, end in pairwise(sorted({0, *cuts, len(ids)})):
        model = odd_model(generation, isa, data.draw(THREADS))
        split_logits, split_state = model.forward(ids[start:end], split_state)
    assert np.array_equal(logits, split_logits)
    assert np.array_equal(state, split_state)


@every_generation
@settings(max_examples=15)
@given(isa=ISAS, prefixes=st.lists(ID_LISTS, min_size=1, max_size=17), threads=THREADS)
def test_a_batch_gives_the_bits_of_single_steps(
    generation: str, isa: str, prefixes: list[list[int]], threads: int
) -> None:
    states = np.stack(
        [odd_model(generation, isa, threads).forward(prefix, None)[1] for prefix in prefixes]
    )
    ids = [prefix[0] for prefix in prefixes]
    logits, new = odd_model(generation, isa, threads).forward_batch(ids, states)
    for i, token in enumerate(ids):
        single_logits, single_state = odd_model(generation, isa, 1).forward([token], states[i])
        assert np.array_equal(logits[i], single_logits)
        assert np.array_equal(new[i], single_state)


def test_integer_dot_products_change_nothing() -> None:
    if "avx512vnni" not in _native.isas():
        pytest.skip("this CPU has no AVX-512 VNNI")
    for ids in ([1], list(range(100))):
        for a, b in zip(
            odd_model("7", "avx512", 1).forward(ids, None),
            odd_model("7", "avx512vnni", 1).forward(ids, None),
            strict=True,
        ):
            assert np.array_equal(a, b)


def unaligned(values: np.ndarray) -> np.ndarray:
    """The same array, read-only, one byte off every alignment."""
    raw = np.frombuffer(b"\0" + values.tobytes(), dtype=np.uint8)[1:]
    return raw.view(values.dtype).reshape(values.shape)


@pytest.mark.parametrize("isa", _native.isas())
def test_tensors_may_be_unaligned_and_read_only(isa: str) -> None:
    spec = SPECS["heads of 10"]
    tensors = q8_tensors(spec, seed=3)
    shifted = {name: unaligned(values) for name, values in tensors.items()}
    assert not shifted["emb.weight.scale"].flags.aligned
    expected = model_of(spec, tensors, isa).forward(ids_of(spec, 9), None)
    found = model_of(spec, shifted, isa).forward(ids_of(spec, 9), None)
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])


@pytest.mark.parametrize("isa", _native.isas())
def test_what_is_not_finite_reaches_the_logits(isa: str) -> None:
    spec = SPECS["two layers"]
    for name in ("blocks.0.att.w0", "blocks.1.ffn.key.weight", "head.weight", "emb.weight.scale"):
        tensors = q8_tensors(spec, seed=5)
        if name.endswith("scale"):
            tensors[name][1, 0] = np.nan
        else:  # a tile begins with a scale
            tensors[name].reshape(-1)[:4].view(np.float32)[0] = np.nan
        logits, _ = model_of(spec, tensors, isa).forward([1, 2], None)
        assert np.isnan(logits).any(), name


def test_the_scales_are_checked() -> None:
    spec = SPECS["two layers"]
    tensors = q8_tensors(spec, 1)
    name = "blocks.0.ffn.value.weight.scale"
    scales = tensors.pop(name)
    with pytest.raises(ValueError, match=f"no tensor {name}"):
        model_of(spec, tensors, "")
    for wrong, reason in (
        (scales[:-1].copy(), "has the shape"),
        (scales.reshape(-1), "has the shape"),
        (scales.astype(np.int8), "must be float32"),
    ):
        with pytest.raises(ValueError, match=f"Tensor {name} {reason}"):
            model_of(spec, {**tensors, name: wrong}, "")


@pytest.mark.parametrize("name", ["blocks.0.att.key.weight", "emb.weight"])
def test_the_layout_is_checked(name: str) -> None:
    spec = SPECS["two layers"]
    tensors = q8_tensors(spec, 1)
    if tensors[name].ndim == 3:
        shape = converted_shapes(spec, "f32")[name][1]
        other, tensors[f"{name}.scale"] = unpack_tiles(tensors[name], shape)
    else:
        other = pack_tiles(tensors[name], tensors[f"{name}.scale"])
    with pytest.raises(ValueError, match=f"Tensor {name} has its weights in the other layout"):
        model_of(spec, {**tensors, name: other}, "")
    with pytest.raises(ValueError, match=f"Tensor {name} has the shape"):
        model_of(spec, {**tensors, name: tensors[name][:-1].copy()}, "")
