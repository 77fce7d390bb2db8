import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.engine.backend import Backend, Decoder, DecoderConfig
from rwkv_chat.engine.reference import ReferenceBackend
from rwkv_chat.engine.sampling import Penalties, random_number, sample
from rwkv_chat.errors import UsageError
from tests.seeded import converted_arrays, small_spec

SPEC = small_spec()
TOKENS = tuple(b"" if i in (0, 7, 49) else bytes([64 + i]) for i in range(SPEC.vocab_size))
PLAIN = Sampling(top_p=1.0, presence=0.0, frequency=0.0)


BACKEND = ReferenceBackend(SPEC, converted_arrays(SPEC))


@pytest.fixture
def backend() -> ReferenceBackend:
    return BACKEND


def decoder(backend: Backend, **changes: Any) -> Decoder:
    logits, state = backend.forward([1, 2, 3], None)
    config = DecoderConfig(PLAIN, seed=11, stops=(), token_bytes=TOKENS)
    return backend.decoder(state, logits, replace(config, **changes))


def long_enough(backend: Backend, **changes: Any) -> tuple[int, list[int]]:
    """A seed whose answer does not end too early, and the answer."""
    for seed in range(100):
        ids, _ = decoder(backend, seed=seed, **changes).run(16, 60.0)
        if len(ids) >= 10:
            return seed, ids
    raise AssertionError("no seed gives ten tokens")


@settings(max_examples=20, deadline=None)
@given(ids=st.lists(st.integers(0, SPEC.vocab_size - 1), min_size=1, max_size=12), data=st.data())
def test_no_split_changes_a_bit(ids: list[int], data: st.DataObject) -> None:
    backend = BACKEND
    whole, end = backend.forward(ids, None)
    cut = data.draw(st.integers(1, len(ids)))
    logits, state = backend.forward(ids[:cut], None)
    if ids[cut:]:
        logits, state = backend.forward(ids[cut:], state)
    assert np.array_equal(whole, logits)
    assert np.array_equal(end, state)


def test_a_batch_is_the_same_as_one_after_the_other(backend: ReferenceBackend) -> None:
    _, a = backend.forward([1, 2, 3], None)
    before = a.copy()
    logits, states = backend.forward_batch([4, 5, 4], [a, a, None])
    for row, state, (token, start) in zip(logits, states, [(4, a), (5, a), (4, None)], strict=True):
        alone, new = backend.forward([token], start)
        assert np.array_equal(row, alone)
        assert np.array_equal(state, new)
    assert np.array_equal(a, before)
    assert logits.shape == (3, SPEC.vocab_size)
    assert logits.dtype == states[0].dtype == np.float32
    assert states[0].shape == (backend.layout.size,)


def test_wrong_calls_are_refused(backend: ReferenceBackend) -> None:
    _, state = backend.forward([1], None)
    for ids in ([], [-1], [SPEC.vocab_size]):
        with pytest.raises(UsageError):
            backend.forward(ids, None)
    with pytest.raises(UsageError, match="numbers"):
        backend.forward([1], state[:-1])
    with pytest.raises(UsageError, match="float64"):
        backend.forward([1], state.astype(np.float64))
    with pytest.raises(UsageError):
        backend.forward_batch([1, 2], [None])
    with pytest.raises(UsageError):
        backend.forward_batch([], [])
    with pytest.raises(UsageError, match="tokenizer has 51"):
        decoder(backend, token_bytes=(*TOKENS, b"x"))


def test_the_state_includes_every_id_returned(backend: ReferenceBackend) -> None:
    running = decoder(backend)
    ids, _ = running.run(8, 60.0)
    logits, state = backend.forward([1, 2, 3, *ids], None)
    assert np.array_equal(running.state, state)
    assert np.array_equal(running.logits, logits)


def test_an_answer_depends_on_its_seed_alone_and_continues_where_it_was(
    backend: ReferenceBackend,
) -> None:
    penalised = Sampling(top_p=0.9, presence=0.5, frequency=0.4, decay=0.9)
    seed, whole = long_enough(backend, sampling=penalised)
    cut = len(whole) // 2
    running = decoder(backend, seed=seed, sampling=penalised)
    first = [running.run(1, 60.0)[0] for _ in range(cut)]
    assert [token for ids in first for token in ids] == whole[:cut]
    logits, state = backend.forward([1, 2, 3, *whole[:cut]], None)
    config = DecoderConfig(penalised, seed, (), TOKENS, generated=tuple(whole[:cut]))
    assert backend.decoder(state, logits, config).run(16 - cut, 60.0)[0] == whole[cut:]


def test_ends_at_id_0_without_returning_it(backend: ReferenceBackend) -> None:
    endings = [decoder(backend, seed=seed).run(40, 60.0) for seed in range(6)]
    ended = [ids for ids, reason in endings if reason == "end"]
    assert ended
    assert all(0 not in ids for ids in ended)
    assert all(TOKENS[token] for ids, _ in endings for token in ids)


