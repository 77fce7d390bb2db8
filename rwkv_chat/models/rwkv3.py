"""RWKV-3: the average of RWKV-4, computed with the weights themselves instead of logarithms.

The formulas are those of `RWKV-v3/src/model_run.py` in the repository BlinkDL/RWKV-LM. Letters as
in `base`.
"""

import torch
from torch import Tensor

from rwkv_chat.models.base import LayerState
from rwkv_chat.models.rwkv4 import Rwkv4

__all__ = ["Rwkv3"]

_GREATEST_KEY = 60.0


class Rwkv3(Rwkv4):
    """The model on the CPU; see `Reference`."""

    def _average(
        self, k: Tensor, v: Tensor, decay: Tensor, first: Tensor, state: LayerState
    ) -> tuple[Tensor, LayerState]:
        """The average of the values so far, each weighted by exp(key) and its age, [T, A].

        `decay` (negative) and `first`, the bonus of the current token, are logarithms, [A].
        """
        numerator, denominator = state["numerator"], state["denominator"]
        kept, bonus = torch.exp(decay), torch.exp(first)
        outputs = []
        for weight, value in zip(torch.exp(k.clamp(max=_GREATEST_KEY)), v, strict=True):
            above = numerator + bonus * weight * value
            below = denominator + bonus * weight
            outputs.append(above / (below + self.spec.key_eps))
            numerator = kept * numerator + weight * value
            denominator = kept * denominator + weight
        return torch.stack(outputs), {"numerator": numerator, "denominator": denominator}
