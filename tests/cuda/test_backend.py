"""The host's side of the CUDA engine: states, memory, and a device that fails."""

import gc

import numpy as np
import pytest

from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.engine.backend import Backend, DecoderConfig
from rwkv_chat.engine.cuda import CudaBackend, slots_for
from rwkv_chat.engine.cudalib import CudaLibrary, CudaModel, Gpu
from rwkv_chat.engine.fallback import FallbackBackend
from rwkv_chat.engine.native import NativeBackend
from rwkv_chat.engine.slots import Slots
from rwkv_chat.errors import DeviceLostError, EngineError, MemoryLimitError, UsageError
from rwkv_chat.models.state import StateLayout
from tests.cuda.emulated import EmulatedGpu
from tests.cuda.test_parity import distance, draw, open_backend, weights_of
from tests.kernels.oracle import make_spec, make_tensors
from tests.seeded import spec_of

SPEC = make_spec(heads=1, vocab=70, ffn=64)
TOKENS = [b"", *(bytes([i + 32]) for i in range(1, SPEC.vocab_size))]
TENSORS = weights_of(SPEC, "bf16")
CONFIG = DecoderConfig(Sampling(), seed=1, stops=(), token_bytes=TOKENS, end=None)


def feed_each(backend: CudaBackend, ids: range) -> None:
    for id_ in ids:
        backend.forward([id_], None)


def test_it_is_a_backend(gpu: EmulatedGpu) -> None:
    contract: Backend = open_backend(gpu, SPEC, TENSORS)
    assert contract.name == "cuda:0 Emulated GPU 0"
    assert contract.spec == SPEC
    assert contract.layout == StateLayout.of(SPEC)


def test_states_are_values(gpu: EmulatedGpu) -> None:
    """Also when there are many more of them than places on the device."""
    backend = open_backend(gpu, SPEC, TENSORS, slots=2)
    _, state = backend.forward([1, 2], None)
    copy = state.copy()
    kept = [backend.forward([i], state) for i in range(6)]
    assert np.array_equal(state, copy)
    fresh = open_backend(gpu, SPEC, TENSORS, slots=2)
    for i, (logits, after) in enumerate(kept):
        expected, expected_after = fresh.forward([i], copy.copy())
        assert np.array_equal(logits, expected)
        assert np.array_equal(after, expected_after)
        again, _ = backend.forward([7], after)
        assert np.array_equal(again, fresh.forward([7], expected_after)[0])


