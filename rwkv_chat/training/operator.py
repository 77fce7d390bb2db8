"""The RWKV-7 recurrence as a torch operator: a small C++ library, compiled on first use."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from rwkv_chat import paths
from rwkv_chat.errors import EngineError, UsageError

__all__ = ["HEAD_SIZE", "recur", "recur_slowly"]

HEAD_SIZE = 64

_SOURCE = Path(__file__).parents[2] / "kernels" / "training" / "wkv7.cpp"
_FLAGS = [
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-shared",
    "-fPIC",
    "-pthread",
]


@cache
def _library() -> ctypes.CDLL:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise UsageError("Training needs a C++ compiler. Install g++, or name one in CXX.")
    if not _SOURCE.exists():
        raise UsageError(f"{_SOURCE} is missing. Train from a checkout of the source.")
    tag = hashlib.sha256(_SOURCE.read_bytes() + " ".join(_FLAGS).encode()).hexdigest()[:16]
    target = paths.cache_dir() / "training" / f"wkv7-{tag}.so"
    if not target.exists():
        paths.ensure_private(target.parent)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / target.name
            command = [compiler, *_FLAGS, "-o", str(built), str(_SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
            if done.returncode != 0:
                raise EngineError(f"{_SOURCE.name} does not compile: {done.stderr[-2000:]}")
            built.replace(target)
    library = ctypes.CDLL(str(target))
    library.wkv7_chunks.restype = ctypes.c_int64
    return library


def _call(name: str, shape: torch.Size, tensors: list[torch.Tensor]) -> None:
    batch, steps, heads, _ = shape
    getattr(_library(), name)(
        ctypes.c_int64(batch),
        ctypes.c_int64(steps),
        ctypes.c_int64(heads),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors),
        ctypes.c_int(torch.get_num_threads()),
    )


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        inputs = tuple(x.detach().float().contiguous() for x in inputs)
        batch, steps, heads, size = shape = inputs[0].shape
        if size != HEAD_SIZE or any(x.shape != shape for x in inputs):
            raise UsageError(f"The operator takes six tensors [B, T, H, {HEAD_SIZE}] of one shape.")
        y = torch.empty_like(inputs[0])
        chunks = int(_library().wkv7_chunks(ctypes.c_int64(steps)))
        stored = torch.empty(batch, heads, chunks, size, size)
        _call("wkv7_forward", shape, [*inputs, y, stored])
        ctx.save_for_backward(*inputs, stored)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        *inputs, stored = ctx.saved_tensors
        gradients = [torch.empty_like(x) for x in inputs]
        dy = grads[0].float().contiguous()
        _call("wkv7_backward", inputs[0].shape, [*inputs, dy, stored, *gradients])
        return tuple(gradients)


def recur(
    r: torch.Tensor,
    w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
) -> torch.Tensor:
    """The time mix of RWKV-7 from an empty state, differentiable, float32.

    S_t = S_(t-1) diag(w) + (S_(t-1) a) b^T + v k^T and y_t = S_t r, per head.

    Args:
        r, k, v: receptance, key and value, [B, T, H, 64].
        w: the decay itself, in (0, 1), not its logarithm.
        a, b: minus the normalised key, and the normalised key times the learning rate.

    Returns:
        y, float32 [B, T, H, 64].

    Raises:
        UsageError: the shapes do not fit, or there is no compiler.
        EngineError: the operator does not compile.
    """
    result: torch.Tensor = _Recurrence.apply(r, w, k, v, a, b)  # type: ignore[no-untyped-call]
    return result


def recur_slowly(
    r: torch.Tensor,
    w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
) -> torch.Tensor:
    """The same as `recur`, as a loop over time in torch, in the type of its inputs: the truth."""
    batch, steps, heads, size = r.shape
    state = torch.zeros(batch, heads, size, size, dtype=r.dtype)
    out = []
    for t in range(steps):
        removed = state @ a[:, t, :, :, None]
        state = state * w[:, t, :, None, :] + removed * b[:, t, :, None, :]
        state = state + v[:, t, :, :, None] * k[:, t, :, None, :]
        out.append((state @ r[:, t, :, :, None])[..., 0])
    return torch.stack(out, 1)
