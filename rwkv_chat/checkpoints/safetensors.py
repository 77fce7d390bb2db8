"""The safetensors format: a reader that proves every size before using it, and an atomic writer.

A file is an 8-byte little-endian header length, a JSON header, and the payload. The header maps
each name to `{"dtype", "shape", "data_offsets": [start, end]}`, offsets counted from the start
of the payload, and may hold `__metadata__`, a map of strings. bfloat16 appears in numpy as uint16.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rwkv_chat.checkpoints.files import U8, map_file
from rwkv_chat.errors import CheckpointError, NotAModelError, ShapeError, TruncatedError
from rwkv_chat.files import replacing

__all__ = ["DTYPES", "TensorFile", "TensorInfo", "open_file", "write", "write_stream"]

Array = npt.NDArray[Any]

DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "F32": np.dtype("<f4"),
        "F16": np.dtype("<f2"),
        "BF16": np.dtype("<u2"),
        "U8": np.dtype("u1"),
        "I8": np.dtype("i1"),
        "I32": np.dtype("<i4"),
        "U32": np.dtype("<u4"),
        "I64": np.dtype("<i8"),
        "U64": np.dtype("<u8"),
    }
)
"""What may be stored, and how numpy sees it."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 16 << 20
_MAX_DEPTH = 4
_MAX_DIM = 2**31
_ALIGNMENT = 64
_CHUNK = 16 << 20
_NAME = re.compile(r"[!-\[\]-~]{1,256}")  # printable ASCII but for the backslash
# A string that is never closed takes the rest: no byte is looked at twice.
_NESTING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|([\[{])|[\]}]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's type (a key of DTYPES), its shape, and its bytes [start, end) in the payload."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.end - self.start


class TensorFile:
    """An open file whose header has been verified; arrays are read-only views into the mapping."""

    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, str],
        tensors: Mapping[str, TensorInfo],
        payload: U8,
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.tensors = tensors
        self._payload: U8 | None = payload

    @property
    def payload(self) -> U8:
        """All tensor bytes in file order, uint8 [size]."""
        if self._payload is None:
            raise CheckpointError(f"{self.path} has been closed.")
        return self._payload

    def array(self, name: str) -> Array:
        """The tensor `name` (KeyError if there is none), a read-only view of its shape."""
        info = self.tensors[name]
        return self.payload[info.start : info.end].view(DTYPES[info.dtype]).reshape(info.shape)

    def payload_sha256(self, progress: Callable[[float], None] | None = None) -> str:
        """The sha256 of the payload, hexadecimal; reads the whole file.

        `progress` is told which part of it has been read, 0 to 1; it cancels by raising.
        """
        digest = hashlib.sha256()
        for start in range(0, len(self.payload), _CHUNK):
            if progress is not None:
                progress(start / len(self.payload))
            digest.update(self.payload[start : start + _CHUNK].data)
        return digest.hexdigest()

    def close(self) -> None:
        """Let go of the mapping; it ends when the last array that views it is gone."""
        self._payload = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_file(path: Path) -> TensorFile:
    """Open a safetensors file and verify its header against the size of the file.

    Raises:
        CheckpointError: one of its subclasses, with the file and what is wrong with it.
    """
    data = map_file(path)
    if len(data) < 8:
        raise NotAModelError(f"{path} is not a safetensors file: it has only {len(data)} bytes.")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if not 2 <= length <= _MAX_HEADER:
        raise NotAModelError(
            f"{path} is not a safetensors file: its first bytes are no header size."
        )
    if length > len(data) - 8:
        raise TruncatedError(
            f"{path} ends inside its header ({len(data)} bytes). Copy or download it again."
        )
    header = _parse(path, data[8 : 8 + length].tobytes())
    payload = data[8 + length :]
    metadata = _check_metadata(path, header.pop("__metadata__", {}))
    tensors = {name: _check_entry(path, name, entry) for name, entry in header.items()}
    _check_ranges(path, tensors, len(payload))
    return TensorFile(path, MappingProxyType(metadata), MappingProxyType(tensors), payload)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    depth = 0
    for match in _NESTING.finditer(text):
        if match[1]:
            depth += 1
            if depth > _MAX_DEPTH:
                raise NotAModelError(f"{path} is not a safetensors file: its header is too nested.")
        elif match[0] in b"]}":
            depth -= 1
    try:
        header = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise NotAModelError(
            f"{path} is not a safetensors file: its header cannot be read ({str(error)[:120]})."
        ) from error
    if not isinstance(header, dict):
        raise NotAModelError(f"{path} is not a safetensors file: its header is not a map.")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _check_metadata(path: Path, metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise NotAModelError(f"{path} is damaged: its metadata is not a map of strings.")
    return metadata


def _check_entry(path: Path, name: str, entry: object) -> TensorInfo:
    if not _NAME.fullmatch(name) or ".." in name or name.startswith("/"):
        raise NotAModelError(f"{path} holds a tensor with a forbidden name, {name[:80]!a}.")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise NotAModelError(f"{path} is damaged: the entry of tensor {name} is not complete.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ShapeError(
            f"{path}: tensor {name} has the type {str(dtype)[:20]!a}, which is not supported; "
            "save it as float32, float16 or bfloat16."
        )
    if not _is_sizes(shape) or len(shape) > 4 or not all(0 < size < _MAX_DIM for size in shape):
        raise ShapeError(f"{path}: tensor {name} has the impossible shape {str(shape)[:80]}.")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise NotAModelError(f"{path} is damaged: tensor {name} has no valid place in the file.")
    info = TensorInfo(dtype, tuple(shape), *offsets)
    if info.start < 0 or prod(shape) * DTYPES[dtype].itemsize != info.nbytes:
        raise TruncatedError(
            f"{path} is damaged: the place of tensor {name} does not fit its shape. "
            "Copy or download it again."
        )
    return info


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _check_ranges(path: Path, tensors: Mapping[str, TensorInfo], size: int) -> None:
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
        if info.start != position:
            what = "overlaps another" if info.start < position else "leaves a hole before it"
            raise TruncatedError(f"{path} is damaged: tensor {name} {what}.")
        position = info.end
    if position != size:
        what = "ends too early" if position > size else "has bytes that belong to no tensor"
        raise TruncatedError(
            f"{path} {what}: its header speaks of {position} bytes of weights, it has {size}. "
            "Copy or download it again."
        )


def write(
    path: Path,
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str],
    *,
    digest_key: str | None = None,
) -> str:
    """Write `tensors` in their order, as `write_stream` does (uint16 arrays become BF16)."""
    plan = [(name, _NAMES[_little(array)], array.shape) for name, array in tensors.items()]
    return write_stream(path, plan, tensors.values(), metadata, digest_key=digest_key)


