"""What RWKV-1 alone does: a limited memory that slides, and two ways to give its weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_chat.engine.reference import ReferenceBackend
from rwkv_chat.models.state import StateLayout
from tests.seeded import converted_arrays, spec_of

GENERATIONS = ("1", "1+head_qk", "1+time_ww", "1+time_ww+head_qk")
TOKENS = [int(n) for n in np.random.default_rng(9).integers(0, 50, 60)]


def backend(generation: str, **sizes: int) -> ReferenceBackend:
    spec = spec_of(generation, **sizes)
    return ReferenceBackend(spec, converted_arrays(spec))


def window(position: int, ctx_len: int) -> int:
    """Where the window of the token at `position` begins."""
    start = 0
    while position - start >= ctx_len:
        start += ctx_len - ctx_len // 2
    return start


@pytest.mark.parametrize("generation", GENERATIONS)
@settings(max_examples=20)
@given(ctx_len=st.integers(1, 17), count=st.integers(1, 60))
def test_the_state_is_that_of_the_window_read_from_the_start(
    generation: str, ctx_len: int, count: int
) -> None:
    model = backend(generation, ctx_len=ctx_len)
    logits, state = model.forward(TOKENS[:count], None)
    start = window(count - 1, ctx_len)
    expected, fresh = model.forward(TOKENS[start:count], None)
    # The last half of the window was read at once when it slid, which rounds otherwise.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(state, fresh, rtol=1e-4, atol=1e-4)
    again, _ = model.forward(TOKENS[:count], None)
    np.testing.assert_array_equal(logits, again)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_what_lies_before_the_window_is_forgotten(generation: str) -> None:
    model = backend(generation)
    whole, _ = model.forward(TOKENS[:30], None)
    changed = [(token + 1) % 50 for token in TOKENS[:21]] + TOKENS[21:30]
    np.testing.assert_array_equal(model.forward(changed, None)[0], whole)
    changed[21] += 1
    assert np.abs(model.forward(changed, None)[0] - whole).max() > 1e-3


def test_weights_by_distance_equal_their_product() -> None:
    spec = spec_of("1+head_qk")
    arrays = converted_arrays(spec)
    products = dict(arrays)
    place = np.arange(spec.ctx_len)
    distance = place[:, None] - place
    for layer in range(spec.n_layer):
        att = f"blocks.{layer}.attn."
        by_distance = products.pop(f"{att}time_w")[:, spec.ctx_len - 1 - np.abs(distance)]
        by_place = products.pop(f"{att}time_alpha") * products.pop(f"{att}time_beta")
        products[f"{att}time_ww"] = np.where(distance >= 0, by_distance * by_place, 0)
    logits, _ = ReferenceBackend(spec, arrays).forward(TOKENS[:10], None)
    other, _ = ReferenceBackend(
        spec_of("1+time_ww+head_qk"), {n: a.astype(np.float32) for n, a in products.items()}
    ).forward(TOKENS[:10], None)
    np.testing.assert_allclose(other, logits, rtol=1e-5, atol=1e-5)


def test_a_copy_without_a_query_adds_nothing() -> None:
    spec = spec_of("1+head_qk")
    arrays = converted_arrays(spec)
    arrays["head_q.weight"] = np.zeros_like(arrays["head_q.weight"])
    arrays["head_q.bias"] = np.zeros_like(arrays["head_q.bias"])
    plain = {name: array for name, array in arrays.items() if not name.startswith("head_")}
    logits, _ = ReferenceBackend(spec, arrays).forward(TOKENS[:20], None)
    np.testing.assert_array_equal(
        ReferenceBackend(spec_of("1"), plain).forward(TOKENS[:20], None)[0], logits
    )


def test_the_size_of_a_state_of_published_models() -> None:
    writer = {"n_layer": 12, "n_embd": 768, "head_size": 64, "ctx_len": 512, "rank_copy": 256}
    assert 4 * StateLayout.of(spec_of("1+head_qk", **writer)).size == 19_511_296
    usual = {"n_layer": 6, "n_embd": 512, "head_size": 64, "ctx_len": 256, "rank_copy": 256}
    assert 4 * StateLayout.of(spec_of("1+head_qk", **usual)).size == 3_445_760
