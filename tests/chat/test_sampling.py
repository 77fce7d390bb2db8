"""Sampling settings refuse what cannot be used."""

import math

import pytest

from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.errors import UsageError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", "1"),
        ("top_p", 1.1),
        ("top_k", 0.5),
        ("top_k", -1),
        ("min_p", 2),
        ("presence", math.inf),
        ("frequency", None),
        ("decay", 1.5),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", True),
    ],
)
def test_a_bad_value_is_named(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        Sampling(**{name: value})


def test_a_seed_may_be_absent() -> None:
    assert Sampling(seed=None).seed is None
    assert Sampling(seed=0).seed == 0
