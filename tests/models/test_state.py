import numpy as np
import pytest

from rwkv_chat.models.generations import GENERATIONS
from rwkv_chat.models.state import StateField, StateLayout
from tests.seeded import small_spec, spec_of


def test_the_state_of_rwkv_7_is_as_it_always_was() -> None:
    layout = StateLayout.of(small_spec(n_layer=3))
    matrix = StateField("wkv", (2, 16, 16))
    shifts = (StateField("att_shift", (32,)), StateField("ffn_shift", (32,)))
    assert layout == StateLayout("rwkv7", 3, (shifts[0], matrix, shifts[1]))
    assert not layout.new().any()


def test_the_state_of_rwkv_4_begins_with_no_weight_at_all() -> None:
    layout = StateLayout.of(spec_of("4", n_att=40))
    assert layout.layer_size == 2 * 32 + 3 * 40
    first, second = layout.new().reshape(2, -1)
    assert (first == second).all()
    start = 32 + 40 + 40  # behind the shift, the numerator and the denominator
    assert (first[start : start + 40] == np.float32(-1e30)).all()
    assert not first[:start].any()
    assert not first[start + 40 :].any()


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_new_state_is_finite_and_has_the_size_of_its_layout(generation: str) -> None:
    layout = StateLayout.of(spec_of(generation))
    state = layout.new()
    assert layout.tag == f"rwkv{generation}"
    assert (state.dtype, state.shape) == (np.float32, (layout.size,))
    assert np.isfinite(state).all()


def test_what_belongs_to_no_layer_comes_after_the_layers() -> None:
    layout = StateLayout.of(spec_of("1+head_qk", ctx_len=5, rank_copy=3))
    assert [part.name for part in layout.shared] == ["ids", "copy_keys"]
    assert layout.size == 2 * layout.layer_size + 5 + 15
    state = layout.new()
    assert (state[2 * layout.layer_size :][:5] == -1).all()
    assert not state[: 2 * layout.layer_size].any()
    assert not state[-15:].any()


def test_generations_agree_on_how_a_tensor_is_kept() -> None:
    kinds: dict[str, tuple[str, str]] = {}
    for parts in GENERATIONS.values():
        for rule in parts.rules:
            assert kinds.setdefault(rule.name, (rule.kind, rule.logarithm)) == (
                rule.kind,
                rule.logarithm,
            )


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_width_of_the_time_mix_is_that_of_the_model_unless_it_is_given(
    generation: str,
) -> None:
    spec = spec_of(generation)
    assert spec.n_att == spec.n_embd
    has_heads = "N" in GENERATIONS[generation].letters
    assert spec.n_head * spec.head_size == (spec.n_att if has_heads else 0)