def write_stream(
    path: Path,
    plan: Sequence[tuple[str, str, tuple[int, ...]]],
    arrays: Iterable[Array],
    metadata: Mapping[str, str],
    *,
    digest_key: str | None = None,
) -> str:
    """Write tensors one after the other, so that no more than one must be in memory.

    Args:
        path: the file to create or replace: atomically, durably, readable by its owner only.
        plan: name, type and shape of every tensor, in file order.
        arrays: the tensors themselves, in the same order.
        metadata: goes into the header.
        digest_key: when given, the sha256 of the payload is also stored in the metadata under it.

    Returns:
        The sha256 of the payload, hexadecimal.

    Raises:
        ValueError: an array does not match the plan. OSError: the file cannot be written.
    """
    placeholder = {digest_key: "0" * 64} if digest_key else {}
    header = _header(plan, {**metadata, **placeholder})
    digest = hashlib.sha256()
    with replacing(path) as file:
        file.write(header)
        for (name, dtype, shape), array in zip(plan, arrays, strict=True):
            if _little(array) != DTYPES[dtype] or array.shape != shape:
                raise ValueError(f"{name} is {array.dtype} {array.shape}, not {dtype} {shape}")
            data = np.ascontiguousarray(array, dtype=DTYPES[dtype]).reshape(-1).view(np.uint8)
            for start in range(0, len(data), _CHUNK):
                chunk = data[start : start + _CHUNK].data
                digest.update(chunk)
                file.write(chunk)
        result = digest.hexdigest()
        if digest_key:
            file.seek(0)
            file.write(_header(plan, {**metadata, digest_key: result}))
    return result


def _little(array: Array) -> np.dtype[Any]:
    return array.dtype.newbyteorder("<")


def _header(plan: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for name, dtype, shape in plan:
        end = position + prod(shape) * DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
