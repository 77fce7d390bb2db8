"""The header of GGUF files, read within bounds: nothing is believed before it is compared.

A file is `GGUF`, a version, the number of tensors and of values, the values (a key, a type, the
value), for each tensor its name, dimensions (innermost first), type and offset, and, from the next
multiple of the alignment on, the bytes of the tensors. All numbers are little-endian.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rwkv_chat.checkpoints.files import U8
from rwkv_chat.checkpoints.ggml import (
    Stored,
    check_name,
    check_stored,
    check_tiling,
    number_of,
)
from rwkv_chat.errors import NotAModelError, TruncatedError, UnsupportedModelError

__all__ = ["Header", "read_header"]

Value = int | float | str | list[bytes] | list[int]

_MAX_HEADER = 32 << 20
_MAX_COUNT = 1 << 16
_MAX_NAME = 256
_MAX_STRING = 1 << 16
_MAX_ARRAY = 1 << 20
_MAX_ALIGNMENT = 1 << 16
_STRING, _ARRAY = 8, 9
_SCALARS = {
    code: np.dtype(name)
    for code, name in enumerate(("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "u1"))
} | {code: np.dtype(name) for code, name in ((10, "<u8"), (11, "<i8"), (12, "<f8"))}

_SCALAR_KEYS = frozenset(
    {
        "general.architecture",
        "general.alignment",
        "split.count",
        "rwkv6.block_count",
        "rwkv6.rescale_every_n_layers",
        "rwkv7.block_count",
        "rwkv7.rescale_every_n_layers",
        "rwkv7.wkv.head_size",
        "tokenizer.ggml.model",
    }
)
_ARRAY_KEYS = frozenset({"tokenizer.ggml.tokens", "tokenizer.ggml.token_type"})


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of itself: the values that are of use here, and its tensors."""

    values: Mapping[str, Value]
    tensors: Mapping[str, Stored]

    def number(self, key: str) -> int | None:
        """The integer under `key`; None where there is none or it is something else."""
        value = self.values.get(key)
        return value if isinstance(value, int) else None

    def text(self, key: str) -> str:
        """The text under `key`, "" where there is none or it is something else."""
        value = self.values.get(key)
        return value if isinstance(value, str) else ""


