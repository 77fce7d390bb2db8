"""Which device computes a model: what the person asks for, or what fits."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from rwkv_chat.engine.cuda import CudaBackend, slots_for
from rwkv_chat.engine.cudalib import CudaLibrary, Gpu, find_library
from rwkv_chat.errors import EngineError, MemoryLimitError, UsageError
from rwkv_chat.models.spec import ModelSpec

__all__ = ["describe_gpus", "open_on_gpu"]


def describe_gpus() -> str:
    """What there is to compute with beside the CPU, as a sentence."""
    try:
        library = find_library()
        if library is None:
            return "this build has no CUDA kernels; models run on the CPU"
        return "; ".join(gpu.description for gpu in library.gpus())
    except EngineError as error:
        return f"{error} Models run on the CPU."


def open_on_gpu(
    device: str, name: str, spec: ModelSpec, tensors: Mapping[str, npt.NDArray[Any]]
) -> CudaBackend | None:
    """The model on the GPU that `device` asks for; None for the CPU.

    "auto" takes a GPU where the model fits and that has kernels for it, or else the CPU.

    Raises:
        UsageError: there is no such GPU.
        MemoryLimitError: the model does not fit, with figures.
        EngineError: the GPU asked for cannot be used for this model.
    """
    if device == "cpu":
        return None
    try:
        library = find_library()
        if library is None:
            raise UsageError(
                f'There is no device "{device}" in this build, which has no CUDA kernels. '
                "Use --device cpu."
            )
        return _open(library, device, name, spec, tensors)
    except (EngineError, UsageError):
        if device == "auto":
            return None
        raise


def _open(
    library: CudaLibrary,
    device: str,
    name: str,
    spec: ModelSpec,
    tensors: Mapping[str, npt.NDArray[Any]],
) -> CudaBackend:
    gpus = library.gpus()
    if ":" in device:
        index = int(device.partition(":")[2])
        if index >= len(gpus):
            known = "; ".join(gpu.description for gpu in gpus)
            raise UsageError(f"There is no GPU {index}. There are: {known}.")
        gpus = [gpus[index]]
    # The fastest first: the number of processors tells them apart.
    for gpu in sorted(gpus, key=lambda gpu: (-gpu.processors, -gpu.free)):
        if library.needed_bytes(spec, tensors, slots_for(spec, gpu)) <= gpu.free:
            return CudaBackend(library, gpu, spec, tensors)
    raise MemoryLimitError(_too_large(library, gpus, name, spec, tensors))


def _too_large(
    library: CudaLibrary,
    gpus: list[Gpu],
    name: str,
    spec: ModelSpec,
    tensors: Mapping[str, npt.NDArray[Any]],
) -> str:
    best = max(gpus, key=lambda gpu: gpu.free)
    need = library.needed_bytes(spec, tensors, slots_for(spec, best))
    return (
        f"{name} needs {need / 2**30:.1f} GiB of the GPU's memory, and {best.free / 2**30:.1f} GiB "
        f"are free on cuda:{best.index}. Use --weights q4, --device cpu, or a smaller model."
    )
