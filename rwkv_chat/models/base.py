"""What the readable models of all generations share: embedding, layers, shifts, head.

T is the number of tokens, D the width, A the width inside the time mix, H the number of heads,
N = A / H their size, V the vocabulary, C how many tokens a limited memory holds.
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

from rwkv_chat.models.copying import copies
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.state import StateField, StateLayout

__all__ = ["Call", "LayerState", "Reference", "shift"]

_LAYER_NORM_EPS = 1e-5

LayerState = dict[str, Tensor]
"""The parts of the state of one layer, or of none, by the name of their field."""


@dataclass(slots=True)
class Call:
    """What the layers of one `forward` share.

    Attributes:
        ids: the tokens, [T].
        embedded: their embeddings as layer 0 gets them, [T, D].
        shared: the parts of the state that belong to no layer, before the tokens.
        v_first: the values of layer 0, [T, D], in RWKV-7.
    """

    ids: Tensor
    embedded: Tensor
    shared: LayerState
    v_first: Tensor | None = None


class Reference(ABC):
    """A model on the CPU; a subclass has the two mixes of its generation.

    Its weights are those of a converted file: official names, matrices as [out, in], low-rank pairs
    as [rank, in] and [out, rank], and `ffn.value.weight` as [F, D]. bfloat16 ones come as uint16.
    Everything is computed in `dtype`. `time_mix` and `channel_mix` are how a layer calls its mixes.
    """

    time_mix, channel_mix = "att.", "ffn."

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
        """The state before the first token, [layout.size]."""
        return torch.from_numpy(self.layout.new()).to(self.dtype)

    def forward(self, ids: Sequence[int], state: Tensor) -> tuple[Tensor, Tensor]:
        """Feed `ids` after `state`, which is left as it is.

        One id at a time this is the recurrent form; several at once multiply the matrices over all
        of them and give the same but for rounding.

        Returns:
            The logits after every id, [T, V], and the new state.
        """
        with torch.inference_mode():
            return self._read(torch.tensor(ids), state)

    def accepts(self, state: Tensor) -> bool:
        """Whether the token ids that `state` remembers, if it does, are tokens of this model."""
        _, shared = self._unpack(state)
        if "ids" not in shared:
            return True
        ids = shared["ids"]
        known = int((ids >= 0).sum())
        whole = (ids == ids.floor()) & (ids < self.spec.vocab_size)
        return bool(whole[:known].all() and (ids[known:] == -1).all())

    def _read(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` of tokens [T]."""
        layers, shared = self._unpack(state)
        x = self._embed(tokens)
        call = Call(tokens, x, shared)
        for number, layer in enumerate(layers):
            x, layers[number] = self._block(f"blocks.{number}.", x, layer, call)
        logits, shared = self._head(x, call)
        return logits, self._pack(layers, shared)

    def _embed(self, tokens: Tensor) -> Tensor:
        """What layer 0 gets, [T, D]."""
        rows = self._weights["emb.weight"][tokens]
        has_norm = "blocks.0.ln0.weight" in self._weights
        return self._norm("blocks.0.ln0", rows) if has_norm else rows

    def _head(self, x: Tensor, call: Call) -> tuple[Tensor, LayerState]:
        """The logits [T, V] of x [T, D], and the new parts of the state that belong to no layer."""
        get, x = self._weights, self._norm("ln_out", x)
        logits = linear(x, get["head.weight"])
        if "head_q.weight" not in get:
            return logits, call.shared
        q, k = linear(x, get["head_q.weight"]), linear(x, get["head_k.weight"])
        copied, shared = copies(q, k, call.ids, self.spec.vocab_size, call.shared)
        return logits + copied, shared

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
        out, changed = self._first_mix(block, before, state, call)
        x = x + out
        inner = self._norm(f"{block}ln2", x)
        previous = shift(inner, state["ffn_shift"])
        x = x + self._channel_mix(f"{block}{self.channel_mix}", inner, previous, call)
        return x, {**state, **changed, "att_shift": before[-1], "ffn_shift": inner[-1]}

    def _first_mix(
        self, block: str, x: Tensor, state: LayerState, call: Call
    ) -> tuple[Tensor, LayerState]:
        """The mix over time, in whose place layer 0 of some models has one over channels."""
        previous = shift(x, state["att_shift"])
        if f"{block}ffnPre.key.weight" in self._weights:
            return self._channel_mix(f"{block}ffnPre.", x, previous, call), {}
        return self._time_mix(f"{block}{self.time_mix}", x, previous, state, call)

    def _unpack(self, state: Tensor) -> tuple[list[LayerState], LayerState]:
        """The parts of the state of each layer, and those of none."""
        layout = self.layout
        layers = state[: layout.n_layer * layout.layer_size].view(layout.n_layer, -1)
        shared = state[layers.numel() :]
        return [_split(layer, layout.fields) for layer in layers], _split(shared, layout.shared)

    def _pack(self, layers: Sequence[LayerState], shared: LayerState) -> Tensor:
        parts = [layer[field.name] for layer in layers for field in self.layout.fields]
        parts += [shared[field.name] for field in self.layout.shared]
        return torch.cat([part.flatten() for part in parts])

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


def _split(state: Tensor, fields: Sequence[StateField]) -> LayerState:
    parts = torch.split(state, [field.size for field in fields])
    return {field.name: part.view(field.shape) for field, part in zip(fields, parts, strict=True)}


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    if array.dtype == np.uint16:
        return torch.from_numpy((array.astype(np.uint32) << 16).view(np.float32))
    return torch.from_numpy(np.require(array, np.float32, "W"))  # a copy of what is only mapped
