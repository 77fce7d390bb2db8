"""Compiled parts of training: C++ for the CPU, CUDA for GPUs; built on first use, then cached."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkv_chat import paths
from rwkv_chat.errors import EngineError, UsageError

__all__ = [
    "CPU_FLAGS",
    "CUDA_FLAGS",
    "Kernels",
    "Pointwise",
    "cpp_compiler",
    "kernels_for",
    "nvcc",
    "pointwise",
    "source",
]

CPU_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-shared",
    "-fPIC",
    "-pthread",
)
CUDA_FLAGS = ("-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC")

_CHUNK = 16  # steps between two stored states, as in the sources


def source(name: str) -> Path:
    """A file of `kernels/training`: that of the checkout, or the one that a wheel carries.

    Raises:
        UsageError: there is none.
    """
    for folder in (Path(__file__).parents[2] / "kernels" / "training", Path(__file__).parent):
        if (folder / name).is_file():
            return folder / name
    raise UsageError(f"The source {name} of the training operator is missing. Install again.")


def cpp_compiler() -> str | None:
    """The C++ compiler: CXX, or else g++."""
    return shutil.which(os.environ.get("CXX", "g++"))


def nvcc() -> str | None:
    """The CUDA compiler: on the path, or below CUDA_HOME or /usr/local/cuda."""
    homes = (os.environ.get("CUDA_HOME"), "/usr/local/cuda")
    folders = [str(Path(home) / "bin") for home in homes if home]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(folders))


def _build(name: str, compiler: str, flags: Sequence[str]) -> ctypes.CDLL:
    path = source(name)
    content = path.read_bytes() + source("share.h").read_bytes()
    content += " ".join((compiler, *flags)).encode()
    tag = hashlib.sha256(content).hexdigest()[:16]
    target = paths.cache_dir() / "training" / f"{path.stem}-{tag}.so"
    if not target.exists():
        paths.ensure_private(target.parent)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / target.name
            command = [compiler, *flags, "-o", str(built), str(path)]
            done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
            if done.returncode != 0:
                raise EngineError(
                    f"{name} does not compile with {compiler}; GCC 12, clang or nvcc 12 can.\n"
                    f"{done.stderr[-2000:]}"
                )
            built.replace(target)
    return ctypes.CDLL(str(target))


class Kernels:
    """The operator for tensors of one device. All results are float32.

    r, w, k, v, a and b are [B, T, H, 64], states [B, H, 64 values, 64 keys].
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def prepare(self, x: Tensor) -> Tensor:
        """An input as the library reads it: contiguous, of a type that it knows."""
        return x.detach().float().contiguous()

    def forward(
        self, inputs: Sequence[Tensor], state: Tensor | None, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """y, the last state, and (with `keep`) the stored states that `backward` needs."""
        batch, steps, heads, size = shape = inputs[0].shape
        y = self._empty(inputs[0], shape)
        last = self._empty(y, (batch, heads, size, size))
        chunks = -(-steps // _CHUNK)
        stored = self._empty(y, (batch, heads, chunks, size, size)) if keep else None
        self._call("wkv7_forward", inputs, [*inputs, state, y, last, stored])
        return y, last, stored

    def backward(
        self, inputs: Sequence[Tensor], stored: Tensor, dy: Tensor, d_last: Tensor | None
    ) -> list[Tensor]:
        """The gradients of the six inputs and of the initial state."""
        batch, _, heads, size = shape = inputs[0].shape
        gradients = [self._empty(dy, shape) for _ in inputs]
        gradients.append(self._empty(dy, (batch, heads, size, size)))
        self._call("wkv7_backward", inputs, [*inputs, stored, dy, d_last, *gradients])
        return gradients

    @staticmethod
    def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
        return torch.empty(tuple(shape), dtype=torch.float32, device=like.device)

    def _call(self, name: str, inputs: Sequence[Tensor], tensors: Sequence[Tensor | None]) -> None:
        threads = ctypes.c_int(torch.get_num_threads())
        getattr(self._library, name)(*_sizes(inputs), *_pointers(tensors), threads)


class CudaKernels(Kernels):
    """The same on a GPU, on the current stream of the tensors' device."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(library)
        library.wkv7_error.restype = ctypes.c_char_p

    def prepare(self, x: Tensor) -> Tensor:
        """An input as the library reads it; bfloat16 stays so."""
        kind = x.dtype if x.dtype == torch.bfloat16 else torch.float32
        return x.detach().to(kind).contiguous()

    def _call(self, name: str, inputs: Sequence[Tensor], tensors: Sequence[Tensor | None]) -> None:
        device, (batch, _, heads, size) = inputs[0].device, inputs[0].shape
        if name == "wkv7_backward":
            scratch = self._empty(inputs[0], (batch, heads, _CHUNK, size, size))
            tensors = [*tensors, scratch]
        halves = sum((x.dtype == torch.bfloat16) << place for place, x in enumerate(inputs))
        with _current(device) as stream:
            run = getattr(self._library, name)
            code: int = run(*_sizes(inputs), *_pointers(tensors), ctypes.c_int(halves), stream)
        if code:
            reason = self._library.wkv7_error(ctypes.c_int(code)).decode()
            raise EngineError(f"The training operator failed on the GPU: {reason}.")


@contextmanager
def _current(device: torch.device) -> Iterator[ctypes.c_void_p]:
    """Make a GPU the current one; yields its stream."""
    with torch.cuda.device(device):
        yield ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)


def _sizes(inputs: Sequence[Tensor]) -> list[object]:
    return [ctypes.c_int64(size) for size in inputs[0].shape[:3]]


def _pointers(tensors: Sequence[Tensor | None]) -> list[object]:
    return [ctypes.c_void_p(x.data_ptr() if x is not None else None) for x in tensors]


@cache
def _cpu(name: str) -> ctypes.CDLL:
    compiler = cpp_compiler()
    if compiler is None:
        raise UsageError("Training needs a C++ compiler. Install g++, or name one in CXX.")
    return _build(name, compiler, CPU_FLAGS)


class Pointwise:
    """What is done per element on the CPU, in one pass. Types: float32, or bfloat16 where told."""

    def __init__(self) -> None:
        self._library = _cpu("pointwise.cpp")
        for suffix in ("bf16", "fp32"):
            getattr(self._library, f"cross_entropy_{suffix}").restype = ctypes.c_double

    def cross_entropy(self, logits: Tensor, targets: Tensor, weights: Tensor) -> float:
        """The weighted sum of losses of logits [M, V] (either type), which become its gradient."""
        tensors = (logits, targets, weights)
        loss: float = self._call("cross_entropy", logits.dtype, logits.shape, _pointers(tensors))
        return loss

    def mix(self, x: Tensor, weights: Sequence[Tensor], kind: torch.dtype) -> list[Tensor]:
        """As `mix.mix`: one tensor [B, T, D] of type `kind` for each of the weights [D]."""
        out = [torch.empty_like(x, dtype=kind) for _ in weights]
        pointers = [*_pointers([x]), _table(weights), _table(out)]
        self._call("mix", kind, (*x.shape, len(weights)), pointers)
        return out

    def unmix(
        self, x: Tensor, weights: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The gradients of x and of the weights [count, D]."""
        dx, dweights = torch.empty_like(x), x.new_empty(len(weights), x.shape[-1])
        pointers = [*_pointers([x]), _table(weights), _table(gradients), *_pointers([dx, dweights])]
        self._call("unmix", gradients[0].dtype, (*x.shape, len(weights)), pointers)
        return dx, dweights

    def _call(
        self, name: str, kind: torch.dtype, sizes: Sequence[int], pointers: Sequence[object]
    ) -> Any:
        run = getattr(self._library, f"{name}_{'bf16' if kind == torch.bfloat16 else 'fp32'}")
        threads = ctypes.c_int(torch.get_num_threads())
        return run(*(ctypes.c_int64(size) for size in sizes), *pointers, threads)


@cache
def pointwise() -> Pointwise:
    """The operations per element on the CPU, compiled when they are not in the cache.

    Raises:
        UsageError: there is no compiler.
        EngineError: they do not compile.
    """
    return Pointwise()


def _table(tensors: Sequence[Tensor]) -> object:
    return (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))


@cache
def _cuda(major: int, minor: int) -> CudaKernels:
    compiler = nvcc()
    if compiler is None:
        raise UsageError(
            "Training on a GPU needs nvcc, the CUDA compiler. Install the CUDA toolkit and set "
            "CUDA_HOME, or train with --device cpu."
        )
    return CudaKernels(_build("wkv7.cu", compiler, (*CUDA_FLAGS, f"-arch=sm_{major}{minor}")))


def kernels_for(device: torch.device) -> Kernels:
    """The operator for tensors on `device`, compiled when it is not in the cache.

    Raises:
        UsageError: there is no compiler, or no such operator.
        EngineError: it does not compile.
    """
    if device.type == "cpu":
        return Kernels(_cpu("wkv7.cpp"))
    if device.type == "cuda":
        return _cuda(*torch.cuda.get_device_capability(device))
    raise UsageError(f"There is no training operator for the device {device.type}.")