def test_a_branch_is_a_copy_on_the_device(
    gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_backend(gpu, SPEC, TENSORS, slots=4)
    logits, state = backend.forward([1, 2], None)
    sent = []
    monkeypatch.setattr(CudaModel, "write_state", lambda *arguments: sent.append(arguments))
    first = backend.decoder(state, logits, CONFIG)
    backend.forward([3], state)
    first.run(2, 60.0)
    backend.forward([4], first.state)
    assert sent == []
    backend.forward([3], state.copy())
    assert len(sent) == 1


def test_answers_that_are_dropped_give_their_place_back(gpu: EmulatedGpu) -> None:
    backend = open_backend(gpu, SPEC, TENSORS, slots=3)
    logits, state = backend.forward([1], None)
    several = [backend.decoder(state, logits, CONFIG) for _ in range(3)]
    with pytest.raises(EngineError, match="no room for another answer"):
        backend.decoder(state, logits, CONFIG)
    expected = [each.run(4, 60.0) for each in several]
    assert expected[0] == expected[1] == expected[2]
    del several
    gc.collect()
    assert backend.decoder(state, logits, CONFIG).run(4, 60.0) == expected[0]


def test_memory_is_given_back(gpu: EmulatedGpu) -> None:
    before = gpu.memory_used
    backend = open_backend(gpu, SPEC, TENSORS)
    need = gpu.library.needed_bytes(SPEC, TENSORS, 8)
    assert need * 0.9 < gpu.memory_used - before < need
    backend.forward([1], None)
    del backend
    gc.collect()
    assert gpu.memory_used == before


def test_too_little_memory_is_foreseen_with_figures(gpu: EmulatedGpu) -> None:
    gpu.limit_memory(gpu.memory_used + (1 << 18))
    with pytest.raises(MemoryLimitError, match=r"needs \d+\.\d\d GiB .*0\.00 GiB are free.*q8"):
        open_backend(gpu, SPEC, TENSORS)
    assert gpu.memory_used <= 1 << 18


def test_a_model_without_kernels_is_refused(gpu: EmulatedGpu) -> None:
    with pytest.raises(EngineError, match="bf16, q8 and q4"):
        open_backend(gpu, SPEC, make_tensors(SPEC, 1))
    odd = make_spec(heads=2, head_size=10)
    with pytest.raises(EngineError, match="heads of 16, 32, 64 and 128"):
        open_backend(gpu, odd, weights_of(odd, "bf16"))
    with pytest.raises(EngineError, match="no tensor blocks"):
        open_backend(gpu, SPEC, {k: v for k, v in TENSORS.items() if "ln2" not in k})
    with pytest.raises(EngineError, match="generation"):
        open_backend(gpu, spec_of("3"), TENSORS)


def test_wrong_arguments_are_refused(gpu: EmulatedGpu) -> None:
    backend = open_backend(gpu, SPEC, TENSORS, slots=2)
    _, state = backend.forward([1], None)
    for work in (
        lambda: backend.forward([], None),
        lambda: backend.forward([SPEC.vocab_size], None),
        lambda: backend.forward([-1], None),
        lambda: backend.forward([1], state[:3]),
        lambda: backend.forward([1], state.astype("f8")),
        lambda: backend.forward_batch([1, 2], [state]),
        lambda: backend.forward_batch([], []),
    ):
        with pytest.raises(UsageError):
            work()
    model = backend.model
    for refused in (
        lambda: model.read_state(2, state.copy()),
        lambda: model.copy_state(0, -1),
        lambda: model.forward([0, 0], [[1], [2]]),
        lambda: model.forward([0], [[]]),
        lambda: model.step([0], [SPEC.vocab_size]),
    ):
        with pytest.raises(EngineError):
            refused()
    assert np.array_equal(backend.forward([1], None)[1], state)


def test_a_lost_device_hands_over_to_the_cpu(gpu: EmulatedGpu) -> None:
    cpu = NativeBackend(SPEC, TENSORS, threads=1)
    backend = FallbackBackend(open_backend(gpu, SPEC, TENSORS), lambda: cpu)
    assert backend.name.startswith("cuda:0")
    ids = draw(SPEC, 10)
    logits, state = backend.forward(ids, None)
    decoder = backend.decoder(state, logits, CONFIG)
    decoder.run(2, 60.0)
    gpu.lose_after(3)
    with pytest.raises(DeviceLostError, match="The GPU failed"):
        decoder.run(50, 60.0)
    with pytest.raises(DeviceLostError):
        decoder.state  # noqa: B018
    again, after = backend.forward([5], state)
    assert backend.name == "native avx512, 1 thread (the GPU was lost)".replace("avx512", cpu.isa)
    expected, expected_after = cpu.forward([5], state)
    assert np.array_equal(again, expected)
    assert np.array_equal(after, expected_after)
    # Only the CPU rounds activations to bfloat16.
    assert distance(logits, cpu.forward(ids, None)[0]) < 0.02
    assert backend.decoder(state, logits, CONFIG).run(3, 60.0)[1] == "running"
    assert len(backend.forward_batch([1, 2], [state, None])[1]) == 2


@pytest.mark.parametrize("calls", [0, 1, 2, 5, 9, 14])
def test_a_device_may_be_lost_at_any_call(gpu: EmulatedGpu, calls: int) -> None:
    before = gpu.memory_used
    gpu.lose_after(calls)
    with pytest.raises(DeviceLostError):
        CudaBackend(gpu.library, Gpu(0, "", "", 1, 1, 1), SPEC, TENSORS, 2)
    gpu.lose_after(-1)
    backend = open_backend(gpu, SPEC, TENSORS, slots=2)
    expected = backend.forward([1], None)
    gpu.lose_after(calls)
    with pytest.raises(DeviceLostError):
        feed_each(backend, range(20))
    gpu.lose_after(-1)
    with pytest.raises(DeviceLostError):
        backend.forward([1], None)
    again = open_backend(gpu, SPEC, TENSORS, slots=2)
    assert np.array_equal(again.forward([1], None)[1], expected[1])
    del backend, again
    gc.collect()
    assert gpu.memory_used == before


def test_slots_count_with_the_memory() -> None:
    large = make_spec(layers=32, heads=64, head_size=64)
    free = [slots_for(large, Gpu(0, "", "", 1, n << 30, n << 30)) for n in (1, 4, 80)]
    assert free == [4, 15, 66]


def test_slots_forget_what_nobody_holds() -> None:
    slots = Slots(2)
    states = [np.zeros(3, np.float32), np.ones(3, np.float32)]
    for state in states:
        slots.remember(slots.take(), state)
    assert slots.find(states[0]) is not None
    assert slots.find(states[0].copy()) is None
    assert slots.take_spare() is None
    taken = slots.take()  # the one asked for longest ago
    assert slots.find(states[1]) is None
    assert slots.find(states[0]) is not None
    del state, states
    gc.collect()
    assert slots.take_spare() is not None
    slots.give_back(taken)
    assert slots.take() == taken
    with pytest.raises(EngineError):
        slots.take()


def test_a_library_that_is_none_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "librwkv_cuda.so"
    path.write_bytes(b"nothing")
    with pytest.raises(EngineError, match="cannot be loaded"):
        CudaLibrary(path)
