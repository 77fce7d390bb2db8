"""The library of the CUDA engine, where there is one: kernels/cuda/api.h in Python's words."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkv_chat import _native
from rwkv_chat.errors import DeviceLostError, EngineError, MemoryLimitError
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.state import F32

__all__ = ["CudaLibrary", "CudaModel", "Gpu", "Sampler", "find_library"]

Arrays = Mapping[str, npt.NDArray[Any]]

_VERSION = 1
_NAME = "librwkv_cuda.so"
_MEMORY, _LOST = 2, 3
_TYPES = {np.dtype(kind): place for place, kind in enumerate(("f4", "u2", "i1", "u1"))}


class _Device(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 256),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
        ("processors", ctypes.c_int),
        ("total", ctypes.c_uint64),
        ("free", ctypes.c_uint64),
    )


class _Spec(ctypes.Structure):
    _fields_ = (
        ("generation", ctypes.c_char_p),
        *(
            (name, ctypes.c_uint64)
            for name in (
                *("n_layer", "n_embd", "n_att", "vocab_size", "head_size", "n_ffn"),
                *("rank_w", "rank_a", "rank_v", "rank_g", "rank_mix"),
            )
        ),
        ("group_norm_eps", ctypes.c_float),
    )


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("shape", ctypes.c_uint64 * 3),
        ("dimensions", ctypes.c_int),
        ("type", ctypes.c_int),
    )


class _Sampling(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_double)
            for name in ("temperature", "top_p", "min_p", "presence", "frequency", "decay")
        ),
        *((name, ctypes.c_uint64) for name in ("top_k", "seed", "draw")),
    )


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device that CUDA sees; `total` and `free` are bytes of its memory."""

    index: int
    name: str
    capability: str
    processors: int
    total: int
    free: int

    @property
    def description(self) -> str:
        """For people."""
        free, total = self.free / 2**30, self.total / 2**30
        return f"cuda:{self.index} {self.name} ({free:.1f} of {total:.1f} GiB free)"


@dataclass(frozen=True, slots=True)
class Sampler:
    """How one state samples; see kernels/cuda/api.h. The masks have a bit for every id."""

    temperature: float
    top_p: float
    min_p: float
    presence: float
    frequency: float
    decay: float
    top_k: int
    seed: int
    draw: int
    banned: npt.NDArray[np.uint32]
    exempt: npt.NDArray[np.uint32]
    counted: npt.NDArray[np.uint32]
    values: npt.NDArray[np.float64]


class CudaLibrary:
    """The functions that need no model."""

    def __init__(self, path: Path) -> None:
        """Load it; a driver need not be there.

        Raises:
            EngineError: it cannot be loaded, or belongs to another version.
        """
        try:
            self._library = ctypes.CDLL(str(path))
            version = self._library.rwkv_cuda_version()
        except (OSError, AttributeError) as error:
            raise EngineError(f"The CUDA kernels cannot be loaded: {error}.") from error
        if version != _VERSION:
            raise EngineError(
                f"{path} belongs to another version of rwkv-chat. Install rwkv-chat again."
            )
        self._library.rwkv_cuda_error.restype = ctypes.c_char_p
        self._library.rwkv_cuda_close.restype = None

    def call(self, name: str, *arguments: object) -> None:
        """Call a function that returns a code.

        Raises:
            MemoryLimitError: the GPU's memory is too small.
            DeviceLostError: the GPU failed.
            EngineError: anything else, in the library's words.
        """
        code: int = getattr(self._library, f"rwkv_cuda_{name}")(*arguments)
        if code == 0:
            return
        sentence = self._library.rwkv_cuda_error().decode(errors="replace")
        if code == _MEMORY:
            raise MemoryLimitError(f"{sentence} Use --weights q8 or q4, or --device cpu.")
        if code == _LOST:
            raise DeviceLostError(sentence)
        raise EngineError(sentence)

    def gpus(self) -> list[Gpu]:
        """The devices that can be used.

        Raises:
            EngineError: there is no driver or no device, in CUDA's words.
        """
        count = ctypes.c_int()
        self.call("devices", ctypes.byref(count))
        return [self._gpu(index) for index in range(count.value)]

    def _gpu(self, index: int) -> Gpu:
        found = _Device()
        self.call("device", index, ctypes.byref(found))
        capability = f"{found.major}.{found.minor}"
        name = found.name.decode(errors="replace")
        return Gpu(index, name, capability, found.processors, found.total, found.free)

    def needed_bytes(self, spec: ModelSpec, tensors: Arrays, slots: int) -> int:
        """Device memory for a model with `slots` states.

        Raises:
            EngineError: there are no kernels for it.
        """
        need = ctypes.c_uint64()
        self.call("need", *_model_arguments(spec, tensors), slots, ctypes.byref(need))
        return need.value

    def read_bandwidth(self, device: int) -> float:
        """Bytes per second that a device reads from its memory, measured now."""
        found = ctypes.c_double()
        self.call("bandwidth", device, ctypes.byref(found))
        return found.value


