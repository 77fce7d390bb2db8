"""RWKV-7 "Goose": the readable truth that every faster implementation is compared with.

The formulas are those of the paper (https://arxiv.org/abs/2503.14456) and of `rwkv_v7_numpy.py` in
the repository BlinkDL/RWKV-LM. Letters as in `base`.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from rwkv_chat.models.base import Call, LayerState, Reference

__all__ = ["Rwkv7", "Rwkv7a"]

_KEY_NORM_EPS = 1e-12
_SLOWEST_DECAY = -math.exp(-0.5)


class Rwkv7(Reference):
    """The model on the CPU; see `Reference`."""

    def _time_mix(
        self, att: str, x: Tensor, previous: Tensor, state: LayerState, call: Call
    ) -> tuple[Tensor, LayerState]:
        get, heads = self._weights, (len(x), self.spec.n_head, self.spec.head_size)

        def mixed(part: str) -> Tensor:
            return x + (previous - x) * get[f"{att}x_{part}"]

        def low_rank(part: str, inner: Tensor) -> Tensor:
            return linear(inner, get[f"{att}{part}2"])

        r = linear(mixed("r"), get[f"{att}receptance.weight"])
        k = linear(mixed("k"), get[f"{att}key.weight"])
        v = linear(mixed("v"), get[f"{att}value.weight"])
        w = low_rank("w", torch.tanh(linear(mixed("w"), get[f"{att}w1"])))
        w = torch.exp(_SLOWEST_DECAY * torch.sigmoid(get[f"{att}w0"] + w))
        a = torch.sigmoid(get[f"{att}a0"] + low_rank("a", linear(mixed("a"), get[f"{att}a1"])))
        g = low_rank("g", torch.sigmoid(linear(mixed("g"), get[f"{att}g1"])))
        if call.v_first is None:
            call.v_first = v
        else:
            residual = low_rank("v", linear(mixed("v"), get[f"{att}v1"]))
            v = v + (call.v_first - v) * torch.sigmoid(get[f"{att}v0"] + residual)
        removed = normalize((k * get[f"{att}k_k"]).view(heads), dim=-1, eps=_KEY_NORM_EPS)
        k = k * (1 + (a - 1) * get[f"{att}k_a"])

        r, w, k, v, a = (part.view(heads) for part in (r, w, k, v, a))
        y, wkv = _wkv(r, w, k, v, removed, a, state["wkv"])
        bonus = (r * k * get[f"{att}r_k"]).sum(-1, keepdim=True) * v
        y = (self._group_norm(f"{att}ln_x", y) + bonus.reshape(len(x), -1)) * g
        return linear(y, get[f"{att}output.weight"]), {"wkv": wkv}

    def _channel_mix(self, ffn: str, x: Tensor, previous: Tensor, call: Call) -> Tensor:
        return self._hidden(ffn, x, previous) @ self._weights[f"{ffn}value.weight"]

    def _hidden(self, ffn: str, x: Tensor, previous: Tensor) -> Tensor:
        """The hidden channels of the channel mix, [T, F]."""
        mixed = x + (previous - x) * self._weights[f"{ffn}x_k"]
        return torch.relu(linear(mixed, self._weights[f"{ffn}key.weight"])) ** 2


class Rwkv7a(Rwkv7):
    """RWKV-7 with DeepEmbed: in every layer each token scales the hidden channels in its own way.

    The formulas are those of `rwkv_v7a_demo.py` in the repository BlinkDL/RWKV-LM.
    """

    def _channel_mix(self, ffn: str, x: Tensor, previous: Tensor, call: Call) -> Tensor:
        get = self._weights
        own = get[f"{ffn}s_emb.weight"][call.ids] + linear(
            call.embedded, get[f"{ffn}s_emb_x.weight"]
        )
        inner = linear(x, get[f"{ffn}s1"])
        side = inner.shape[-1]
        inner = (inner.unsqueeze(1) @ own.view(-1, side, side)).squeeze(1)
        scale = linear(inner, get[f"{ffn}s2"]) + get[f"{ffn}s0"]
        return (self._hidden(ffn, x, previous) * scale) @ get[f"{ffn}value.weight"]


def _wkv(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, removed: Tensor, a: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence over T tokens, all [T, H, N] but for `state` [H, N, N].

    Per head, with column vectors: S = S diag(w) - (S removed) (removed * a)' + v k', and y = S r.
    """
    outputs = []
    for t in range(len(r)):
        taken = state @ removed[t].unsqueeze(-1)
        state = state * w[t].unsqueeze(-2) - taken * (removed[t] * a[t]).unsqueeze(-2)
        state = state + v[t].unsqueeze(-1) * k[t].unsqueeze(-2)
        outputs.append((state @ r[t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs), state
