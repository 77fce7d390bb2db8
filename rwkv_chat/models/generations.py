"""What each RWKV generation consists of: its tensors and its state, as data.

The equations that use them are in `rwkv4`, `rwkv5`, `rwkv6` and `rwkv7` beside this file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rwkv_chat.models.tensors import (
    TensorRule,
    low_rank,
    matrix,
    norm,
    resolve,
    split_size,
    turned,
    vector,
)

__all__ = ["GENERATIONS", "Generation", "StateRule"]


@dataclass(frozen=True, slots=True)
class StateRule:
    """One part of the state of every layer; `start` fills it before the first token."""

    name: str
    shape: tuple[str, ...]
    start: float = 0.0


@dataclass(frozen=True, slots=True)
class Generation:
    """What models of one kind have in common.

    Attributes:
        name: such as "5.2".
        layer: the tensors of one layer, in the order of a file.
        state: the parts of the state of one layer, in the order of the flat vector.
    """

    name: str
    layer: tuple[TensorRule, ...]
    state: tuple[StateRule, ...]

    @property
    def letters(self) -> frozenset[str]:
        """The sizes that its tensors and its state have."""
        shapes = [rule.shape for rule in (_EMBEDDING, *self.layer)]
        shapes += [rule.shape for rule in self.state]
        return frozenset(split_size(size)[1] for shape in shapes for size in shape) - {""}

    @property
    def has_group_norm(self) -> bool:
        """Whether the heads are normalised, and so an epsilon belongs to the model."""
        return any(rule.name == "att.ln_x.weight" for rule in self.layer)

    def tensors(self, n_layer: int) -> Iterator[tuple[str, TensorRule]]:
        """The full name and the rule of every tensor, in the order of a file."""
        yield _EMBEDDING.name, _EMBEDDING
        for layer in range(n_layer):
            if layer == 0:
                yield from ((f"blocks.0.{rule.name}", rule) for rule in norm("ln0"))
            for rule in self.layer:
                if layer > 0 or not rule.skips_first:
                    yield f"blocks.{layer}.{rule.name}", rule
        yield from ((rule.name, rule) for rule in _AFTER)

    def shapes(self, n_layer: int, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """The official shape of every tensor; `sizes` maps letters to numbers."""
        return {name: resolve(rule.shape, sizes) for name, rule in self.tensors(n_layer)}


_EMBEDDING = matrix("emb.weight", "V D")
_AFTER = (*norm("ln_out"), matrix("head.weight", "V D"))
_NORMS = (*norm("ln1"), *norm("ln2"))
_MATRICES = (
    matrix("att.receptance.weight", "A D"),
    matrix("att.key.weight", "A D"),
    matrix("att.value.weight", "A D"),
    matrix("att.output.weight", "D A"),
)
_GATE = matrix("att.gate.weight", "A D")
_CHANNEL_MATRICES = (matrix("ffn.key.weight", "F D"), turned("ffn.value.weight", "D F"))
_GATED_CHANNEL_MATRICES = (matrix("ffn.receptance.weight", "D D"), *_CHANNEL_MATRICES)
_MATRIX_STATE = (
    StateRule("att_shift", ("D",)),
    StateRule("wkv", ("H", "N", "N")),
    StateRule("ffn_shift", ("D",)),
)


def _mix(part: str, prefix: str, names: str) -> tuple[TensorRule, ...]:
    """The vectors that blend a token with the one before, one for each of `names`."""
    return tuple(vector(f"{part}.{prefix}{name}", "D") for name in names)


_V4 = Generation(
    "4",
    (
        *_NORMS,
        *_mix("att", "time_mix_", "kvr"),
        vector("att.time_decay", "A"),
        vector("att.time_first", "A"),
        *_MATRICES,
        *_mix("ffn", "time_mix_", "kr"),
        *_GATED_CHANNEL_MATRICES,
    ),
    (
        StateRule("att_shift", ("D",)),
        StateRule("numerator", ("A",)),
        StateRule("denominator", ("A",)),
        StateRule("exponent", ("A",), -1e30),
        StateRule("ffn_shift", ("D",)),
    ),
)


def _v5(name: str, decay: str, *, gate: bool) -> Generation:
    """The three kinds of RWKV-5; `decay` is the shape of the decay and of the first bonus."""
    return Generation(
        name,
        (
            *_NORMS,
            *_mix("att", "time_mix_", "kvrg" if gate else "kvr"),
            vector("att.time_decay", decay),
            vector("att.time_faaaa", decay, logarithm="att.time_first"),
            *_MATRICES,
            *((_GATE,) if gate else ()),
            *norm("att.ln_x", "A"),
            *_mix("ffn", "time_mix_", "kr"),
            *_GATED_CHANNEL_MATRICES,
        ),
        _MATRIX_STATE,  # wkv is [H, N of keys, N of values]
    )


_V6 = Generation(
    "6",
    (
        *_NORMS,
        *_mix("att", "time_maa_", "xwkvrg"),
        low_rank("att.time_maa_w1", "D 5rm"),
        low_rank("att.time_maa_w2", "5 rm D"),
        vector("att.time_decay", "A"),
        low_rank("att.time_decay_w1", "D rw"),
        low_rank("att.time_decay_w2", "rw A"),
        vector("att.time_faaaa", "H N", logarithm="att.time_first"),
        *_MATRICES,
        _GATE,
        *norm("att.ln_x", "A"),
        *_mix("ffn", "time_maa_", "kr"),
        *_GATED_CHANNEL_MATRICES,
    ),
    _MATRIX_STATE,  # wkv is [H, N of keys, N of values]
)


def _pair(part: str, *, bias: bool = True, skips_first: bool = False) -> tuple[TensorRule, ...]:
    """A low-rank pair of RWKV-7, with the vector that is added to its result."""
    halves = (
        low_rank(f"att.{part}1", f"D r{part}", skips_first=skips_first),
        low_rank(f"att.{part}2", f"r{part} D", skips_first=skips_first),
    )
    return (vector(f"att.{part}0", "D", skips_first=skips_first), *halves) if bias else halves


def _v7(name: str, *more: TensorRule) -> Generation:
    """RWKV-7, with what a variant adds to the layer."""
    layer = (
        *_NORMS,
        *_mix("att", "x_", "rwkvag"),
        *_pair("w"),
        *_pair("a"),
        *_pair("v", skips_first=True),  # the value residual of layer 0 would be its own value
        *_pair("g", bias=False),
        vector("att.k_k", "D"),
        vector("att.k_a", "D"),
        vector("att.r_k", "H N"),
        *(matrix(f"att.{m}.weight", "D D") for m in ("receptance", "key", "value", "output")),
        *norm("att.ln_x"),
        *_mix("ffn", "x_", "k"),
        *_CHANNEL_MATRICES,
        *more,
    )
    return Generation(name, layer, _MATRIX_STATE)  # wkv is [H, N of values, N of keys]


_V7 = _v7("7")
_V7A = _v7(
    "7a",
    matrix("ffn.s_emb.weight", "V 1024"),  # a matrix of 32 by 32 for every token
    matrix("ffn.s_emb_x.weight", "1024 D"),
    vector("ffn.s0", "F"),
    low_rank("ffn.s1", "D 32"),
    low_rank("ffn.s2", "32 F"),
)

GENERATIONS: Mapping[str, Generation] = {
    generation.name: generation
    for generation in (
        _V4,
        _v5("5.0", "H", gate=False),
        _v5("5.1", "H", gate=True),
        _v5("5.2", "H N", gate=True),
        _V6,
        _V7,
        _V7A,
    )
}
"""Every generation that can be opened, by name."""
