"""The recurrent state: one flat float32 vector, and the layout that names its parts."""

from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt

from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.tensors import resolve

__all__ = ["F32", "StateField", "StateLayout"]

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StateField:
    """One named part of the state of every layer; `shape` is that of one layer.

    `start` fills it before the first token. It does not tell fields apart: a saved state lacks it.
    """

    name: str
    shape: tuple[int, ...]
    start: float = field(default=0.0, compare=False)

    @property
    def size(self) -> int:
        """Number of floats in one layer."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class StateLayout:
    """The order of the parts: layer 0's fields in order, then layer 1's, and so on."""

    tag: str
    n_layer: int
    fields: tuple[StateField, ...]

    @classmethod
    def of(cls, spec: ModelSpec) -> "StateLayout":
        """The layout that the generation of `spec` declares, such as att_shift, wkv, ffn_shift."""
        sizes = spec.sizes
        fields = tuple(
            StateField(rule.name, resolve(rule.shape, sizes), rule.start)
            for rule in spec.parts.state
        )
        return cls(f"rwkv{spec.generation}", spec.n_layer, fields)

    @property
    def layer_size(self) -> int:
        """Number of floats in one layer."""
        return sum(part.size for part in self.fields)

    @property
    def size(self) -> int:
        """Number of floats in the whole state."""
        return self.n_layer * self.layer_size

    def new(self) -> F32:
        """The state before the first token, float32 [size]."""
        layer = [np.full(part.size, part.start, dtype=np.float32) for part in self.fields]
        return np.tile(np.concatenate(layer), self.n_layer)