class CudaModel:
    """A model on a device, with room for `slots` states; used by one thread at a time."""

    def __init__(
        self, library: CudaLibrary, device: int, spec: ModelSpec, tensors: Arrays, slots: int
    ) -> None:
        """Copy the weights to the device; the embedding stays where it is and must not change.

        Raises:
            MemoryLimitError: it does not fit, with figures.
            EngineError: there are no kernels for it, or the device cannot be used.
        """
        self._library = library
        self._tensors = tensors
        self.vocab_size = spec.vocab_size
        self.slots = slots
        self._handle = ctypes.c_void_p()
        arguments = _model_arguments(spec, tensors)
        library.call("open", device, *arguments, slots, ctypes.byref(self._handle))

    def __del__(self) -> None:
        """Give the memory back."""
        handle = getattr(self, "_handle", None)
        if handle:
            self._library._library.rwkv_cuda_close(handle)

    def write_state(self, slot: int, state: F32) -> None:
        """The state of `slot` becomes `state`, C-contiguous float32 of the model's size."""
        self._call("write_state", slot, _pointer(state))

    def read_state(self, slot: int, state: F32) -> None:
        """`state` becomes that of `slot`."""
        self._call("read_state", slot, _pointer(state))

    def copy_state(self, source: int, target: int) -> None:
        """Copy on the device."""
        self._call("copy_state", source, target)

    def forward(self, slots: Sequence[int], ids: Sequence[Sequence[int]]) -> F32:
        """Feed ids (at least one) to each slot: logits [slots, vocab_size] after the last ones."""
        logits = np.empty((len(slots), self.vocab_size), np.float32)
        flat = np.array([each for run in ids for each in run], np.uint32)
        counts = np.array([len(run) for run in ids], np.int32)
        places = np.array(slots, np.int32)
        arrays = (places, counts, flat, logits)
        self._call("forward", len(slots), *(_pointer(array) for array in arrays))
        return logits

    def set_sampler(self, slot: int, sampler: Sampler) -> None:
        """How `slot` samples from now on."""
        plain = _Sampling(*(getattr(sampler, name) for name, *_ in _Sampling._fields_))
        masks = _pointer(sampler.banned), _pointer(sampler.exempt)
        counts = _pointer(sampler.counted), _pointer(sampler.values)
        count = ctypes.c_size_t(len(sampler.counted))
        self._call("sampling", slot, ctypes.byref(plain), *masks, *counts, count)

    def choose(self, slot: int, logits: F32) -> int:
        """The next token after logits [vocab_size]; 0xFFFFFFFF if they are not all finite."""
        chosen = ctypes.c_uint32()
        self._call("choose", slot, _pointer(logits), ctypes.byref(chosen))
        return chosen.value

    def step(self, slots: Sequence[int], ids: Sequence[int]) -> list[int]:
        """Feed one id to each slot, and choose the next ones on the device."""
        count = len(slots)
        chosen = (ctypes.c_uint32 * count)()
        places, fed = (ctypes.c_int * count)(*slots), (ctypes.c_uint32 * count)(*ids)
        self._call("step", count, places, fed, chosen)
        return list(chosen)

    def logits(self, index: int) -> F32:
        """Those after place `index` of the last step."""
        found = np.empty(self.vocab_size, np.float32)
        self._call("logits", index, _pointer(found))
        return found

    def _call(self, name: str, *arguments: object) -> None:
        self._library.call(name, self._handle, *arguments)


def _model_arguments(spec: ModelSpec, tensors: Arrays) -> tuple[object, ...]:
    values = [getattr(spec, name) for name, *_ in _Spec._fields_[1:]]
    sizes = _Spec(spec.generation.encode(), *values)
    described = (_Tensor * len(tensors))()
    for place, (name, array) in enumerate(tensors.items()):
        if array.dtype not in _TYPES or not 1 <= array.ndim <= 3 or not array.flags.c_contiguous:
            raise EngineError(f"Tensor {name} has a type or a shape that the GPU cannot use.")
        shape = (ctypes.c_uint64 * 3)(*array.shape)
        kind = _TYPES[array.dtype]
        described[place] = _Tensor(name.encode(), array.ctypes.data, shape, array.ndim, kind)
    return ctypes.byref(sizes), described, ctypes.c_size_t(len(tensors))


def _pointer(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def library_path() -> Path:
    """Where the library is, if this installation was built with one: beside the compiled core."""
    return Path(_native.__file__).with_name(_NAME)


@cache
def find_library() -> CudaLibrary | None:
    """The library of this installation; None where it was built without.

    Raises:
        EngineError: it is there, and cannot be loaded.
    """
    path = library_path()
    return CudaLibrary(path) if path.exists() else None
