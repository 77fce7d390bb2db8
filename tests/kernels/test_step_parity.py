"""The compiled step against float64 numpy, and each instruction set against the next."""

import numpy as np
import pytest
import torch

from rwkv_chat import _native
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.state import StateLayout
from tests.kernels.oracle import (
    ODD_SPECS,
    Oracle,
    make_any_tensors,
    make_spec,
    make_tensors,
    spec_fields,
)
from tests.seeded import REFERENCES, spec_of

SPECS = {
    "two layers": make_spec(),
    "one layer, odd vocabulary": make_spec(
        layers=1, heads=3, vocab=33, ffn=40, ranks=(1, 2, 0, 17)
    ),
    "heads of 64": make_spec(heads=3, head_size=64, vocab=257, ffn=300, ranks=(31, 33, 16, 65)),
    "heads of 10": make_spec(heads=5, head_size=10, vocab=77),
    "one head of 7": make_spec(layers=3, heads=1, head_size=7, ffn=19, ranks=(1, 1, 1, 1)),
}
# Of the largest value. Float32 rounding over this many layers leaves under 1e-6; for bf16 weights
# activations are rounded to 2^-9 of themselves. What is bounded for each operation is in kernels.h.
TOLERANCE = {False: 4e-6, True: 0.03}


def ids_of(spec: ModelSpec, count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, spec.vocab_size, count).tolist()


def distance(x: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(x - truth).max() / np.abs(truth).max())


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("bf16", [False, True], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", SPECS)
def test_a_sequence_equals_the_equations(name: str, bf16: bool, isa: str) -> None:
    spec = SPECS[name]
    tensors = make_tensors(spec, seed=1, bf16=bf16)
    ids = ids_of(spec, 60)
    oracle = Oracle(spec, tensors)
    model = _native.Model(spec_fields(spec), tensors, 2, isa)

    logits, state = model.forward(ids, None)
    expected_logits, expected_state = oracle.forward(ids)
    assert distance(logits, expected_logits) < TOLERANCE[bf16]
    assert distance(state, expected_state) < TOLERANCE[bf16]

    more = ids_of(spec, 3, seed=1)
    logits, state = model.forward(more, state)
    expected_logits, expected_state = oracle.forward(more, expected_state)
    assert distance(logits, expected_logits) < TOLERANCE[bf16]
    assert distance(state, expected_state) < TOLERANCE[bf16]


OTHERS = {
    **{f"odd {name}": spec for name, spec in ODD_SPECS.items()},
    **{
        f"{name}, heads of {size}": spec_of(name, n_embd=256, head_size=size, n_ffn=300)
        for name in ("5.0", "5.1", "5.2", "6", "7a")
        for size in (8, 16, 32, 64, 128)
    },
    "4, one layer": spec_of("4", n_layer=1, n_embd=130),
    "6, one layer": spec_of("6", n_layer=1, n_embd=16, rank_w=1, rank_mix=1),
    "7a, one layer": spec_of("7a", n_layer=1, n_embd=16, n_ffn=7, rank_v=0),
}


@pytest.mark.parametrize("bf16", [False, True], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", OTHERS)
def test_every_generation_equals_its_reference(name: str, bf16: bool) -> None:
    spec = OTHERS[name]
    tensors = make_any_tensors(spec, seed=1, bf16=bf16)
    ids = ids_of(spec, 100)
    truth = REFERENCES[spec.generation](spec, tensors, torch.float64)
    rows, end = truth.forward(ids, truth.new_state())
    expected_logits, expected_state = rows[-1].numpy(), end.numpy().ravel()
    assert np.abs(expected_logits).max() > 0.5
    for isa in _native.isas():
        logits, state = _native.Model(spec_fields(spec), tensors, 2, isa).forward(ids, None)
        assert distance(logits, expected_logits) < TOLERANCE[bf16], isa
        assert distance(state, expected_state) < TOLERANCE[bf16], isa


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("generation", ODD_SPECS)
def test_a_single_weight_matters(generation: str, isa: str) -> None:
    """The comparison above can fail: every tensor has a say in the logits."""
    spec = ODD_SPECS[generation]
    tensors = make_any_tensors(spec, seed=2)
    ids = list(range(spec.vocab_size))
    before, _ = _native.Model(spec_fields(spec), tensors, 1, isa).forward(ids, None)
    for name, values in tensors.items():
        changed = {**tensors, name: values * np.float32(1.5) + np.float32(0.1)}
        after, _ = _native.Model(spec_fields(spec), changed, 1, isa).forward(ids, None)
        assert not np.array_equal(before, after), name


def unaligned(values: np.ndarray) -> np.ndarray:
    """The same array, read-only, one byte off every alignment."""
    raw = np.frombuffer(b"\0" + values.tobytes(), dtype=np.uint8)[1:]
    return raw.view(values.dtype).reshape(values.shape)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("bf16", [False, True], ids=["f32", "bf16"])
def test_tensors_may_be_unaligned_and_read_only(bf16: bool, isa: str) -> None:
    spec = SPECS["heads of 10"]
    tensors = make_tensors(spec, seed=3, bf16=bf16)
    shifted = {name: unaligned(values) for name, values in tensors.items()}
    assert not shifted["head.weight"].flags.aligned
    ids = ids_of(spec, 9)
    logits, state = _native.Model(spec_fields(spec), tensors, 1, isa).forward(ids, None)
    again, same = _native.Model(spec_fields(spec), shifted, 1, isa).forward(ids, None)
    assert np.array_equal(logits, again)
    assert np.array_equal(state, same)


def test_borrowed_weights_live_as_long_as_the_model() -> None:
    spec = SPECS["two layers"]
    tensors = make_tensors(spec, seed=4)
    model = _native.Model(spec_fields(spec), tensors, 1, "")
    before, _ = model.forward([1, 2, 3], None)
    del tensors
    rubbish = [np.full(100_000, 7, dtype=np.float32) for _ in range(50)]
    after, _ = model.forward([1, 2, 3], None)
    assert np.array_equal(before, after)
    assert len(rubbish) == 50


@pytest.mark.parametrize("generation", ODD_SPECS)
def test_non_finite_weights_reach_the_logits(generation: str) -> None:
    spec = ODD_SPECS[generation]
    ids = list(range(spec.vocab_size))  # enough for each hidden channel to be active
    tensors = make_any_tensors(spec, seed=5)
    start = StateLayout.of(spec).new()
    for name, values in tensors.items():
        broken = values.copy()
        broken.reshape(-1)[0] = np.nan
        for isa in _native.isas():
            model = _native.Model(spec_fields(spec), {**tensors, name: broken}, 1, isa)
            results = model.forward_batch(ids, np.tile(start, (len(ids), 1)))
            assert any(np.isnan(result).any() for result in results), (name, isa)


@pytest.mark.parametrize("isa", _native.isas())
def test_large_keys_do_not_overflow_in_rwkv_4(isa: str) -> None:
    spec = ODD_SPECS["4"]
    tensors = make_any_tensors(spec, seed=6)
    for layer in range(spec.n_layer):
        tensors[f"blocks.{layer}.att.key.weight"] *= np.float32(300)
    ids = ids_of(spec, 100)
    logits, state = _native.Model(spec_fields(spec), tensors, 1, isa).forward(ids, None)
    assert np.isfinite(logits).all()
    assert np.isfinite(state).all()
    truth = REFERENCES["4"](spec, tensors, torch.float64)
    rows, _ = truth.forward(ids, truth.new_state())
    assert distance(logits, rows[-1].numpy()) < 1e-3
