"""Results are equal to the bit however ids are split, batched or computed."""

import threading
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_chat import _native
from rwkv_chat.models.generations import NATIVE_GENERATIONS
from rwkv_chat.models.state import StateLayout
from tests.kernels.oracle import ODD_SPECS, Tensors, make_any_tensors, spec_fields

every_generation = pytest.mark.parametrize("generation", sorted(ODD_SPECS))
VOCABULARY = 131
KINDS = st.tuples(st.sampled_from(_native.isas()), st.sampled_from(["bf16", "f32"]))
THREADS = st.sampled_from((1, 2, 5))
ID_LISTS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=120)


@cache
def weights_of(generation: str, weights: str) -> Tensors:
    return make_any_tensors(ODD_SPECS[generation], 1, bf16=weights == "bf16")


@cache
def model_of(generation: str, isa: str, weights: str, threads: int) -> _native.Model:
    fields = spec_fields(ODD_SPECS[generation])
    return _native.Model(fields, weights_of(generation, weights), threads, isa)


def test_every_generation_has_a_model() -> None:
    assert ODD_SPECS.keys() == {name.removesuffix("+normed") for name in NATIVE_GENERATIONS}
    assert {spec.vocab_size for spec in ODD_SPECS.values()} == {VOCABULARY}


@every_generation
@settings(max_examples=25, deadline=None)
@given(kind=KINDS, ids=ID_LISTS, data=st.data())
def test_any_split_and_any_threads_give_the_same_bits(
    generation: str, kind: tuple[str, str], ids: list[int], data: st.DataObject
) -> None:
    logits, state = model_of(generation, *kind, 1).forward(ids, None)
    assert np.isfinite(logits).all()
    cuts = data.draw(st.lists(st.integers(1, len(ids)), max_size=8))
    edges = sorted({0, *cuts, len(ids)})
    split_state = None
    for start, end in pairwise(edges):
        model = model_of(generation, *kind, data.draw(THREADS))
        split_logits, split_state = model.forward(ids[start:end], split_state)
    assert np.array_equal(logits, split_logits)
    assert np.array_equal(state, split_state)


@every_generation
@settings(max_examples=15, deadline=None)
@given(kind=KINDS, prefixes=st.lists(ID_LISTS, min_size=1, max_size=9), data=st.data())
def test_a_batch_gives_the_bits_of_single_steps(
    generation: str, kind: tuple[str, str], prefixes: list[list[int]], data: st.DataObject
) -> None:
    model = model_of(generation, *kind, data.draw(THREADS))
    states = np.stack([model.forward(prefix, None)[1] for prefix in prefixes])
    before = states.copy()
    ids = [prefix[0] for prefix in prefixes]
    logits, new = model.forward_batch(ids, states)
    assert np.array_equal(states, before)
    for i, token in enumerate(ids):
        single = model_of(generation, *kind, 1)
        single_logits, single_state = single.forward([token], before[i])
        assert np.array_equal(logits[i], single_logits)
        assert np.array_equal(new[i], single_state)


@every_generation
def test_a_batch_larger_than_one_pass(generation: str) -> None:
    model = model_of(generation, _native.isas()[-1], "bf16", 2)
    ids = [i % VOCABULARY for i in range(150)]
    states = np.stack([model.forward([i, 7 * i % VOCABULARY], None)[1] for i in ids])
    logits, new = model.forward_batch(ids, states)
    for i in (0, 47, 48, 100, 149):
        single_logits, single_state = model.forward([ids[i]], states[i])
        assert np.array_equal(logits[i], single_logits)
        assert np.array_equal(new[i], single_state)


@every_generation
@pytest.mark.parametrize("isa", _native.isas())
def test_the_given_state_is_never_changed(generation: str, isa: str) -> None:
    model = model_of(generation, isa, "f32", 2)
    _, state = model.forward([1, 2, 3], None)
    before = state.copy()
    state.flags.writeable = False
    _, new = model.forward([4, 5], state)
    assert np.array_equal(state, before)
    assert not np.array_equal(new, state)
    assert not np.shares_memory(new, state)


@every_generation
def test_no_state_is_the_state_before_the_first_token(generation: str) -> None:
    model = model_of(generation, _native.isas()[-1], "f32", 1)
    start = StateLayout.of(ODD_SPECS[generation]).new()
    results = model.forward([1, 2], None), model.forward([1, 2], start)
    for first, second in zip(*results, strict=True):
        assert np.array_equal(first, second)


def test_python_threads_may_share_a_model() -> None:
    model = model_of("7", _native.isas()[-1], "f32", 2)
    expected = [model.forward([i, i + 1], None)[0] for i in range(8)]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not np.array_equal(model.forward([i, i + 1], None)[0], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
