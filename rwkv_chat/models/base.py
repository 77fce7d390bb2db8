"""What the readable models of all generations share: embedding, layers, shifts, head.

T is the number of tokens, D the width, A the width inside the time mix, H the number of heads,
N = A / H their size, V the vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import group_norm, layer_norm, linear

from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.state import StateLayout

__all__ = ["Call", "LayerState", "Reference", "shift"]

_LAYER_NORM_EPS = 1e-5

LayerState = dict[str, Tensor]
"""The parts of the state of one layer by the name of their field."""


@dataclass(slots=True)
class Call:
    """What the layers of one `forward` share.

    Attributes:
        ids: the tokens, [T].
        embedded: their normalised embeddings, [T, D].
        v_first: the values of layer 0, [T, D], in RWKV-7.
    """

    ids: Tensor
    embedded: Tensor
    v_first: Tensor | None = None


class Reference(ABC):
    """A model on the CPU; a subclass has the two mixes of its generation.

    Its weights are those of a converted file: official names, matrices as [out, in], low-rank pairs
    as [rank, in] and [out, rank], and `ffn.value.weight` as [F, D]. bfloat16 ones come as uint16.
    Everything is computed in `dtype`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tensors: Mapping[str, npt.NDArray[Any]],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.spec = spec
        self.dtype = dtype
        self.layout = StateLayout.of(spec)
        self._weights = {name: _tensor(array).to(dtype) for name, array in tensors.items()}

    def new_state(self) -> Tensor:
        """The state before the first token, [n_layer, floats of a layer]."""
        start = torch.from_numpy(self.layout.new()).to(self.dtype)
        return start.view(self.spec.n_layer, -1)

    def forward(self, ids: Sequence[int], state: Tensor) -> tuple[Tensor, Tensor]:
        """Feed `ids` after `state`, which is left as it is.

        One id at a time this is the recurrent form; several at once multiply the matrices over all
        of them and give the same but for rounding.

        Returns:
            The logits after every id, [T, V], and the new state.
        """
        with torch.inference_mode():
            tokens = torch.tensor(ids)
            x = self._norm("blocks.0.ln0", self._weights["emb.weight"][tokens])
            call = Call(tokens, x)
            layers = []
            for layer in range(self.spec.n_layer):
                x, new = self._block(f"blocks.{layer}.", x, self._unpack(state[layer]), call)
                layers.append(self._pack(new))
            logits = linear(self._norm("ln_out", x), self._weights["head.weight"])
            return logits, torch.stack(layers)

    @abstractmethod
    def _time_mix(
        self, att: str, x: Tensor, previous: Tensor, state: LayerState, call: Call
    ) -> tuple[Tensor, LayerState]:
        """The mixing over time, on x [T, D] and the tokens before; also what changed of `state`."""

    @abstractmethod
    def _channel_mix(self, ffn: str, x: Tensor, previous: Tensor, call: Call) -> Tensor:
        """The mixing over channels, on x [T, D] and the tokens before."""

    def _block(
        self, block: str, x: Tensor, state: LayerState, call: Call
    ) -> tuple[Tensor, LayerState]:
        """One layer on x [T, D]; also its new state."""
        before = self._norm(f"{block}ln1", x)
        previous = shift(before, state["att_shift"])
        out, changed = self._time_mix(f"{block}att.", before, previous, state, call)
        x = x + out
        inner = self._norm(f"{block}ln2", x)
        previous = shift(inner, state["ffn_shift"])
        x = x + self._channel_mix(f"{block}ffn.", inner, previous, call)
        return x, {**changed, "att_shift": before[-1], "ffn_shift": inner[-1]}

    def _unpack(self, layer: Tensor) -> LayerState:
        fields = self.layout.fields
        parts = torch.split(layer, [field.size for field in fields])
        return {
            field.name: part.view(field.shape) for field, part in zip(fields, parts, strict=True)
        }

    def _pack(self, state: LayerState) -> Tensor:
        return torch.cat([state[field.name].flatten() for field in self.layout.fields])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return layer_norm(x, x.shape[-1:], weight, bias, _LAYER_NORM_EPS)

    def _group_norm(self, name: str, y: Tensor) -> Tensor:
        """Normalise each head of y [T, H, N]; returns [T, A]."""
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        flat = y.reshape(len(y), -1)
        return group_norm(flat, self.spec.n_head, weight, bias, self.spec.group_norm_eps)


def shift(x: Tensor, previous: Tensor) -> Tensor:
    """The token before each of x [T, D], the first one's being `previous` [D]."""
    return torch.cat([previous.unsqueeze(0), x[:-1]])


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    if array.dtype == np.uint16:
        return torch.from_numpy((array.astype(np.uint32) << 16).view(np.float32))
    return torch.from_numpy(np.require(array, np.float32, "W"))  # a copy of what is only mapped
