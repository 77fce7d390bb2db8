"""What each RWKV generation consists of: its tensors and its state, as data.

The equations that use them are in `rwkv1` to `rwkv7` beside this file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from rwkv_chat.models.tensors import (
    TensorRule,
    biased,
    low_rank,
    matrix,
    norm,
    resolve,
    split_size,
    turned,
    vector,
)

__all__ = ["GENERATIONS", "NATIVE_GENERATIONS", "Generation", "StateRule"]


@dataclass(frozen=True, slots=True)
class StateRule:
    """One part of the state of every layer, or of none; `start` fills it before the first token."""

    name: str
    shape: tuple[str, ...]
    start: float = 0.0


Rules = tuple[TensorRule, ...]

_EMBEDDING = matrix("emb.weight", "V D")
_HEAD = matrix("head.weight", "V D")
_FIRST_NORM = norm("ln0")
_LAST = (*norm("ln_out"), _HEAD)


@dataclass(frozen=True, slots=True)
class Generation:
    """What models of one kind have in common.

    Attributes:
        name: such as "5.2"; a + follows with each part that only some models of a generation have.
        layer: the tensors of one layer, in the order of a file.
        state: the parts of the state of one layer, in the order of the flat vector.
        shared: the parts of the state that belong to no layer, after those.
        before: the tensors before the layers.
        first: what layer 0 has before its others.
        after: the tensors after the layers.
        slides: whether it reads the newest half of its tokens again whenever C are full.
        key_eps: what is usually added to the sum of the weights of keys; 0: it needs no such thing.
    """

    name: str
    layer: Rules
    state: tuple[StateRule, ...]
    shared: tuple[StateRule, ...] = ()
    before: Rules = (_EMBEDDING,)
    first: Rules = _FIRST_NORM
    after: Rules = _LAST
    slides: bool = False
    key_eps: float = 0.0

    @property
    def family(self) -> str:
        """Its name without the parts that only some of its models have."""
        return self.name.split("+")[0]

    @property
    def rules(self) -> Rules:
        """Every tensor that a model has once or once in a layer."""
        return (*self.before, *self.first, *self.layer, *self.after)

    @property
    def letters(self) -> frozenset[str]:
        """The sizes that its tensors and its state have."""
        shapes = [rule.shape for rule in self.rules]
        shapes += [rule.shape for rule in (*self.state, *self.shared)]
        return frozenset(split_size(size)[1] for shape in shapes for size in shape) - {""}

    @property
    def has_group_norm(self) -> bool:
        """Whether the heads are normalised, and so an epsilon belongs to the model."""
        return any(rule.name == "att.ln_x.weight" for rule in self.layer)

    def tensors(self, n_layer: int) -> Iterator[tuple[str, TensorRule]]:
        """The full name and the rule of every tensor, in the order of a file."""
        yield from ((rule.name, rule) for rule in self.before)
        yield from ((f"blocks.0.{rule.name}", rule) for rule in self.first)
        for layer in range(n_layer):
            for rule in self.layer:
                if layer > 0 or not rule.skips_first:
                    yield f"blocks.{layer}.{rule.name}", rule
        yield from ((rule.name, rule) for rule in self.after)

    def shapes(self, n_layer: int, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """The official shape of every tensor; `sizes` maps letters to numbers."""
        return {name: resolve(rule.shape, sizes) for name, rule in self.tensors(n_layer)}


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


def _mix(part: str, prefix: str, names: str) -> Rules:
    """The vectors that blend a token with the one before, one for each of `names`."""
    return tuple(vector(f"{part}.{prefix}{name}", "D") for name in names)


_IDS = StateRule("ids", ("C",), -1.0)  # the tokens so far, and -1 for those to come
_COPY_KEYS = StateRule("copy_keys", ("C", "rc"))


def _v1(*parts: str) -> Generation:
    """RWKV-1 with the `parts` that some of its models have."""
    weights: Rules = (
        vector("attn.time_w", "H C"),
        vector("attn.time_alpha", "H 1 C"),
        vector("attn.time_beta", "H C 1"),
    )
    if "time_ww" in parts:  # their product, with one matrix for each head
        weights = (vector("attn.time_ww", "H C C"),)
    copying = "head_qk" in parts
    return Generation(
        "+".join(("1", *parts)),
        (
            *_NORMS,
            *weights,
            vector("attn.time_gamma", "C 1"),
            *biased("attn.key", "A D"),
            *biased("attn.value", "A D"),
            *biased("attn.receptance", "A D"),
            *biased("attn.output", "D A"),
            *biased("mlp.key", "F D"),
            *biased("mlp.value", "F D"),
            *biased("mlp.weight", "D F"),
            *biased("mlp.receptance", "D D"),
        ),
        (
            StateRule("att_shift", ("D",)),
            StateRule("key_sum", ("A",)),
            StateRule("history", ("C", "H", "N")),
            StateRule("ffn_shift", ("D",)),
        ),
        shared=(_IDS, _COPY_KEYS) if copying else (_IDS,),
        before=(matrix("tok_emb.weight", "V D"),),
        first=(),
        after=(
            *norm("ln_f"),
            vector("time_out", "1 C 1"),
            _HEAD,
            *((*biased("head_q", "rc D"), *biased("head_k", "rc D")) if copying else ()),
        ),
        slides=True,
    )


_AVERAGE_STATE = (
    StateRule("att_shift", ("D",)),
    StateRule("numerator", ("A",)),
    StateRule("denominator", ("A",)),
    StateRule("ffn_shift", ("D",)),
)


def _average(name: str, time_mixes: Rules, channel_mixes: Rules, key_eps: float) -> Generation:
    """RWKV-2 to 3: the layers of RWKV-4, whose averages have no exponent in the state."""
    layer = (
        *_NORMS,
        *time_mixes,
        vector("att.time_decay", "A"),
        vector("att.time_first", "A"),
        *_MATRICES,
        *channel_mixes,
        *_GATED_CHANNEL_MATRICES,
    )
    first = _FIRST_NORM if name == "3" else ()
    return Generation(name, layer, _AVERAGE_STATE, first=first, key_eps=key_eps)


_MIXES = (_mix("att", "time_mix_", "kvr"), _mix("ffn", "time_mix_", "kr"))
_V2 = _average("2", (vector("att.time_mix", "D"),), (vector("ffn.time_mix", "D"),), 1e-16)
_V25 = _average("2.5", *_MIXES, 1e-9)
_V3 = _average("3", *_MIXES, 1e-8)
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


def _pair(part: str, *, bias: bool = True, skips_first: bool = False) -> Rules:
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


def _with_copying(base: Generation) -> Generation:
    """`base` that adds to the logits of tokens it has seen, by a query and their keys."""
    queries = (matrix("head_q.weight", "rc D"), matrix("head_k.weight", "rc D"))
    return replace(
        base,
        name=f"{base.name}+head_qk",
        after=(*base.after, *queries),
        shared=(_IDS, _COPY_KEYS),
    )


def _with_channels_first(base: Generation) -> Generation:
    """`base` with a second channel mix in the place of the time mix of layer 0."""
    mix = tuple(
        replace(rule, name=rule.name.replace("ffn.", "ffnPre."))
        for rule in base.layer
        if rule.name.startswith("ffn.")
    )
    rest = tuple(
        replace(rule, skips_first=True) if rule.name.startswith("att.") else rule
        for rule in base.layer
    )
    return replace(base, name=f"{base.name}+ffnPre", layer=rest, first=(*base.first, *mix))


def _normed(base: Generation) -> Generation:
    """`base` whose embeddings have gone through ln0 already, as the rwkv package keeps them."""
    return replace(base, name=f"{base.name}+normed", first=())


def _variants(base: Generation) -> tuple[Generation, ...]:
    """`base` and what its models were tried with."""
    pre = _with_channels_first(base)
    return base, pre, _with_copying(base), _with_copying(pre)


_V5 = (
    _v5("5.0", "H", gate=False),
    _v5("5.1", "H", gate=True),
    _v5("5.2", "H N", gate=True),
)
GENERATIONS: Mapping[str, Generation] = {
    generation.name: generation
    for generation in (
        _v1(),
        _v1("head_qk"),
        _v1("time_ww"),
        _v1("time_ww", "head_qk"),
        *_variants(_V2),
        *_variants(_V25),
        *_variants(_V3),
        *_variants(_V4),
        *_V5,
        _V6,
        *map(_normed, (_V4, *_V5, _V6)),
        _V7,
        _V7A,
    )
}
"""Every generation that can be opened, by name."""

NATIVE_GENERATIONS = frozenset(
    name
    for name in GENERATIONS
    if name.removesuffix("+normed") in {"4", "5.0", "5.1", "5.2", "6", "7", "7a"}
)
"""Those that the compiled kernels compute."""
