"""How a generation declares its tensors: a name, a shape in letters, and how it is kept.

The letters stand for sizes of a `ModelSpec`: V vocabulary, D width, A width inside the time mix,
H heads, N size of a head, F hidden channels of the channel mix, C how many tokens a limited memory
holds; `rw`, `ra`, `rv`, `rg` and `rm` are inner sizes of low-rank matrices, `rc` that of the
queries and keys that copy tokens. A number before them multiplies, as in "5rm"; alone it is a size.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

__all__ = [
    "SIZES",
    "TensorRule",
    "biased",
    "low_rank",
    "matrix",
    "norm",
    "resolve",
    "split_size",
    "turned",
    "vector",
]

SIZES: Mapping[str, str] = {
    "V": "vocab_size",
    "D": "n_embd",
    "A": "n_att",
    "H": "n_head",
    "N": "head_size",
    "F": "n_ffn",
    "rw": "rank_w",
    "ra": "rank_a",
    "rv": "rank_v",
    "rg": "rank_g",
    "rm": "rank_mix",
    "rc": "rank_copy",
    "C": "ctx_len",
}
"""The field (or property) of ModelSpec that each letter stands for."""

_SIZE = re.compile(r"(\d*)([A-Za-z]*)")


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One tensor of every layer, or of the model.

    Attributes:
        name: inside its layer.
        shape: the official one, sizes in letters.
        kind: "vector" stays float32 whatever the weights' type (also where it is [H, N]); "matrix"
            has that type; "turned" and "low_rank" are matrices kept as their transpose.
        skips_first: layer 0 has none (or one without use).
        logarithm: the name of a tensor that some files hold instead, whose exponential it is.
    """

    name: str
    shape: tuple[str, ...]
    kind: str
    skips_first: bool = False
    logarithm: str = ""

    @property
    def is_turned(self) -> bool:
        """Whether a converted file holds the transpose (of the last two dimensions)."""
        return self.kind in ("turned", "low_rank")


def vector(name: str, shape: str, *, skips_first: bool = False, logarithm: str = "") -> TensorRule:
    """A tensor of small numbers that decide much: always float32."""
    return TensorRule(name, tuple(shape.split()), "vector", skips_first, logarithm)


def norm(name: str, shape: str = "D") -> tuple[TensorRule, TensorRule]:
    """Weight and bias of a layer norm or group norm."""
    return vector(f"{name}.weight", shape), vector(f"{name}.bias", shape)


def matrix(name: str, shape: str) -> TensorRule:
    """A matrix [out, in]."""
    return TensorRule(name, tuple(shape.split()), "matrix")


def biased(name: str, shape: str) -> tuple[TensorRule, TensorRule]:
    """A matrix [out, in] and the vector that is added to its results."""
    return matrix(f"{name}.weight", shape), vector(f"{name}.bias", shape.split()[0])


def turned(name: str, shape: str) -> TensorRule:
    """A matrix, officially [out, in] and kept as [in, out], to skip rows of inactive inputs."""
    return TensorRule(name, tuple(shape.split()), "turned")


def low_rank(name: str, shape: str, *, skips_first: bool = False) -> TensorRule:
    """One half of a low-rank pair, officially [in, out] and kept as [out, in]."""
    return TensorRule(name, tuple(shape.split()), "low_rank", skips_first)


@cache
def split_size(size: str) -> tuple[int, str]:
    """Factor and letter of a size: "5rm" is (5, "rm"), "D" is (1, "D") and "5" is (5, "")."""
    found = _SIZE.fullmatch(size)
    if found is None or not size or (found[2] and found[2] not in SIZES):
        raise ValueError(f"{size!r} is not a size")
    return int(found[1] or 1), found[2]


def resolve(shape: Sequence[str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape in numbers; `sizes` maps letters to them."""
    parts = (split_size(size) for size in shape)
    return tuple(factor * (sizes[letter] if letter else 1) for factor, letter in parts)
