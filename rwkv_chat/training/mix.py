"""The token shift: every token mixed with the one before it, in as many ways as one likes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rwkv_chat.training.compiled import pointwise

__all__ = ["mix", "mix_slowly"]


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: torch.dtype, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        x = x.contiguous()
        ctx.save_for_backward(x, *weights)
        return tuple(pointwise().mix(x, weights, kind))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, *weights = ctx.saved_tensors
        dx, dweights = pointwise().unmix(x, weights, [grad.contiguous() for grad in grads])
        return None, dx, *dweights.unbind()


def mix(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """x_t + (x_(t-1) - x_t) * weight for each weight, where the token before the first is 0.

    Args:
        x: [B, T, D].
        weights: [D] each.

    Returns:
        As many tensors [B, T, D]; on the CPU in bfloat16 where autocast would make that of them.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.shape[-1] % 16:
        return mix_slowly(x, weights)
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    mixed: tuple[Tensor, ...] = _Mix.apply(kind, x, *weights)  # type: ignore[no-untyped-call]
    return mixed


def mix_slowly(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same in torch, on any device and in any type: the truth."""
    delta = functional.pad(x, (0, 0, 1, -1)) - x
    return tuple(x + delta * weight for weight in weights)
