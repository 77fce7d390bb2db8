"""RWKV-5 "Eagle" in its three kinds: a matrix per head that decays.

5.0 has one decay per head and no gate, 5.1 adds the gate, 5.2 has a decay per channel. The formulas
are those of the paper (https://arxiv.org/abs/2404.05892) and of `RWKV-v5/src/model.py` in the
repository BlinkDL/RWKV-LM. Letters as in `base`.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from rwkv_chat.models.base import Call, LayerState
from rwkv_chat.models.rwkv4 import Rwkv4

__all__ = ["Rwkv5", "decaying_matrices"]


class Rwkv5(Rwkv4):
    """The model on the CPU; see `Reference`. Its channel mix is that of RWKV-4."""

    def _time_mix(
        self, att: str, x: Tensor, previous: Tensor, state: LayerState, call: Call
    ) -> tuple[Tensor, LayerState]:
        get, n_head = self._weights, self.spec.n_head

        def projected(part: str, matrix: str) -> Tensor:
            mixed = self._mixed(f"{att}time_mix_{part}", x, previous)
            return linear(mixed, get[f"{att}{matrix}.weight"])

        heads = (len(x), n_head, self.spec.head_size)
        r = projected("r", "receptance").view(heads)
        k = projected("k", "key").view(heads)
        v = projected("v", "value").view(heads)
        decay = torch.exp(-torch.exp(get[f"{att}time_decay"])).view(n_head, -1)
        first = get[f"{att}time_faaaa"].view(n_head, -1)
        y, wkv = decaying_matrices(r, k, v, decay.expand(len(x), -1, -1), first, state["wkv"])
        out = self._group_norm(f"{att}ln_x", y)
        if f"{att}gate.weight" in get:
            out = out * silu(projected("g", "gate"))
        return linear(out, get[f"{att}output.weight"]), {"wkv": wkv}


def decaying_matrices(
    r: Tensor, k: Tensor, v: Tensor, decay: Tensor, first: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence over T tokens: y [T, H, N] and the new state [H, N of keys, N of values].

    r, k, v are [T, H, N], `decay` [T, H, N or 1], `first`, the bonus of the current token,
    [H, N or 1]. Per head, with row vectors: y = r (diag(first) k'v + S), S = diag(decay) S + k'v.
    """
    outputs = []
    for t in range(len(r)):
        added = k[t].unsqueeze(-1) * v[t].unsqueeze(-2)
        seen = first.unsqueeze(-1) * added + state
        outputs.append((r[t].unsqueeze(-2) @ seen).squeeze(-2))
        state = decay[t].unsqueeze(-1) * state + added
    return torch.stack(outputs), state
