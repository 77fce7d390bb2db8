"""The choices of a conversation survive JSON, and damaged ones fall back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_chat.chat.options import Options
from rwkv_chat.chat.own import Own, choices
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.chat.templates import Think
from rwkv_chat.errors import UsageError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_json_gives_the_same_value_back() -> None:
    own = Own("Bob:", "Alice:", "\n", "")
    options = Options(Sampling(top_k=3, seed=5), "Be brief.", "a bit", "own", 42, own=own)
    assert Options.from_json(json.loads(json.dumps(options.to_json())), Options()) == options


@given(
    st.dictionaries(
        st.sampled_from(["sampling", "system", "think", "template", "max_tokens", "own", "other"]),
        json_values
        | st.dictionaries(st.sampled_from(["user", "separator", "seed"]), json_values)
        | st.sampled_from(["own", "raven", "a lot"]),
    )
)
def test_whatever_is_stored_gives_usable_choices(data: dict[str, object]) -> None:
    options = Options.from_json(data, Options())
    assert options.think in list(Think)
    assert options.template in ["", *choices()]
    assert options.written_as("chat").name == (options.template or "chat")


def test_a_missing_choice_is_the_default() -> None:
    base = Options(system="Base")
    assert Options.from_json({"max_tokens": 3}, base) == Options(system="Base", max_tokens=3)


def test_a_conversation_without_a_start_state_is_never_given_one() -> None:
    base = Options(start="/other.state")
    for data in ({}, {"start": ""}, {"start": 7}):
        assert Options.from_json(data, base).start == ""
    assert Options.from_json({"start": "/its.state"}, base).start == "/its.state"


def test_a_bound_is_checked() -> None:
    with pytest.raises(UsageError, match="max_tokens"):
        Options(max_tokens=0)
