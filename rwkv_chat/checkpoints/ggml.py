"""Tensors in the number types of ggml, which GGUF files and those of rwkv.cpp share.

Most types are quantised: a row is cut into blocks of 32 or 256 values, and each block is a few
scales with as many small integers. The official package `gguf` turns blocks into float32.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkv_chat.checkpoints.files import U8
from rwkv_chat.checkpoints.floats import BLOCK
from rwkv_chat.checkpoints.safetensors import DTYPES
from rwkv_chat.errors import (
    NotAModelError,
    ShapeError,
    TruncatedError,
    UnsupportedModelError,
)

__all__ = [
    "GgmlFile",
    "GgmlTensor",
    "Number",
    "Stored",
    "check_name",
    "check_stored",
    "check_tiling",
    "number_of",
    "parts_of",
    "turned",
]

Array = npt.NDArray[Any]

_MAX_DIM = 2**31
_NAME = re.compile("[!-~]{1,128}")


@dataclass(frozen=True, slots=True)
class Number:
    """A number type: its code in ggml, and the bytes of a block of so many values.

    `dtype` is the key of DTYPES that holds its values exactly.
    """

    code: int
    name: str
    values: int = 1
    nbytes: int = 4
    dtype: str = "F32"

    @property
    def is_plain(self) -> bool:
        """Whether numpy reads it as it is."""
        return self.values == 1


_NUMBERS = {
    number.code: number
    for number in (
        Number(0, "F32"),
        Number(1, "F16", nbytes=2, dtype="F16"),
        Number(30, "BF16", nbytes=2, dtype="BF16"),
        Number(2, "Q4_0", 32, 18),
        Number(3, "Q4_1", 32, 20),
        Number(6, "Q5_0", 32, 22),
        Number(7, "Q5_1", 32, 24),
        Number(8, "Q8_0", 32, 34),
        Number(10, "Q2_K", 256, 84),
        Number(11, "Q3_K", 256, 110),
        Number(12, "Q4_K", 256, 144),
        Number(13, "Q5_K", 256, 176),
        Number(14, "Q6_K", 256, 210),
        Number(20, "IQ4_NL", 32, 18),
        Number(23, "IQ4_XS", 256, 136),
    )
}


def number_of(path: Path, name: str, code: int) -> Number:
    """The number type with this code of ggml.

    Raises:
        UnsupportedModelError: it is another one, which the sentence names.
    """
    if code in _NUMBERS:
        return _NUMBERS[code]
    from gguf import GGMLQuantizationType  # slow, and seldom needed

    known = {kind.value: kind.name for kind in GGMLQuantizationType}
    raise UnsupportedModelError(
        f"{path}: tensor {name} has the type {known.get(code, f'number {code}')}, which cannot be "
        "read. Get the model as F16, Q8_0 or Q4_K, or as .safetensors or .pth."
    )


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as a file has it: its first byte, and its shape with the rows last."""

    name: str
    number: Number
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Size in the file, in bytes."""
        return prod(self.shape) // self.number.values * self.number.nbytes

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.start + self.nbytes


def check_name(path: Path, name: str) -> str:
    """The name of a tensor, if it is one that may be shown and looked up.

    Raises:
        NotAModelError: it is not.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise NotAModelError(f"{path} holds a tensor with a forbidden name, {name[:80]!a}.")
    return name


def check_stored(path: Path, tensor: Stored, size: int) -> None:
    """Check that a tensor is possible and lies inside a file of `size` bytes.

    Raises:
        CheckpointError: one of its subclasses, with what is wrong with it.
    """
    name, shape = tensor.name, tensor.shape
    if not 0 < len(shape) <= 4 or not all(0 < n < _MAX_DIM for n in shape):
        raise ShapeError(f"{path}: tensor {name} has the impossible shape {list(shape)!s:.80}.")
    if shape[-1] % tensor.number.values:
        raise ShapeError(
            f"{path}: rows of {shape[-1]} numbers in tensor {name} are no whole blocks of "
            f"{tensor.number.name}. The file is damaged: get it again."
        )
    if tensor.end > size:
        raise TruncatedError(
            f"{path} ends inside the tensor {name}: {tensor.end} bytes are needed, it has {size}. "
            "Copy or download it again."
        )


