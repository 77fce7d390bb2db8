"""The recurrent state: one flat float32 vector, and the layout that names its parts."""

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from rwkv_chat.models.spec import ModelSpec

__all__ = ["F32", "StateField", "StateLayout"]

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StateField:
    """One named part of the state of every layer; `shape` is that of one layer."""

    name: str
    shape: tuple[int, ...]

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
        """The layout of RWKV-7: att_shift [D], wkv [H, N_v, N_k], ffn_shift [D] per layer."""
        d, n = spec.n_embd, spec.head_size
        fields = (
            StateField("att_shift", (d,)),
            StateField("wkv", (spec.n_head, n, n)),
            StateField("ffn_shift", (d,)),
        )
        return cls(f"rwkv{spec.generation}", spec.n_layer, fields)

    @property
    def layer_size(self) -> int:
        """Number of floats in one layer."""
        return sum(field.size for field in self.fields)

    @property
    def size(self) -> int:
        """Number of floats in the whole state."""
        return self.n_layer * self.layer_size

    def new(self) -> F32:
        """The state before the first token, float32 [size]."""
        return np.zeros(self.size, dtype=np.float32)
