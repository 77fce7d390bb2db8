"""Cross entropy over the vocabulary without ever holding all the logits."""

from typing import Any

import torch
from torch import Tensor

from rwkv_chat.training.compiled import pointwise

__all__ = ["cross_entropy"]

_ROWS = 512


def _in_place(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[float, Tensor]:
    return pointwise().cross_entropy(logits, targets, weights), logits


def _in_torch(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of logits [M, V] and its gradient, of their type."""
    exact, target, weight = logits.float(), targets[:, None], weights[:, None]
    norm = exact.logsumexp(-1, keepdim=True)
    loss = ((norm - exact.gather(1, target)) * weight).sum()
    gradient = exact.sub_(norm).exp_().mul_(weight).scatter_add_(1, target, -weight)
    return loss, gradient.to(logits.dtype)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        kind = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
        matrix = head.to(kind)
        dx = torch.empty_like(x)
        dhead = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        total = x.new_zeros((), dtype=torch.float32)
        differentiate = _in_place if x.device.type == "cpu" else _in_torch
        for first in range(0, len(x), _ROWS):
            part = slice(first, first + _ROWS)
            loss, gradient = differentiate(x[part] @ matrix.T, targets[part], weights[part])
            total += loss
            dx[part] = gradient @ matrix
            if dhead is not None:
                dhead += (gradient.T @ x[part]).float()
        ctx.save_for_backward(dx, dhead)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        dx, dhead = ctx.saved_tensors
        dhead = None if dhead is None else dhead * grads[0]
        return dx * grads[0].to(dx.dtype), dhead, None, None


def cross_entropy(x: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of next-token losses in nats; the gradient is made along the way.

    Args:
        x: inputs of the head, float32 or bfloat16 [M, D].
        head: its weight, float32 [V, D].
        targets: int64 [M].
        weights: float32 [M].
    """
    total: Tensor = _CrossEntropy.apply(x, head, targets, weights)  # type: ignore[no-untyped-call]
    return total
