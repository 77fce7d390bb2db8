"""RWKV-6 "Finch": RWKV-5 whose mixing and decay depend on the token.

The formulas are those of the paper (https://arxiv.org/abs/2404.05892) and of `RWKV_v6_demo.py` in
the repository BlinkDL/ChatRWKV. Letters as in `base`.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from rwkv_chat.models.base import Call, LayerState, Reference
from rwkv_chat.models.rwkv5 import decaying_matrices

__all__ = ["Rwkv6"]

_MIXED = ("w", "k", "v", "r", "g")


class Rwkv6(Reference):
    """The model on the CPU; see `Reference`."""

    def _time_mix(
        self, att: str, x: Tensor, previous: Tensor, state: LayerState, call: Call
    ) -> tuple[Tensor, LayerState]:
        get, heads = self._weights, (len(x), self.spec.n_head, self.spec.head_size)
        mixed = self._mixes(att, x, previous)
        r = linear(mixed["r"], get[f"{att}receptance.weight"]).view(heads)
        k = linear(mixed["k"], get[f"{att}key.weight"]).view(heads)
        v = linear(mixed["v"], get[f"{att}value.weight"]).view(heads)
        g = silu(linear(mixed["g"], get[f"{att}gate.weight"]))
        change = torch.tanh(linear(mixed["w"], get[f"{att}time_decay_w1"]))
        change = linear(change, get[f"{att}time_decay_w2"])
        decay = torch.exp(-torch.exp(get[f"{att}time_decay"] + change)).view(heads)
        y, wkv = decaying_matrices(r, k, v, decay, get[f"{att}time_faaaa"], state["wkv"])
        out = self._group_norm(f"{att}ln_x", y) * g
        return linear(out, get[f"{att}output.weight"]), {"wkv": wkv}

    def _mixes(self, att: str, x: Tensor, previous: Tensor) -> dict[str, Tensor]:
        """x [T, D] blended with the tokens before, by shares that depend on both."""
        get, difference = self._weights, previous - x
        inner = linear(x + difference * get[f"{att}time_maa_x"], get[f"{att}time_maa_w1"])
        inner = torch.tanh(inner).view(len(x), len(_MIXED), -1)
        # time_maa_w2 [5, D, rank] has one matrix for each of the five
        change = torch.einsum("tir,idr->itd", inner, get[f"{att}time_maa_w2"])
        return {
            part: x + difference * (get[f"{att}time_maa_{part}"] + change[i])
            for i, part in enumerate(_MIXED)
        }

    def _channel_mix(self, ffn: str, x: Tensor, previous: Tensor, call: Call) -> Tensor:
        get, difference = self._weights, previous - x
        k = linear(x + difference * get[f"{ffn}time_maa_k"], get[f"{ffn}key.weight"])
        r = linear(x + difference * get[f"{ffn}time_maa_r"], get[f"{ffn}receptance.weight"])
        return torch.sigmoid(r) * (torch.relu(k) ** 2 @ get[f"{ffn}value.weight"])