def read_header(path: Path, data: U8) -> Header:
    """Read and verify the header of the GGUF file `data`.

    Raises:
        CheckpointError: one of its subclasses, with what is wrong with it.
    """
    cursor = _Cursor(path, data)
    cursor.skip(4)
    version = cursor.integer(4)
    if version & 0xFFFF == 0:
        raise UnsupportedModelError(
            f"{path} was written for a big-endian machine. Get it for little-endian ones."
        )
    if version not in (2, 3):
        raise UnsupportedModelError(
            f"{path} is a GGUF file of version {version}, and only 2 and 3 can be read. "
            "Convert the model again with a current converter, or get it as .safetensors or .pth."
        )
    n_tensors, n_values = cursor.integer(8), cursor.integer(8)
    if n_tensors > _MAX_COUNT or n_values > _MAX_COUNT:
        raise NotAModelError(
            f"{path} is damaged: it speaks of {n_tensors} tensors and {n_values} values."
        )
    values: dict[str, Value] = {}
    for _ in range(n_values):
        key = cursor.text(_MAX_STRING)
        if key in values:
            raise NotAModelError(f"{path} is damaged: it has the value {key[:80]!a} twice.")
        value = cursor.value(key)
        if value is not None:
            values[key] = value
    described = [_described(path, cursor) for _ in range(n_tensors)]
    alignment = _alignment(path, values)
    start = -(-cursor.at // alignment) * alignment
    if data[cursor.at : start].any():
        raise TruncatedError(
            f"{path} is damaged: its header does not end where its tensors begin. "
            "Copy or download it again."
        )
    tensors: dict[str, Stored] = {}
    for tensor in described:
        placed = Stored(tensor.name, tensor.number, tensor.shape, start + tensor.start)
        if tensor.name in tensors:
            raise NotAModelError(f"{path} is damaged: it has the tensor {tensor.name} twice.")
        check_stored(path, placed, len(data))
        tensors[tensor.name] = placed
    check_tiling(path, tensors.values(), start, len(data), alignment)
    return Header(values, tensors)


def _described(path: Path, cursor: "_Cursor") -> Stored:
    """One tensor, its start counted from the first byte of all tensors."""
    name = check_name(path, cursor.text(_MAX_NAME))
    dimensions = cursor.integer(4)
    if dimensions > 4:
        raise NotAModelError(f"{path} is damaged: tensor {name} has {dimensions} dimensions.")
    shape = tuple(cursor.integer(8) for _ in range(dimensions))[::-1]
    number = number_of(path, name, cursor.integer(4))
    return Stored(name, number, shape, cursor.integer(8))


def _alignment(path: Path, values: Mapping[str, Value]) -> int:
    """What the place of every tensor is a multiple of, in bytes."""
    alignment = values.get("general.alignment", 32)
    if (
        not isinstance(alignment, int)
        or not 0 < alignment <= _MAX_ALIGNMENT
        or alignment & (alignment - 1)
    ):
        raise NotAModelError(f"{path} is damaged: its alignment is {str(alignment)[:20]!a}.")
    return alignment


class _Cursor:
    """Reads a header from front to back, never beyond the end of the file."""

    def __init__(self, path: Path, data: U8) -> None:
        self.at = 0
        self._path = path
        self._data = data.data[: min(len(data), _MAX_HEADER)]
        self._is_cut = len(data) > _MAX_HEADER

    def skip(self, count: int) -> int:
        """Go on by `count` bytes; returns where they start."""
        start = self.at
        if count > len(self._data) - start:
            if self._is_cut:
                raise NotAModelError(f"{self._path} is damaged: its header does not end.")
            raise TruncatedError(
                f"{self._path} ends inside its header ({len(self._data)} bytes). "
                "Copy or download it again."
            )
        self.at = start + count
        return start

    def integer(self, size: int) -> int:
        start = self.skip(size)
        return int.from_bytes(self._data[start : start + size], "little")

    def text(self, longest: int) -> str:
        length = self.integer(8)
        if length > longest:
            raise NotAModelError(f"{self._path} is damaged: it has a name of {length} bytes.")
        start = self.skip(length)
        try:
            return str(self._data[start : start + length], "utf-8")
        except UnicodeDecodeError:
            raise NotAModelError(f"{self._path} is damaged: it has a name of no text.") from None

    def value(self, key: str) -> Value | None:
        """The value that follows; None where it is passed over, being of no use here."""
        code = self.integer(4)
        keep = key in _SCALAR_KEYS
        if code == _ARRAY:
            if keep:
                raise NotAModelError(f"{self._path} is damaged: its value {key} is an array.")
            return self._array(key, keep=key in _ARRAY_KEYS)
        if code == _STRING:
            if keep:
                return self.text(_MAX_STRING)
            self.skip(self.integer(8))
            return None
        dtype = self._scalar(key, code)
        start = self.skip(dtype.itemsize)
        value = np.frombuffer(self._data, dtype, 1, start)[0].item() if keep else None
        return value if isinstance(value, int | float) else None

    def _array(self, key: str, *, keep: bool) -> list[bytes] | list[int] | None:
        code, count = self.integer(4), self.integer(8)
        if count > _MAX_ARRAY:
            raise NotAModelError(
                f"{self._path} is damaged: its value {key[:80]!a} has {count} parts."
            )
        if code == _STRING:
            return self._strings(count, keep=keep)
        dtype = self._scalar(key, code)
        start = self.skip(count * dtype.itemsize)
        return np.frombuffer(self._data, dtype, count, start).tolist() if keep else None

    def _strings(self, count: int, *, keep: bool) -> list[bytes] | None:
        found = []
        for _ in range(count):
            length = self.integer(8)
            start = self.skip(length)
            if keep:
                found.append(bytes(self._data[start : start + length]))
        return found if keep else None

    def _scalar(self, key: str, code: int) -> np.dtype[np.generic]:
        if code not in _SCALARS:
            raise NotAModelError(
                f"{self._path} is damaged: its value {key[:80]!a} has the type {code}."
            )
        return _SCALARS[code]
