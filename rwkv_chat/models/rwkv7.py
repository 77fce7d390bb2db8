"""RWKV-7 "Goose": the readable truth that every faster implementation is compared with.

The formulas are those of the paper (https://arxiv.org/abs/2503.14456) and of `rwkv_v7_numpy.py` in
the repository BlinkDL/RWKV-LM. T is the number of tokens, D the width, H the number of heads,
N = D / H their size, V the vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import group_norm, layer_norm, linear, normalize

from rwkv_chat.models.spec import ModelSpec

__all__ = ["Rwkv7"]

_LAYER_NORM_EPS = 1e-5
_KEY_NORM_EPS = 1e-12
_SLOWEST_DECAY = -math.exp(-0.5)


class Rwkv7:
    """The model on the CPU.

    Its weights are those of a converted file: official names, matrices as [out, in], the low-rank
    pairs as [rank, D] and [D, rank], and `ffn.value.weight` as [F, D]. bfloat16 ones come as
    uint16. Everything is computed in `dtype`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tensors: Mapping[str, npt.NDArray[Any]],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.spec = spec
        self.dtype = dtype
        self._weights = {name: _tensor(array).to(dtype) for name, array in tensors.items()}

    def new_state(self) -> Tensor:
        """The state before the first token, zeros [n_layer, D + H * N * N + D]."""
        d, n = self.spec.n_embd, self.spec.head_size
        return torch.zeros(self.spec.n_layer, d + d * n + d, dtype=self.dtype)

    def forward(self, ids: Sequence[int], state: Tensor) -> tuple[Tensor, Tensor]:
        """Feed `ids` after `state`, which is left as it is.

        One id at a time this is the recurrent form; several at once multiply the matrices over all
        of them and give the same but for rounding.

        Returns:
            The logits after every id, [T, V], and the new state.
        """
        with torch.inference_mode():
            x = self._weights["emb.weight"][torch.tensor(ids)]
            x = self._norm("blocks.0.ln0", x)
            v_first: Tensor | None = None
            layers = []
            for layer in range(self.spec.n_layer):
                x, v_first, new = self._block(f"blocks.{layer}.", x, v_first, state[layer])
                layers.append(new)
            logits = linear(self._norm("ln_out", x), self._weights["head.weight"])
            return logits, torch.stack(layers)

    def _block(
        self, block: str, x: Tensor, v_first: Tensor | None, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One layer on x [T, D]; also the values of layer 0 and the layer's new state."""
        d, h, n = self.spec.n_embd, self.spec.n_head, self.spec.head_size
        att_shift, wkv, ffn_shift = torch.split(state, [d, d * n, d])
        before = self._norm(f"{block}ln1", x)
        out, v_first, wkv = self._time_mix(
            f"{block}att.", before, _shift(before, att_shift), v_first, wkv.view(h, n, n)
        )
        x = x + out
        inner = self._norm(f"{block}ln2", x)
        x = x + self._channel_mix(f"{block}ffn.", inner, _shift(inner, ffn_shift))
        return x, v_first, torch.cat([before[-1], wkv.flatten(), inner[-1]])

    def _time_mix(
        self, att: str, x: Tensor, previous: Tensor, v_first: Tensor | None, wkv: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The mixing over time; `wkv` is the matrix state [H, N of values, N of keys]."""
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
        if v_first is None:
            v_first = v
        else:
            residual = low_rank("v", linear(mixed("v"), get[f"{att}v1"]))
            v = v + (v_first - v) * torch.sigmoid(get[f"{att}v0"] + residual)
        removed = normalize((k * get[f"{att}k_k"]).view(heads), dim=-1, eps=_KEY_NORM_EPS)
        k = k * (1 + (a - 1) * get[f"{att}k_a"])

        r, w, k, v, a = (part.view(heads) for part in (r, w, k, v, a))
        y, wkv = _wkv(r, w, k, v, removed, a, wkv)
        y = group_norm(
            y.reshape(len(x), -1),
            self.spec.n_head,
            get[f"{att}ln_x.weight"],
            get[f"{att}ln_x.bias"],
            self.spec.group_norm_eps,
        )
        bonus = (r * k * get[f"{att}r_k"]).sum(-1, keepdim=True) * v
        y = (y + bonus.reshape(len(x), -1)) * g
        return linear(y, get[f"{att}output.weight"]), v_first, wkv

    def _channel_mix(self, ffn: str, x: Tensor, previous: Tensor) -> Tensor:
        """The mixing over channels, x [T, D]."""
        mixed = x + (previous - x) * self._weights[f"{ffn}x_k"]
        hidden = torch.relu(linear(mixed, self._weights[f"{ffn}key.weight"])) ** 2
        return hidden @ self._weights[f"{ffn}value.weight"]

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return layer_norm(x, x.shape[-1:], weight, bias, _LAYER_NORM_EPS)


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


def _shift(x: Tensor, previous: Tensor) -> Tensor:
    """The token before each of x [T, D], the first one's being `previous` [D]."""
    return torch.cat([previous.unsqueeze(0), x[:-1]])


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    if array.dtype == np.uint16:
        return torch.from_numpy((array.astype(np.uint32) << 16).view(np.float32))
    return torch.from_numpy(array.astype(np.float32))
