"""The compiled kernels behind the engine's contract."""

from typing import Any

import numpy as np
import pytest

from rwkv_chat import _native
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.engine.backend import Backend, DecoderConfig
from rwkv_chat.engine.native import NativeBackend, read_bandwidth
from rwkv_chat.engine.reference import ReferenceBackend
from rwkv_chat.errors import EngineError, UsageError
from rwkv_chat.models.state import StateLayout
from tests.kernels.oracle import make_spec, make_tensors

SPEC = make_spec()
TENSORS = make_tensors(SPEC, 1)
TOKENS = [b"", *(bytes([i + 64]) for i in range(1, SPEC.vocab_size))]


@pytest.fixture
def backend() -> NativeBackend:
    return NativeBackend(SPEC, TENSORS, threads=2)


def config(**changes: object) -> DecoderConfig:
    fields = {"sampling": Sampling(), "seed": 1, "stops": (), "token_bytes": TOKENS}
    return DecoderConfig(**{**fields, **changes})  # type: ignore[arg-type]


def test_it_is_a_backend(backend: NativeBackend) -> None:
    contract: Backend = backend
    assert contract.spec == SPEC
    assert contract.layout == StateLayout.of(SPEC)
    assert contract.name == f"native {_native.isas()[-1]}, 2 threads"
    assert NativeBackend(SPEC, TENSORS, threads=1, isa="scalar").name == "native scalar, 1 thread"


def test_the_environment_chooses_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_CHAT_ISA", "scalar")
    assert NativeBackend(SPEC, TENSORS).isa == "scalar"
    monkeypatch.setenv("RWKV_CHAT_ISA", "mmx")
    with pytest.raises(EngineError, match=r"RWKV_CHAT_ISA.*mmx.*available: scalar"):
        NativeBackend(SPEC, TENSORS)


def test_a_batch_equals_single_steps(backend: NativeBackend) -> None:
    _, some = backend.forward([1, 2, 3], None)
    logits, states = backend.forward_batch([4, 5], [some, None])
    assert logits.shape == (2, SPEC.vocab_size)
    for i, (token, state) in enumerate(((4, some), (5, None))):
        single_logits, single_state = backend.forward([token], state)
        assert np.array_equal(logits[i], single_logits)
        assert np.array_equal(states[i], single_state)


def test_a_decoder_continues_from_what_was_generated(backend: NativeBackend) -> None:
    logits, state = backend.forward([9, 8], None)
    expected, _ = backend.decoder(state, logits, config()).run(20, 60.0)
    first = backend.decoder(state, logits, config())
    ids, _ = first.run(7, 60.0)
    second = backend.decoder(first.state, first.logits, config(generated=tuple(ids)))
    rest, _ = second.run(13, 60.0)
    assert ids + rest == expected


def test_the_vocabulary_is_built_once(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, state = backend.forward([9, 8], None)
    expected = backend.decoder(state, logits, config()).run(5, 60.0)
    monkeypatch.setattr(_native, "Vocabulary", None)
    assert backend.decoder(state, logits, config()).run(5, 60.0) == expected
    with pytest.raises(TypeError):
        _native.Vocabulary(list(TOKENS))


def test_what_it_is_given_wrongly_is_a_usage_error(backend: NativeBackend) -> None:
    logits, state = backend.forward([1], None)
    with pytest.raises(UsageError, match="at least one"):
        backend.forward([], None)
    with pytest.raises(UsageError, match="Token id 61 is outside"):
        backend.forward([61], None)
    with pytest.raises(UsageError, match="state must be"):
        backend.forward([1], state[:-1])
    with pytest.raises(UsageError, match="2 token ids do not match 1 states"):
        backend.forward_batch([1, 2], [state])
    with pytest.raises(UsageError, match="float32"):
        backend.forward_batch([1], [state.astype(np.float64)])
    with pytest.raises(UsageError, match="logits must be"):
        backend.decoder(state, logits[:-1], config())
    with pytest.raises(UsageError, match="stop string"):
        backend.decoder(state, logits, config(stops=(b"",)))


@pytest.mark.parametrize("ids", ["abc", [1.5], 5, None, [[1]], np.array([1.0])])
def test_ids_that_are_no_whole_numbers(backend: NativeBackend, ids: Any) -> None:
    logits, state = backend.forward([1], None)
    for engine in (backend, ReferenceBackend(SPEC, TENSORS)):
        with pytest.raises(UsageError, match=r"^Token ids must be a sequence of whole numbers"):
            engine.forward(ids, None)
        with pytest.raises(UsageError, match=r"^Token ids must be a sequence of whole numbers"):
            engine.forward_batch(ids, [None])
        with pytest.raises(UsageError, match=r"Token id \d+ is outside the vocabulary of 61\.$"):
            engine.forward([2**70], None)
    with pytest.raises(UsageError, match="whole numbers"):
        backend.decoder(state, logits, config(generated=ids))


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint16, np.uint8])
def test_ids_may_be_an_array_of_integers(backend: NativeBackend, kind: Any) -> None:
    for engine in (backend, ReferenceBackend(SPEC, TENSORS)):
        expected = engine.forward([3, 1, 2], None)
        ids: Any = np.array([3, 1, 2], dtype=kind)
        result = engine.forward(ids, None)
        assert np.array_equal(result[0], expected[0])
        assert np.array_equal(result[1], expected[1])
        logits, _ = engine.forward_batch(ids[:1], [None])
        assert np.array_equal(logits[0], engine.forward([3], None)[0])


def test_a_model_that_does_not_fit_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match=r"no tensor ln_out\.bias"):
        NativeBackend(SPEC, {n: t for n, t in TENSORS.items() if n != "ln_out.bias"})
    with pytest.raises(EngineError, match="threads"):
        NativeBackend(SPEC, TENSORS, threads=0)


def test_counters(backend: NativeBackend) -> None:
    assert backend.ffn_zero_fraction() == 0.0
    backend.forward([1, 2, 3], None)
    backend.reset_counters()
    backend.forward([4, 5], None)
    backend.forward_batch([1, 2], [None, None])
    assert 0.2 < backend.ffn_zero_fraction() < 0.8
    matrices = sum(t.nbytes for n, t in TENSORS.items() if n != "emb.weight")
    value = SPEC.n_layer * SPEC.n_ffn * SPEC.n_embd * 4
    assert backend.weight_bytes_per_step(0.0) == matrices
    assert backend.weight_bytes_per_step(0.5) == matrices - value // 2


def test_bandwidth_of_kernels_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_CHAT_ISA", "mmx")
    with pytest.raises(EngineError, match="mmx"):
        read_bandwidth(1)


@pytest.mark.slow
def test_bandwidth_is_a_speed() -> None:
    assert 1e8 < read_bandwidth(1) < 1e13
