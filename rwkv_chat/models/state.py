"""The recurrent state: one flat float32 vector, and the layout that names its parts."""

from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt

from rwkv_chat.models.generations import StateRule
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.tensors import resolve

__all__ = ["F32", "StateField", "StateLayout"]

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StateField:
    """One named part of the state of every layer, whose `shape` is that of one layer, or of none.

    `start` fills it before the first token. It does not tell fields apart: a saved state lacks it.
    """

    name: str
    shape: tuple[int, ...]
    start: float = field(default=0.0, compare=False)

    @property
    def size(self) -> int:
        """Number of floats (in one layer)."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class StateLayout:
    """The order of the parts: the `fields` of layer 0, those of layer 1 and so on, then `shared`,
    which belong to no layer.
    """

    tag: str
    n_layer: int
    fields: tuple[StateField, ...]
    shared: tuple[StateField, ...] = ()

    @classmethod
    def of(cls, spec: ModelSpec) -> "StateLayout":
        """The layout that the generation of `spec` declares, such as att_shift, wkv, ffn_shift."""
        sizes = spec.sizes

        def fields(rules: tuple[StateRule, ...]) -> tuple[StateField, ...]:
            return tuple(StateField(r.name, resolve(r.shape, sizes), r.start) for r in rules)

        parts = spec.parts
        return cls(
            f"rwkv{spec.generation}", spec.n_layer, fields(parts.state), fields(parts.shared)
        )

    @property
    def layer_size(self) -> int:
        """Number of floats in one layer."""
        return sum(part.size for part in self.fields)

    @property
    def size(self) -> int:
        """Number of floats in the whole state."""
        return self.n_layer * self.layer_size + sum(part.size for part in self.shared)

    def new(self) -> F32:
        """The state before the first token, float32 [size]."""
        return np.concatenate([*(_start(self.fields) * self.n_layer), *_start(self.shared)])


def _start(fields: tuple[StateField, ...]) -> list[F32]:
    return [np.full(part.size, part.start, dtype=np.float32) for part in fields]
