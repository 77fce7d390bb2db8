"""The CUDA kernels, run on the emulated GPU, against float64 and against the kernels of the CPU."""

import numpy as np
import pytest

from rwkv_chat import _native
from rwkv_chat.checkpoints.plain import plain
from rwkv_chat.engine.cuda import CudaBackend
from rwkv_chat.models.spec import ModelSpec
from tests.cuda.emulated import EmulatedGpu
from tests.kernels.oracle import Oracle, Tensors, as_q4, as_q8, make_spec, make_tensors, spec_fields

SPECS = {
    "heads of 64": make_spec(heads=3, head_size=64, vocab=257, ffn=300, ranks=(31, 33, 16, 65)),
    "heads of 16": make_spec(heads=3, vocab=61, ffn=1100, ranks=(3, 5, 7, 9)),
    "heads of 32, one layer": make_spec(
        layers=1, heads=5, head_size=32, vocab=33, ffn=40, ranks=(1, 2, 0, 17)
    ),
    "heads of 128": make_spec(heads=2, head_size=128, vocab=40, ffn=129, ranks=(8, 8, 8, 130)),
}
# Of the largest value: two bfloat16 for an activation leave 2^-17 of each. In q4 what scale and
# least give is larger than the weights.
TOLERANCES = {"bf16": 2e-5, "q8": 2e-5, "q4": 1e-4}


def weights_of(spec: ModelSpec, kind: str, seed: int = 1) -> Tensors:
    if kind == "bf16":
        return make_tensors(spec, seed, bf16=True)
    return (as_q8 if kind == "q8" else as_q4)(make_tensors(spec, seed))


def oracle_of(spec: ModelSpec, tensors: Tensors) -> Oracle:
    return Oracle(spec, plain(spec, tensors))


def open_backend(
    gpu: EmulatedGpu, spec: ModelSpec, tensors: Tensors, slots: int = 8
) -> CudaBackend:
    return CudaBackend(gpu.library, gpu.library.gpus()[0], spec, tensors, slots)


def draw(spec: ModelSpec, count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, spec.vocab_size, count).tolist()


def distance(x: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(x - truth).max() / np.abs(truth).max())


@pytest.mark.parametrize("kind", ["bf16", "q8", "q4"])
@pytest.mark.parametrize("name", SPECS)
def test_a_sequence_equals_the_equations(gpu: EmulatedGpu, name: str, kind: str) -> None:
    spec = SPECS[name]
    tensors = weights_of(spec, kind)
    backend, oracle = open_backend(gpu, spec, tensors), oracle_of(spec, tensors)
    state, expected_state = None, None
    for ids in (draw(spec, 40), draw(spec, 1, seed=1), draw(spec, 9, seed=2)):
        logits, state = backend.forward(ids, state)
        expected, expected_state = oracle.forward(ids, expected_state)
        assert distance(logits, expected) < TOLERANCES[kind]
        assert distance(state, expected_state) < TOLERANCES[kind]


@pytest.mark.parametrize("kind", ["bf16", "q8", "q4"])
def test_states_are_exchanged_with_the_cpu_both_ways(gpu: EmulatedGpu, kind: str) -> None:
    spec = SPECS["heads of 64"]
    tensors = weights_of(spec, kind)
    backend, cpu = (
        open_backend(gpu, spec, tensors),
        _native.Model(spec_fields(spec), tensors, 1, ""),
    )
    first, second = draw(spec, 20), draw(spec, 20, seed=1)
    expected, expected_state = cpu.forward(first + second, None)
    for begin, end in ((backend, cpu), (cpu, backend)):
        _, state = begin.forward(first, None)
        logits, state = end.forward(second, state)
        # The CPU rounds activations to bfloat16 or 8 bits, the GPU does not.
        assert distance(logits, expected) < 0.05
        assert distance(state, expected_state) < 0.05
        assert distance(end.forward(second, None)[0], expected) > 0.2


@pytest.mark.parametrize("kind", ["bf16", "q8", "q4"])
@pytest.mark.parametrize("cuts", [[1] * 11, [10, 1], [3, 8], [9, 2]], ids=str)
def test_any_split_gives_the_same_bits(gpu: EmulatedGpu, cuts: list[int], kind: str) -> None:
    spec = SPECS["heads of 16"]
    backend = open_backend(gpu, spec, weights_of(spec, kind))
    ids = draw(spec, 11)
    expected, expected_state = backend.forward(ids, None)
    state, logits, at = None, expected, 0
    for count in cuts:
        logits, state = backend.forward(ids[at : at + count], state)
        at += count
    assert np.array_equal(logits, expected)
    assert np.array_equal(state, expected_state)


