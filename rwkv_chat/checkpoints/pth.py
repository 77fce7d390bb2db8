"""Model files written by `torch.save` (.pth, .pt), read without torch and without running anything.

They are zip archives: `data.pkl` is an index of tensors, `data/<key>` the bytes of each storage.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkv_chat.checkpoints.archive import Entry, is_intact, list_entries
from rwkv_chat.checkpoints.files import U8, map_file
from rwkv_chat.checkpoints.pickles import PickleError, TensorRef, read_index
from rwkv_chat.checkpoints.safetensors import DTYPES
from rwkv_chat.errors import NotAModelError, ShapeError, TruncatedError, UnsupportedModelError

__all__ = ["PthFile", "PthTensor", "open_pth"]

_OLD_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
_MAX_DIM = 2**31
_MAX_NOTE = 80


@dataclass(frozen=True, slots=True)
class PthTensor:
    """A tensor's type (a key of DTYPES), shape, strides in elements, and first byte in the file.

    `entry` is the storage it lies in.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int
    entry: Entry


class PthFile:
    """An open file whose index has been verified; arrays are read-only views into the mapping."""

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, PthTensor],
        data: U8,
        metadata: Mapping[str, str],
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.tensors = tensors
        self._data = data
        self._intact: set[Entry] = set()

    def array(self, name: str) -> npt.NDArray[Any]:
        """The tensor `name` (KeyError if there is none), a read-only view of its shape.

        Its storage is compared with its checksum when it is first asked for.

        Raises:
            TruncatedError: that is not what was written.
        """
        tensor = self.tensors[name]
        if tensor.entry not in self._intact:
            if not is_intact(self._data, tensor.entry):
                raise _changed(self.path, f"the weights of {name[:80]!a}")
            self._intact.add(tensor.entry)
        dtype = DTYPES[tensor.dtype]
        return np.ndarray(
            tensor.shape,
            dtype,
            self._data.data,
            tensor.start,
            tuple(stride * dtype.itemsize for stride in tensor.strides),
        )


def open_pth(path: Path) -> PthFile:
    """Open a torch file and verify its index against the size of the file.

    Raises:
        CheckpointError: one of its subclasses, with the file and what is wrong with it.
    """
    data = map_file(path)
    start = data[:32].tobytes()
    if start[:1] == b"\x80" and _OLD_MAGIC in start:
        raise UnsupportedModelError(
            f"{path} is in the old format of torch before 1.6. Load it once with that torch and "
            "save it again with a newer one, or get the model as safetensors."
        )
    if not start.startswith(b"PK\3\4"):
        raise NotAModelError(f"{path} is not a file written by torch.save.")
    entries = list_entries(path, data)
    root = _root(path, entries)
    order = entries.get(f"{root}byteorder")
    if order is not None and data[order.start : order.end].tobytes() != b"little":
        raise UnsupportedModelError(
            f"{path} was written on a big-endian machine. Save it again on a little-endian one."
        )
    index = entries[f"{root}data.pkl"]
    if not is_intact(data, index):
        raise _changed(path, "its index")
    try:
        found = read_index(data[index.start : index.end].tobytes())
    except PickleError as error:
        raise NotAModelError(f"{path} is not a plain file of tensors: {error}.") from error
    tensors = {
        name: _check(path, name, value, entries, root)
        for name, value in found.items()
        if isinstance(value, TensorRef)
    }
    # The rwkv package stores how it converted a model beside its tensors.
    metadata = {
        name: str(value)[:_MAX_NOTE]
        for name, value in found.items()
        if name.startswith("_") and isinstance(value, str | int)
    }
    return PthFile(path, MappingProxyType(tensors), data, MappingProxyType(metadata))


def _root(path: Path, entries: Mapping[str, Entry]) -> str:
    """The folder inside the archive that holds data.pkl, with its slash."""
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1 or roots[0].count("/") != 1:
        raise NotAModelError(f"{path} is a zip archive, but not a file written by torch.save.")
    return roots[0]


def _check(
    path: Path, name: str, tensor: TensorRef, entries: Mapping[str, Entry], root: str
) -> PthTensor:
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    entry = entries.get(f"{root}data/{storage.key}")
    if entry is None:
        raise TruncatedError(f"{path} is damaged: the weights of {name[:80]!a} are missing.")
    itemsize = DTYPES[storage.dtype].itemsize
    if storage.size * itemsize != entry.size:
        raise TruncatedError(
            f"{path} is damaged: {name[:80]!a} has {entry.size} bytes of weights, "
            f"{storage.size * itemsize} were announced."
        )
    if len(shape) > 4 or len(strides) != len(shape) or not all(0 < n < _MAX_DIM for n in shape):
        raise ShapeError(f"{path}: tensor {name[:80]!a} has the impossible shape {shape!s:.80}.")
    last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    # A stride of 0 would make a huge tensor of a small file: there must be room for every element.
    fits = prod(shape) <= storage.size and tensor.offset >= 0 and last < storage.size
    if not fits or any(stride < 0 for stride in strides):
        raise TruncatedError(
            f"{path} is damaged: tensor {name[:80]!a} reaches outside its weights."
        )
    # The stride of a dimension of one is never used, and may be any number.
    strides = tuple(s if n > 1 else 1 for n, s in zip(shape, strides, strict=True))
    return PthTensor(storage.dtype, shape, strides, entry.start + tensor.offset * itemsize, entry)


def _changed(path: Path, what: str) -> TruncatedError:
    return TruncatedError(
        f"{path} is damaged: {what} and the checksum beside do not agree. "
        "Copy or download it again."
    )
