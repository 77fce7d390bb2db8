"""The sampler of the device against that of the CPU, and answers generated on the device."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_chat import _native
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.engine.backend import DecoderConfig
from rwkv_chat.engine.cuda import CudaBackend
from rwkv_chat.engine.cudalib import CudaModel, Sampler
from rwkv_chat.engine.sampling import Penalties, sample
from rwkv_chat.errors import UsageError
from tests.cuda.emulated import EmulatedGpu
from tests.cuda.test_parity import draw, open_backend, weights_of
from tests.kernels.oracle import make_spec

SPEC = make_spec(heads=1, vocab=1500, ffn=64)
TOKENS = [b"", *(bytes([65 + i % 26, 97 + i % 25]) for i in range(1, SPEC.vocab_size))]
NOBODY = np.zeros(-(-SPEC.vocab_size // 32), np.uint32)


@pytest.fixture(scope="module")
def model(emulated_library: EmulatedGpu) -> CudaModel:
    emulated_library.reset()
    return CudaModel(emulated_library.library, 0, SPEC, weights_of(SPEC, "bf16"), 2)


def sampler(**changes: Any) -> Sampler:
    usual: dict[str, Any] = {
        **{"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0, "seed": 1, "draw": 0},
        **{"presence": 0.0, "frequency": 0.0, "decay": 1.0, "banned": NOBODY, "exempt": NOBODY},
        **{"counted": np.zeros(0, np.uint32), "values": np.zeros(0)},
    }
    return Sampler(**{**usual, **changes})


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**63),
    draw=st.integers(0, 1000),
    spread=st.sampled_from([0.0, 0.1, 1.0, 4.0, 30.0]),
    temperature=st.sampled_from([0.0, 0.2, 0.7, 1.0, 1.3, 5.0]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.85, 0.999, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 1499, 1500, 5000]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    ties=st.booleans(),
)
def test_it_chooses_as_the_cpu_does(
    model: CudaModel,
    seed: int,
    draw: int,
    spread: float,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    ties: bool,
) -> None:
    logits = np.random.default_rng(seed).standard_normal(SPEC.vocab_size).astype("f4") * spread
    if ties:
        logits = np.round(logits)
    how = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    model.set_sampler(0, sampler(seed=seed, draw=draw, **how))
    chosen = model.choose(0, logits)
    at = {"seed": seed, "draw": draw}
    assert chosen == _native.sample(logits, **how, **at)


def test_what_is_banned_is_never_chosen_and_penalties_count(model: CudaModel) -> None:
    logits = np.zeros(SPEC.vocab_size, np.float32)
    logits[[70, 71]] = 9, 8
    banned = NOBODY.copy()
    banned[70 // 32] |= 1 << 70 % 32
    model.set_sampler(0, sampler(temperature=0.0, banned=banned))
    assert model.choose(0, logits) == 71
    counts = {"counted": np.array([71], np.uint32), "values": np.array([2.0])}
    model.set_sampler(0, sampler(temperature=0.0, banned=banned, presence=1, frequency=4, **counts))
    assert model.choose(0, logits) == 0  # 8 - 1 - 8 is less than nothing
    logits[3] = np.nan
    assert model.choose(0, logits) == 0xFFFFFFFF


def config(**changes: object) -> DecoderConfig:
    fields = {"sampling": Sampling(), "seed": 1, "stops": (), "token_bytes": TOKENS}
    return DecoderConfig(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def backend(gpu: EmulatedGpu) -> CudaBackend:
    return open_backend(gpu, SPEC, weights_of(SPEC, "bf16"), slots=6)


def chosen_by_numpy(
    backend: CudaBackend, logits: np.ndarray, state: np.ndarray, how: DecoderConfig, count: int
) -> list[int]:
    """The ids that penalties and the sampler of the reference choose after these logits."""
    given, ids = how.sampling, list[int]()
    penalties = Penalties(given, how.exempt, how.generated)
    for place in range(len(how.generated), len(how.generated) + count):
        adjusted = penalties.apply(logits)
        adjusted[[i for i in range(len(adjusted)) if not (TOKENS[i : i + 1] or [b""])[0]]] = -np.inf
        rules = given.temperature, given.top_p, given.top_k, given.min_p
        ids.append(sample(adjusted, *rules, how.seed, place))
        penalties.count(ids[-1])
        logits, state = backend.forward([ids[-1]], state)
    return ids


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0),
        Sampling(temperature=1.4, top_p=0.9, presence=0.7, frequency=0.4, decay=0.9),
    ],
    ids=["usual", "greedy", "wild"],
)
def test_an_answer_is_what_numpy_chooses(backend: CudaBackend, sampling: Sampling) -> None:
    how = config(sampling=sampling, exempt=(5, 6, 7), generated=(9, 9, 10), end=None)
    logits, state = backend.forward(draw(SPEC, 5), None)
    expected = chosen_by_numpy(backend, logits, state, how, 12)
    decoder = backend.decoder(state, logits, how)
    ids, reason = decoder.run(12, 60.0)
    assert (ids, reason) == (expected, "running")
    logits, state = backend.forward(ids, state)
    assert np.array_equal(decoder.state, state)
    assert np.array_equal(decoder.logits, logits)


def test_slices_of_an_answer_are_the_answer(backend: CudaBackend) -> None:
    logits, state = backend.forward([1, 2], None)
    whole, _ = backend.decoder(state, logits, config(end=None)).run(9, 60.0)
    decoder = backend.decoder(state, logits, config(end=None))
    parts = [decoder.run(count, 60.0)[0] for count in (1, 0, 3)]
    assert [each for part in parts for each in part] == whole[:4]
    rebuilt = backend.decoder(
        decoder.state, decoder.logits, config(end=None, generated=tuple(whole[:4]))
    )
    assert decoder.run(5, 60.0)[0] == whole[4:]
    assert rebuilt.run(5, 60.0)[0] == whole[4:]
    assert decoder.run(100, 0.0)[0] != []  # one token is tried whatever the time


def test_stops_ends_and_cancels(backend: CudaBackend) -> None:
    logits, state = backend.forward([1, 2], None)
    whole, _ = backend.decoder(state, logits, config(end=None)).run(8, 60.0)
    data = [TOKENS[i] for i in whole]
    stop = data[2][1:] + data[3][:1]
    place = b"".join(data).index(stop) // 2 + 1
    ids, reason = backend.decoder(state, logits, config(stops=(stop,), end=None)).run(8, 60.0)
    assert (ids, reason) == (whole[: place + 1], "stop")
    end = whole[4]
    first = whole.index(end)
    decoder = backend.decoder(state, logits, config(end=end))
    ids, reason = decoder.run(8, 60.0)
    assert (ids, reason) == (whole[:first], "end")
    assert np.array_equal(decoder.state, backend.forward(ids, state)[1] if ids else state)
    assert decoder.run(8, 60.0) == ([], "end")
    decoder = backend.decoder(state, logits, config(end=None))
    decoder.cancel()
    assert decoder.run(8, 60.0) == ([], "cancelled")


def test_numbers_that_are_not_finite_end_an_answer(backend: CudaBackend) -> None:
    logits, state = backend.forward([1], None)
    broken = state.copy()
    broken[:] = np.inf
    assert backend.decoder(broken, logits, config(end=None)).run(5, 60.0)[1] == "non_finite"
    logits[3] = np.nan
    assert backend.decoder(state, logits, config()).run(5, 60.0) == ([], "non_finite")


def test_what_cannot_be_is_refused(backend: CudaBackend) -> None:
    logits, state = backend.forward([1], None)
    for changes, words in (
        ({"stops": (b"",)}, "empty"),
        ({"end": 9999}, "outside the vocabulary"),
        ({"exempt": (9999,)}, "outside the vocabulary"),
        ({"token_bytes": [b"x"] * 1501}, "1501 tokens"),
        ({"token_bytes": [b""], "end": None}, "no token"),
    ):
        with pytest.raises(UsageError, match=words):
            backend.decoder(state, logits, config(**changes))
    with pytest.raises(UsageError, match="logits"):
        backend.decoder(state, logits[:5], config())
    with pytest.raises(UsageError, match="state"):
        backend.decoder(state[:5], logits, config())