@pytest.mark.parametrize("kind", ["bf16", "q8", "q4"])
@pytest.mark.parametrize("length", [17, 33, 70, 300])
def test_long_texts_give_the_bits_of_single_steps(gpu: EmulatedGpu, length: int, kind: str) -> None:
    """All sizes of tiles sum in the same order."""
    spec = make_spec(layers=2, heads=1, vocab=20, ffn=150, ranks=(3, 5, 7, 9))
    backend = open_backend(gpu, spec, weights_of(spec, kind))
    ids = draw(spec, length)
    expected, expected_state = backend.forward(ids, None)
    _, state = backend.forward(ids[: length - 1], None)
    logits, state = backend.forward(ids[length - 1 :], state)
    assert np.array_equal(logits, expected)
    assert np.array_equal(state, expected_state)
    logits, state = backend.forward(ids[:8], None)
    for id_ in ids[8:]:
        logits, state = backend.forward([id_], state)
    assert np.array_equal(logits, expected)
    assert np.array_equal(state, expected_state)


def test_wide_sums_over_many_slices_keep_their_order(gpu: EmulatedGpu) -> None:
    """A width of more than one slice, in which every warp of a block has its part."""
    spec = make_spec(layers=1, heads=9, head_size=128, vocab=24, ffn=80, ranks=(1, 2, 0, 3))
    for kind, length in (("bf16", 34), ("q8", 9), ("q4", 9)):
        tensors = weights_of(spec, kind)
        backend = open_backend(gpu, spec, tensors)
        ids = draw(spec, length)
        logits, state = backend.forward(ids, None)
        expected, expected_state = oracle_of(spec, tensors).forward(ids)
        assert distance(logits, expected) < TOLERANCES[kind]
        assert distance(state, expected_state) < TOLERANCES[kind]
        again, part = backend.forward(ids[:-1], None)
        again, part = backend.forward(ids[-1:], part)
        assert np.array_equal(again, logits)
        assert np.array_equal(part, state)


@pytest.mark.parametrize("kind", ["bf16", "q8", "q4"])
@pytest.mark.parametrize("batch", [2, 8, 9, 31])
def test_a_batch_gives_the_bits_of_single_steps(gpu: EmulatedGpu, batch: int, kind: str) -> None:
    spec = SPECS["heads of 16"]
    backend = open_backend(gpu, spec, weights_of(spec, kind), slots=12)
    starts = [backend.forward(draw(spec, 3, seed=i), None)[1] if i % 3 else None for i in range(5)]
    states = [starts[i % 5] for i in range(batch)]
    ids = draw(spec, batch, seed=9)
    logits, new = backend.forward_batch(ids, states)
    assert logits.shape == (batch, spec.vocab_size)
    for i in (0, 1, batch // 2, batch - 1):
        expected, expected_state = backend.forward([ids[i]], states[i])
        assert np.array_equal(logits[i], expected)
        assert np.array_equal(new[i], expected_state)


@pytest.mark.parametrize("kind", ["bf16", "q8", "q4"])
def test_no_order_of_threads_changes_a_bit(gpu: EmulatedGpu, kind: str) -> None:
    """A missing barrier would let threads read what others have not written yet."""
    spec = SPECS["heads of 64"]
    backend = open_backend(gpu, spec, weights_of(spec, kind))
    results = []
    for seed in range(4):
        gpu.schedule(seed)
        logits, state = backend.forward(draw(spec, 20), None)
        step, after = backend.forward([5], state)
        results.append((logits, state, step, after))
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_single_weight_matters(gpu: EmulatedGpu) -> None:
    """The comparisons above can fail: every tensor has a say in the logits."""
    spec = make_spec(heads=1, vocab=20, ffn=40)
    tensors = weights_of(spec, "bf16", seed=2)
    ids = draw(spec, 5)
    before, _ = open_backend(gpu, spec, tensors, 1).forward(ids, None)
    for name, values in tensors.items():
        other = values.copy()
        flat = other.reshape(-1)
        flat[:] = np.roll(flat, 1)
        assert not np.array_equal(other, values)
        after, _ = open_backend(gpu, spec, {**tensors, name: other}, 1).forward(ids, None)
        assert not np.array_equal(before, after), name


def test_non_finite_weights_reach_the_logits(gpu: EmulatedGpu) -> None:
    spec = make_spec(heads=1, vocab=12, ffn=10)
    tensors = weights_of(spec, "bf16", seed=5)
    ids = list(range(spec.vocab_size))
    for name, values in tensors.items():
        broken = values.copy()
        broken.reshape(-1)[0] = np.nan if values.dtype == np.float32 else 0x7FC0
        results = open_backend(gpu, spec, {**tensors, name: broken}, 8).forward(ids, None)
        assert any(np.isnan(result).any() for result in results), name
