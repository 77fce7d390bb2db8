"""RWKV-4 "Dove": one decaying average per channel.

The formulas are those of the paper (https://arxiv.org/abs/2305.13048) and of
`RWKV_in_150_lines.py` in the repository BlinkDL/ChatRWKV. Letters as in `base`.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from rwkv_chat.models.base import Call, LayerState, Reference

__all__ = ["Rwkv4"]


class Rwkv4(Reference):
    """The model on the CPU; see `Reference`."""

    def _time_mix(
        self, att: str, x: Tensor, previous: Tensor, state: LayerState, call: Call
    ) -> tuple[Tensor, LayerState]:
        get = self._weights
        r = linear(self._mixed(f"{att}time_mix_r", x, previous), get[f"{att}receptance.weight"])
        k = linear(self._mixed(f"{att}time_mix_k", x, previous), get[f"{att}key.weight"])
        v = linear(self._mixed(f"{att}time_mix_v", x, previous), get[f"{att}value.weight"])
        decay = -torch.exp(get[f"{att}time_decay"])
        y, new = self._average(k, v, decay, get[f"{att}time_first"], state)
        return linear(torch.sigmoid(r) * y, get[f"{att}output.weight"]), new

    def _channel_mix(self, ffn: str, x: Tensor, previous: Tensor, call: Call) -> Tensor:
        get = self._weights
        k = linear(self._mixed(f"{ffn}time_mix_k", x, previous), get[f"{ffn}key.weight"])
        r = linear(self._mixed(f"{ffn}time_mix_r", x, previous), get[f"{ffn}receptance.weight"])
        return torch.sigmoid(r) * (torch.relu(k) ** 2 @ get[f"{ffn}value.weight"])

    def _mixed(self, name: str, x: Tensor, previous: Tensor) -> Tensor:
        share = self._weights[name]
        return x * share + previous * (1 - share)

    def _average(
        self, k: Tensor, v: Tensor, decay: Tensor, first: Tensor, state: LayerState
    ) -> tuple[Tensor, LayerState]:
        """The average of the values so far, each weighted by exp(key) and its age, [T, A].

        `decay` (negative) and `first`, the bonus of the current token, are logarithms, [A]. The
        sums in the state are divided by exp(exponent), the greatest weight so far, for none to
        overflow.
        """
        numerator, denominator = state["numerator"], state["denominator"]
        exponent = state["exponent"]
        outputs = []
        for key, value in zip(k, v, strict=True):
            greatest = torch.maximum(exponent, first + key)
            past, now = torch.exp(exponent - greatest), torch.exp(first + key - greatest)
            outputs.append((past * numerator + now * value) / (past * denominator + now))
            greatest = torch.maximum(exponent + decay, key)
            past, now = torch.exp(exponent + decay - greatest), torch.exp(key - greatest)
            numerator = past * numerator + now * value
            denominator = past * denominator + now
            exponent = greatest
        sums = {"numerator": numerator, "denominator": denominator, "exponent": exponent}
        return torch.stack(outputs), sums
