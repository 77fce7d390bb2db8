"""The compiled sampler against the plain numpy one."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rwkv_chat import _native
from rwkv_chat.engine import sampling

# Values from a grid give many ties; the others look like a model's logits.
LOGITS = st.one_of(
    st.lists(st.integers(-8, 8).map(lambda n: n / 2), min_size=1, max_size=60),
    st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=60),
    st.builds(
        lambda seed, size, scale: np.random.default_rng(seed).normal(0, scale, size).tolist(),
        st.integers(0, 2**32),
        st.integers(1, 3000),
        st.sampled_from([0.1, 1.0, 4.0, 30.0]),
    ),
)


@settings(max_examples=400, deadline=None)
@given(
    logits=LOGITS,
    temperature=st.sampled_from([0.0, 1e-3, 0.2, 0.7, 1.0, 1.5, 10.0]),
    top_p=st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)),
    top_k=st.sampled_from([0, 1, 2, 5, 50, 10**6]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 2**63 - 1),
    draw=st.integers(0, 10**6),
)
@example([1e-12, 0.0], 1e-3, 0.0, 0, 0.0, 1, 0)
def test_it_picks_what_numpy_picks(
    logits: list[float], temperature: float, top_p: float, top_k: int, min_p: float, seed: int,
    draw: int,
) -> None:  # fmt: skip
    x = np.array(logits, dtype=np.float32)
    arguments = (x, temperature, top_p, top_k, min_p, seed, draw)
    picked = _native.sample(*arguments)
    assert picked == sampling.sample(*arguments) or is_on_an_edge(*arguments)


def is_on_an_edge(
    x: np.ndarray, temperature: float, top_p: float, top_k: int, min_p: float, seed: int, draw: int
) -> bool:
    """Whether a millionth more or less would change a cut or the draw: weights are float32."""
    weights = np.exp(x.astype(np.float64) - x.max())
    falling = np.sort(weights)[::-1]
    near = 1e-6
    if top_p < 1 and np.abs(np.cumsum(falling) / falling.sum() - top_p).min() < near:
        return True
    if min_p and np.abs(weights / min_p - 1).min() < near:
        return True
    if 0 < top_k < len(x) and falling[top_k - 1] < falling[top_k] * (1 + near):
        return True
    kept = weights.copy()
    if top_p < 1:
        last = int(np.searchsorted(np.cumsum(falling), top_p * falling.sum()))
        last = min(last, len(x) - 1)
        after = falling[min(last + 1, len(x) - 1)]
        if after < falling[last] < after * (1 + near):  # equal in float32
            return True
        kept[weights < falling[last]] = 0
    if 0 < top_k < len(x):
        kept[weights < falling[top_k - 1]] = 0
    kept[weights < min_p] = 0
    sums = np.cumsum(kept ** (1 / temperature)) if temperature else np.zeros(1)
    target = sampling.random_number(seed, draw) * sums[-1]
    return bool(np.abs(sums - target).min() < near * (1 + 1 / max(temperature, 1e-3)) * sums[-1])


def test_edges_are_rare_in_ordinary_logits() -> None:
    """The exception above does not hide a difference where it counts."""
    numbers = np.random.default_rng(3)
    edges = 0
    for draw in range(300):
        x = numbers.normal(0, 3, 5000).astype(np.float32)
        arguments = (x, 0.9, 0.8, 200, 0.01, 5, draw)
        if is_on_an_edge(*arguments):
            edges += 1
        else:
            assert _native.sample(*arguments) == sampling.sample(*arguments)
    assert edges < 30


@pytest.mark.parametrize("top_p", [0.3, 0.95, 0.999, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 40, 3000])
def test_a_whole_vocabulary(top_p: float, top_k: int) -> None:
    numbers = np.random.default_rng(5)
    compared = 0
    for draw in range(12):
        x = numbers.normal(0, [0.5, 2.5, 8.0][draw % 3], 65536).astype(np.float32)
        x[numbers.integers(0, 65536, 40)] += 9
        arguments = (x, [0.7, 1.0][draw % 2], top_p, top_k, 0.0, 5, draw)
        if not is_on_an_edge(*arguments):
            assert _native.sample(*arguments) == sampling.sample(*arguments)
            compared += 1
    assert compared > 3


def test_frequencies_follow_the_probabilities() -> None:
    x = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    picks = [_native.sample(x, 1.0, 1.0, 0, 0.0, 11, draw) for draw in range(20_000)]
    share = np.bincount(picks, minlength=4) / len(picks)
    assert np.abs(share - [0.5, 0.3, 0.15, 0.05]).max() < 0.015


def test_greedy_takes_the_lowest_id_of_equal_ones() -> None:
    x = np.array([1, 3, 2, 3], dtype=np.float32)
    assert _native.sample(x, 0.0, 0.0, 0, 0.0, 1, 2) == 1


def test_minus_infinity_is_never_picked() -> None:
    x = np.array([-np.inf, 0.0, -np.inf, -50.0], dtype=np.float32)
    for draw in range(200):
        assert _native.sample(x, 10.0, 1.0, 0, 0.0, 1, draw) in (1, 3)
        assert _native.sample(x, 0.0, 1.0, 0, 0.0, 1, draw) == 1


@pytest.mark.parametrize(
    "values", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf], [], [[1.0, 2.0]]]
)
def test_logits_that_leave_no_choice(values: list[float]) -> None:
    with pytest.raises(ValueError, match="logits"):
        _native.sample(np.array(values, dtype=np.float32), 1.0, 0.5, 0, 0.0, 1, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0), ("temperature", float("nan")), ("top_p", -0.1), ("top_p", 1.1),
        ("top_p", float("nan")), ("min_p", 2.0),
    ],
)  # fmt: skip
def test_settings_out_of_range(name: str, value: float) -> None:
    good = {"temperature": 1.0, "top_p": 0.5, "top_k": 0, "min_p": 0.0, "seed": 1, "draw": 1}
    with pytest.raises(ValueError, match=name):
        _native.sample(np.zeros(4, dtype=np.float32), **{**good, name: value})  # type: ignore[arg-type]


def test_the_environment_chooses_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (np.linspace(-3, 3, 50, dtype=np.float32), 1.0, 0.9, 0, 0.0, 5, 2)
    expected = _native.sample(*arguments)
    for isa in _native.isas():
        monkeypatch.setenv("RWKV_CHAT_ISA", isa)
        assert _native.sample(*arguments) == expected
    monkeypatch.setenv("RWKV_CHAT_ISA", "mmx")
    with pytest.raises(ValueError, match=r"RWKV_CHAT_ISA.*mmx"):
        _native.sample(*arguments)
    with pytest.raises(ValueError, match=r"RWKV_CHAT_ISA.*mmx"):
        _native.read_bandwidth(1)
