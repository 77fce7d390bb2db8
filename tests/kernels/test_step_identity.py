"""Results are equal to the bit however ids are split, batched or computed."""

import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_chat import _native
from tests.kernels.oracle import make_spec, make_tensors, spec_fields

SPEC = make_spec(layers=2, heads=5, head_size=16, vocab=131, ffn=333, ranks=(17, 5, 8, 30))
FIELDS = spec_fields(SPEC)
WEIGHTS = {"f32": make_tensors(SPEC, 1), "bf16": make_tensors(SPEC, 1, bf16=True)}
MODELS = {
    (isa, weights, threads): _native.Model(FIELDS, tensors, threads, isa)
    for isa in _native.isas()
    for weights, tensors in WEIGHTS.items()
    for threads in (1, 2, 5)
}
KINDS = st.tuples(st.sampled_from(_native.isas()), st.sampled_from(sorted(WEIGHTS)))
ID_LISTS = st.lists(st.integers(0, SPEC.vocab_size - 1), min_size=1, max_size=120)


@settings(max_examples=60, deadline=None)
@given(kind=KINDS, ids=ID_LISTS, data=st.data())
def test_any_split_and_any_threads_give_the_same_bits(
    kind: tuple[str, str], ids: list[int], data: st.DataObject
) -> None:
    logits, state = MODELS[(*kind, 1)].forward(ids, None)
    cuts = data.draw(st.lists(st.integers(1, len(ids)), max_size=8))
    edges = sorted({0, *cuts, len(ids)})
    split_state = None
    for start, end in pairwise(edges):
        model = MODELS[(*kind, data.draw(st.sampled_from((1, 2, 5))))]
        split_logits, split_state = model.forward(ids[start:end], split_state)
    assert np.array_equal(logits, split_logits)
    assert np.array_equal(state, split_state)


@settings(max_examples=40, deadline=None)
@given(kind=KINDS, prefixes=st.lists(ID_LISTS, min_size=1, max_size=9), data=st.data())
def test_a_batch_gives_the_bits_of_single_steps(
    kind: tuple[str, str], prefixes: list[list[int]], data: st.DataObject
) -> None:
    model = MODELS[(*kind, data.draw(st.sampled_from((1, 2, 5))))]
    states = np.stack([model.forward(prefix, None)[1] for prefix in prefixes])
    before = states.copy()
    ids = [prefix[0] for prefix in prefixes]
    logits, new = model.forward_batch(ids, states)
    assert np.array_equal(states, before)
    for i, token in enumerate(ids):
        single_logits, single_state = MODELS[(*kind, 1)].forward([token], before[i])
        assert np.array_equal(logits[i], single_logits)
        assert np.array_equal(new[i], single_state)


def test_a_batch_larger_than_one_pass() -> None:
    model = MODELS[(_native.isas()[-1], "bf16", 2)]
    ids = [i % SPEC.vocab_size for i in range(150)]
    states = np.random.default_rng(0).standard_normal(
        (len(ids), model.forward([0], None)[1].size), dtype=np.float32
    )
    logits, new = model.forward_batch(ids, states)
    for i in (0, 47, 48, 100, 149):
        single_logits, single_state = model.forward([ids[i]], states[i])
        assert np.array_equal(logits[i], single_logits)
        assert np.array_equal(new[i], single_state)


@pytest.mark.parametrize("isa", _native.isas())
def test_the_given_state_is_never_changed(isa: str) -> None:
    model = MODELS[(isa, "f32", 2)]
    _, state = model.forward([1, 2, 3], None)
    before = state.copy()
    state.flags.writeable = False
    _, new = model.forward([4, 5], state)
    assert np.array_equal(state, before)
    assert not np.array_equal(new, state)
    assert not np.shares_memory(new, state)


def test_python_threads_may_share_a_model() -> None:
    model = MODELS[(_native.isas()[-1], "f32", 2)]
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
