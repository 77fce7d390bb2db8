"""RWKV-7 (x070) in torch, differentiable, with the official tensor names and initial values.

Equations and initial values follow the official RWKV-7 of RWKV-LM.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.training.mix import mix
from rwkv_chat.training.operator import HEAD_SIZE, recur_from

__all__ = ["Goose", "Recurrence", "Shape", "Trainee"]

Recurrence = Callable[..., tuple[Tensor, Tensor]]
"""`recur_from`, or the same computed in another way."""

_GROUP_NORM_EPS = 64e-5
_DECAY_SCALE = math.exp(-0.5)


@dataclass(frozen=True, slots=True)
class Shape:
    """Layers, embedding width D (a multiple of 64) and rows of the vocabulary."""

    n_layer: int
    n_embd: int
    vocab_size: int

    def spec(self) -> ModelSpec:
        """The full specification; the ranks grow with the square root of D, as officially."""

        def rank(factor: float) -> int:
            return max(32, round(factor * math.sqrt(self.n_embd) / 32) * 32)

        return ModelSpec(
            generation="7",
            n_layer=self.n_layer,
            n_embd=self.n_embd,
            vocab_size=self.vocab_size,
            head_size=HEAD_SIZE,
            n_ffn=4 * self.n_embd,
            rank_w=rank(2.5),
            rank_a=rank(2.5),
            rank_v=rank(1.7),
            rank_g=rank(5.0),
            group_norm_eps=_GROUP_NORM_EPS,
        )


def _orthogonal(rows: int, columns: int, gain: float) -> nn.Parameter:
    scale = gain * max(1.0, math.sqrt(rows / columns))
    return nn.Parameter(nn.init.orthogonal_(torch.empty(rows, columns), gain=scale))


def _matrix(rows: int, columns: int, gain: float) -> nn.Linear:
    layer = nn.Linear(columns, rows, bias=False)
    if gain:
        nn.init.orthogonal_(layer.weight, gain=gain * max(1.0, math.sqrt(rows / columns)))
    else:
        nn.init.zeros_(layer.weight)
    return layer


class TimeMix(nn.Module):
    """The recurrent half of a block."""

    def __init__(self, spec: ModelSpec, layer: int, recurrence: Recurrence) -> None:
        super().__init__()
        d, self.n_head, size = spec.n_embd, spec.n_head, spec.head_size
        self.recurrence = recurrence
        up = layer / max(1, spec.n_layer - 1)
        down = 1.0 - layer / spec.n_layer
        i = torch.arange(d, dtype=torch.float32)
        linear = i / (d - 1) - 0.5
        zigzag = (i % size - (size - 1) / 2) / ((size - 1) / 2)
        zigzag = zigzag * zigzag.abs()
        decay = -6 + 6 * (i / (d - 1)) ** (1 + up**0.3)

        def mix(power: float) -> nn.Parameter:
            return nn.Parameter(1.0 - (i / d) ** (power * down))

        self.x_r, self.x_w, self.x_k = mix(0.2), mix(0.9), mix(0.7)
        self.x_v, self.x_a, self.x_g = mix(0.7), mix(0.9), mix(0.2)
        self.w0 = nn.Parameter(decay + 0.5 + zigzag * 2.5)
        self.w1 = nn.Parameter(torch.zeros(d, spec.rank_w))
        self.w2 = _orthogonal(spec.rank_w, d, 0.1)
        self.a0 = nn.Parameter(-0.19 + zigzag * 0.3 + linear * 0.4)
        self.a1 = nn.Parameter(torch.zeros(d, spec.rank_a))
        self.a2 = _orthogonal(spec.rank_a, d, 0.1)
        if layer:
            self.v0 = nn.Parameter(0.73 - linear * 0.4)
            self.v1 = nn.Parameter(torch.zeros(d, spec.rank_v))
            self.v2 = _orthogonal(spec.rank_v, d, 0.1)
        self.g1 = nn.Parameter(torch.zeros(d, spec.rank_g))
        self.g2 = _orthogonal(spec.rank_g, d, 0.1)
        self.k_k = nn.Parameter(0.71 - linear * 0.1)
        self.k_a = nn.Parameter(torch.full((d,), 1.02))
        self.r_k = nn.Parameter(torch.full((self.n_head, size), -0.04))
        self.receptance = _matrix(d, d, 1.0)
        self.key = _matrix(d, d, 0.1)
        self.value = _matrix(d, d, 1.0)
        self.output = _matrix(d, d, 0.0)
        self.ln_x = nn.GroupNorm(self.n_head, d, eps=spec.group_norm_eps)
        nn.init.constant_(self.ln_x.weight, ((1 + layer) / spec.n_layer) ** 0.7)

    def forward(
        self, x: Tensor, v_first: Tensor | None, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x [B, T, D] and the values of layer 0; returns the update and those values."""
        batch, steps, d = x.shape
        heads = (batch, steps, self.n_head, d // self.n_head)
        weights = [self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g]
        xr, xw, xk, xv, xa, xg = mix(x, weights)
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        w = self.w0 + torch.tanh(xw @ self.w1) @ self.w2
        a = torch.sigmoid(self.a0 + xa @ self.a1 @ self.a2)
        g = torch.sigmoid(xg @ self.g1) @ self.g2
        w = torch.exp(-_DECAY_SCALE * torch.sigmoid(w.float()))
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(self.v0 + xv @ self.v1 @ self.v2)
        kk = functional.normalize((k * self.k_k).view(heads), dim=-1)
        k = (k * (1 + (a - 1) * self.k_a)).view(heads)
        r, v4 = r.view(heads), v.view(heads)
        y, _ = self.recurrence(r, w.view(heads), k, v4, -kk, kk * a.view(heads), state)
        y = self.ln_x(y.view(batch * steps, d)).view(batch, steps, d)
        bonus = (r * k * self.r_k).sum(-1, keepdim=True) * v4
        update: Tensor = self.output((y + bonus.view(batch, steps, d)) * g)
        return update, v_first


class ChannelMix(nn.Module):
    """The feed-forward half of a block: a squared ReLU between two matrices."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        d = spec.n_embd
        down = 1.0 - layer / spec.n_layer
        self.x_k = nn.Parameter(1.0 - (torch.arange(d) / d) ** (down**4))
        self.key = _matrix(spec.n_ffn, d, 1.0)
        self.value = _matrix(d, spec.n_ffn, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D]; returns the update."""
        (mixed,) = mix(x, [self.x_k])
        hidden = torch.relu(self.key(mixed))
        update: Tensor = self.value(hidden * hidden)
        return update


class Block(nn.Module):
    """Time mix and channel mix, each behind a layer norm and around a residual."""

    def __init__(self, spec: ModelSpec, layer: int, recurrence: Recurrence) -> None:
        super().__init__()
        if layer == 0:
            self.ln0 = nn.LayerNorm(spec.n_embd)
        self.ln1 = nn.LayerNorm(spec.n_embd)
        self.ln2 = nn.LayerNorm(spec.n_embd)
        self.att = TimeMix(spec, layer, recurrence)
        self.ffn = ChannelMix(spec, layer)

    def forward(
        self, x: Tensor, v_first: Tensor | None, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x [B, T, D]; returns the new x and the values of layer 0."""
        if v_first is None:
            x = self.ln0(x)
        update, v_first = self.att(self.ln1(x), v_first, state)
        x = x + update
        return x + self.ffn(self.ln2(x)), v_first


class Goose(nn.Module):
    """The whole model. `state_dict()` has the official names and shapes."""

    def __init__(self, spec: ModelSpec, recurrence: Recurrence = recur_from) -> None:
        super().__init__()
        self.spec = spec
        self.emb = nn.Embedding(spec.vocab_size, spec.n_embd)
        nn.init.uniform_(self.emb.weight, -1e-4, 1e-4)
        layers = range(spec.n_layer)
        self.blocks = nn.ModuleList(Block(spec, layer, recurrence) for layer in layers)
        self.ln_out = nn.LayerNorm(spec.n_embd)
        self.head = _matrix(spec.vocab_size, spec.n_embd, 0.0)
        gain = 0.5 * math.sqrt(spec.vocab_size / spec.n_embd)
        nn.init.orthogonal_(self.head.weight, gain=gain)

    def forward(self, ids: Tensor, states: Sequence[Tensor] | None = None) -> Tensor:
        """Logits [B, T, V]; see `features`."""
        logits: Tensor = self.head(self.features(ids, states))
        return logits

    def features(self, ids: Tensor, states: Sequence[Tensor] | None = None) -> Tensor:
        """What the head reads, [B, T, D].

        Args:
            ids: int64 [B, T]; before each row there was no token.
            states: what the recurrence of each layer starts from, [H, N, N] or [B, H, N, N]; None
                for zeros.
        """
        x = self.emb(ids)
        v_first = None
        for layer, block in enumerate(self.blocks):
            x, v_first = block(x, v_first, None if states is None else states[layer])
        out: Tensor = self.ln_out(x)
        return out


class Trainee(Goose):
    """A model that is made here, of a shape whose other sizes follow."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape.spec())
        self.shape = shape