def check_tiling(
    path: Path, tensors: Iterable[Stored], begin: int, size: int, alignment: int
) -> None:
    """Check that tensors fill a file of `size` bytes from `begin` on: in order, each at the next
    multiple of `alignment`, with nothing after the last but what fills that up.

    So a small file cannot pretend to be a huge model, and a wrong type or shape shows.

    Raises:
        TruncatedError: they do not.
    """
    position = begin
    for tensor in tensors:
        if tensor.start != position:
            fault = "overlaps another" if tensor.start < position else "does not follow another"
            raise TruncatedError(
                f"{path} is damaged: tensor {tensor.name} {fault}. Copy or download it again."
            )
        position = -(-tensor.end // alignment) * alignment
    if position < size:
        raise TruncatedError(
            f"{path} is damaged: {size - position} bytes follow its last tensor. "
            "Copy or download it again."
        )


def turned(array: Array) -> Array:
    """The transpose of the last two dimensions."""
    return array.swapaxes(-1, -2)


@dataclass(frozen=True, slots=True)
class GgmlTensor:
    """An official tensor: `undo` makes it out of the stored one, but for the shape.

    `computed` tells that the numbers are others than the stored ones, in float32.
    """

    stored: Stored
    shape: tuple[int, ...]
    undo: Callable[[Array], Array] | None = None
    computed: bool = False

    @property
    def dtype(self) -> str:
        """A key of DTYPES."""
        return "F32" if self.computed else self.stored.number.dtype


def parts_of(path: Path, stored: Stored, names: Sequence[str]) -> Iterator[tuple[str, GgmlTensor]]:
    """Several vectors that are stored as one tensor, one after the other.

    Raises:
        ShapeError: it cannot be divided by their number.
    """
    size = prod(stored.shape)
    if size % len(names):
        raise ShapeError(
            f"{path}: tensor {stored.name} is {list(stored.shape)}, which is not {len(names)} "
            "vectors. The file does not fit together: get it again."
        )
    shape = (size // len(names),)
    for index, name in enumerate(names):
        yield name, GgmlTensor(stored, shape, partial(_part, index, len(names)))


def _part(index: int, count: int, array: Array) -> Array:
    part: Array = array.reshape(count, -1)[index]
    return part


class GgmlFile:
    """An open file whose header has been verified, under official names and in official shapes.

    Quantised tensors are turned into float32 whenever they are asked for.
    """

    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, str],
        tensors: Mapping[str, GgmlTensor],
        data: U8,
    ) -> None:
        self.path = path
        self.metadata = MappingProxyType(dict(metadata))
        self.tensors = MappingProxyType(dict(tensors))
        self._data = data

    def array(self, name: str) -> Array:
        """The tensor `name` (KeyError if there is none), read-only and in its shape."""
        tensor = self.tensors[name]
        with np.errstate(all="ignore"):  # whoever uses the weights refuses what is not finite
            result = _read(self._data, tensor.stored)
            if tensor.undo is not None:
                result = tensor.undo(result)
        result = result.reshape(tensor.shape)
        result.setflags(write=False)
        return result


def _read(data: U8, tensor: Stored) -> Array:
    """The stored tensor as a view, or as a new float32 array where it is quantised."""
    number = tensor.number
    if number.is_plain:
        return np.ndarray(tensor.shape, DTYPES[number.dtype], data.data, tensor.start)
    from gguf import GGMLQuantizationType  # slow: only for those who have such a file
    from gguf.quants import dequantize

    kind = GGMLQuantizationType(number.code)
    rows = data[tensor.start : tensor.end].reshape(prod(tensor.shape[:-1]), -1)
    result = np.empty((len(rows), tensor.shape[-1]), np.float32)
    step = max(1, BLOCK // tensor.shape[-1])
    for start in range(0, len(rows), step):
        result[start : start + step] = dequantize(rows[start : start + step], kind)
    return result.reshape(tensor.shape)