def test_stops_after_the_stop_string_even_across_a_continuation(backend: ReferenceBackend) -> None:
    seed, whole = long_enough(backend, sampling=replace(PLAIN, temperature=0.5))
    stop = TOKENS[whole[4]] + TOKENS[whole[5]]
    text = b"".join(TOKENS[token] for token in whole)
    expected = text.index(stop) + 2
    config: dict[str, Any] = {
        "seed": seed,
        "stops": (b"nothing", stop),
        "sampling": replace(PLAIN, temperature=0.5),
    }
    assert decoder(backend, **config).run(16, 60.0) == (whole[:expected], "stop")
    logits, state = backend.forward([1, 2, 3, *whole[: expected - 1]], None)
    rest = DecoderConfig(token_bytes=TOKENS, generated=tuple(whole[: expected - 1]), **config)
    assert backend.decoder(state, logits, rest).run(30, 60.0) == ([whole[expected - 1]], "stop")


def test_a_stop_inside_a_token_ends_the_answer_but_not_one_that_is_old(
    backend: ReferenceBackend,
) -> None:
    seed, whole = long_enough(backend)
    wide = tuple(text and b"<" + text + b"\n\n  " for text in TOKENS)
    stops = (b"a long stop that never comes", TOKENS[whole[0]] + b"\n\n")
    again = next((n for n in range(1, len(whole)) if whole[n] == whole[0]), len(whole) - 1)
    config: dict[str, Any] = {"seed": seed, "stops": stops, "token_bytes": wide}
    assert decoder(backend, **config).run(16, 60.0) == (whole[:1], "stop")
    logits, state = backend.forward([1, 2, 3, *whole[:1]], None)
    rest = DecoderConfig(PLAIN, generated=tuple(whole[:1]), **config)
    ids, _ = backend.decoder(state, logits, rest).run(len(whole) - 1, 60.0)
    assert ids == whole[1 : again + 1]


def test_time_and_cancel_end_a_run(backend: ReferenceBackend) -> None:
    seed = next(s for s in range(99) if decoder(backend, seed=s).run(1, 60.0)[1] == "running")
    running = decoder(backend, seed=seed)
    ids, reason = running.run(1000, 0.0)
    assert (len(ids), reason) == (1, "running")
    assert decoder(backend, seed=seed).run(0, 60.0) == ([], "running")
    running.cancel()
    assert running.run(10, 60.0) == ([], "cancelled")


def test_logits_that_are_not_finite_end_the_answer() -> None:
    arrays = converted_arrays(SPEC)
    arrays["emb.weight"] = arrays["emb.weight"].copy()
    arrays["emb.weight"][9] = np.nan
    backend = ReferenceBackend(SPEC, arrays)
    logits, state = backend.forward([1], None)
    logits[9] = 1000.0
    config = DecoderConfig(PLAIN, 1, (TOKENS[9],), TOKENS)
    assert backend.decoder(state, logits, config).run(5, 60.0) == ([9], "non_finite")
    logits[3] = np.inf
    assert backend.decoder(state, logits, config).run(5, 60.0) == ([], "non_finite")


def test_random_numbers_are_those_of_splitmix64() -> None:
    # The published first outputs of splitmix64 seeded with 1234567.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for draw, value in enumerate(published):
        assert random_number(1234567, draw) == (value >> 11) * 2.0**-53
    numbers = [random_number(5, draw) for draw in range(4000)]
    assert 0 <= min(numbers) < 0.01
    assert 0.99 < max(numbers) < 1
    assert abs(sum(numbers) / 4000 - 0.5) < 0.02


LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.25, 0.05], dtype=np.float64))


def kept(**changes: float) -> set[int]:
    values: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    values.update(changes)
    return {sample(LOGITS, seed=1, draw=draw, **values) for draw in range(400)}


def test_each_cut_keeps_the_most_probable() -> None:
    assert kept() == {0, 1, 2, 3, 4}
    assert kept(top_p=0.0) == {1}
    assert kept(top_p=0.5) == {1, 3}
    assert kept(top_p=0.7) == {1, 2, 3}
    assert kept(top_k=1) == {1}
    assert kept(top_k=3) == {1, 2, 3}
    assert kept(top_k=99) == {0, 1, 2, 3, 4}
    assert kept(min_p=0.3) == {1, 2, 3}
    assert kept(temperature=0.0) == {1}
    assert kept(temperature=1e-3) == {1}
    assert kept(top_k=3, top_p=0.5) == {1, 3}


def test_equal_ids_are_cut_by_rule() -> None:
    even = np.zeros(6)
    assert {sample(even, 1.0, 0.1, 0, 0.0, 1, draw) for draw in range(200)} == set(range(6))
    assert {sample(even, 1.0, 1.0, 2, 0.0, 1, draw) for draw in range(200)} == {0, 1}
    assert sample(even, 0.0, 1.0, 0, 0.0, 1, 0) == 0


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_ids_come_as_often_as_they_are_probable(temperature: float) -> None:
    draws = 4000
    seen = Counter(sample(LOGITS, temperature, 1.0, 0, 0.0, 3, draw) for draw in range(draws))
    weights = np.exp(LOGITS / temperature)
    for token, p in enumerate(weights / weights.sum()):
        assert abs(seen[token] - draws * p) < 5 * math.sqrt(draws * p * (1 - p))


def test_penalties_fade_but_presence_stays() -> None:
    penalties = Penalties(Sampling(presence=0.5, frequency=2.0, decay=0.5), exempt=(3,))
    for token in (1, 3, 2, 1):
        penalties.count(token)
    result = penalties.apply(np.ones(5, np.float32))
    # counts: 1 -> 1 * 0.5^3 + 1, 2 -> 0.5
    assert result.tolist() == [1.0, 1 - 0.5 - 2 * 1.125, 1 - 0.5 - 2 * 0.5, 1.0, 1.0]
