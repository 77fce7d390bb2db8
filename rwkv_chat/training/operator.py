"""The RWKV-7 recurrence as a torch operator, with the state it starts from and the one it ends in.

S_t = S_(t-1) diag(w) + (S_(t-1) a) b^T + v k^T and y_t = S_t r, per head.
"""

from typing import Any

import torch
from torch import Tensor

from rwkv_chat.errors import UsageError
from rwkv_chat.training.compiled import kernels_for

__all__ = ["HEAD_SIZE", "recur", "recur_from", "recur_from_slowly", "recur_slowly"]

HEAD_SIZE = 64


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor | None, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        kernels = kernels_for(inputs[0].device)
        prepared = [kernels.prepare(x) for x in inputs]
        start = None if state is None else state.detach().float().contiguous()
        y, last, stored = kernels.forward(prepared, start, any(ctx.needs_input_grad))
        ctx.save_for_backward(*prepared, stored)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        *inputs, stored = ctx.saved_tensors
        dy, d_last = grads
        if dy is None and d_last is None:
            return (None,) * (1 + len(inputs))
        dy = torch.zeros_like(inputs[0], dtype=torch.float32) if dy is None else dy
        d_last = None if d_last is None else d_last.float().contiguous()
        kernels = kernels_for(inputs[0].device)
        *gradients, d_state = kernels.backward(inputs, stored, dy.float().contiguous(), d_last)
        return (d_state if ctx.needs_input_grad[0] else None, *gradients)


def recur(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The time mix of RWKV-7 from an empty state: y of `recur_from`."""
    return recur_from(r, w, k, v, a, b, None)[0]


def recur_from(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The time mix of RWKV-7, compiled, differentiable once in everything that it takes.

    Args:
        r, k, v: receptance, key and value, [B, T, H, 64].
        w: the decay itself, in (0, 1), not its logarithm.
        a, b: minus the normalised key, and the normalised key times the learning rate.
        state: what it starts from, [B, H, 64 values, 64 keys], or [H, 64, 64] for the whole batch;
            None for zeros.

    Returns:
        y, float32 [B, T, H, 64], and the state after the last step, float32 [B, H, 64, 64].

    Raises:
        UsageError: the shapes or devices do not fit, or there is no compiler.
        EngineError: the operator does not compile, or the GPU fails.
    """
    inputs = (r, w, k, v, a, b)
    if r.ndim != 4 or r.shape[-1] != HEAD_SIZE or any(x.shape != r.shape for x in inputs):
        raise UsageError(f"The operator takes six tensors [B, T, H, {HEAD_SIZE}] of one shape.")
    if state is not None:
        state = _for_each(state, r)
    if any(x is not None and x.device != r.device for x in (*inputs, state)):
        raise UsageError("The operator takes tensors of one device.")
    result: tuple[Tensor, Tensor] = _Recurrence.apply(state, *inputs)  # type: ignore[no-untyped-call]
    return result


def recur_slowly(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The same as `recur`, as a loop over time in torch, in the type of its inputs: the truth."""
    return recur_from_slowly(r, w, k, v, a, b, None)[0]


def recur_from_slowly(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same as `recur_from`, as a loop over time in torch: for heads of any size, anywhere.

    It computes in the type of its inputs.
    """
    batch, steps, heads, size = r.shape
    if state is None:
        state = r.new_zeros(batch, heads, size, size)
    state = _for_each(state, r)
    out = []
    for t in range(steps):
        removed = state @ a[:, t, :, :, None]
        state = state * w[:, t, :, None, :] + removed * b[:, t, :, None, :]
        state = state + v[:, t, :, :, None] * k[:, t, :, None, :]
        out.append((state @ r[:, t, :, :, None])[..., 0])
    return torch.stack(out, 1), state


def _for_each(state: Tensor, r: Tensor) -> Tensor:
    """The state of each sequence, [B, H, N, N]."""
    batch, _, heads, size = r.shape
    each = (heads, size, size)
    if state.shape not in (each, (batch, *each)):
        raise UsageError(
            f"The state is {list(state.shape)}; it must be {[batch, *each]} or {list(each)}."
        )
    return state.expand(batch, *each)
