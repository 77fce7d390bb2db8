"""Once per model: from any supported file to the form that the kernels map, kept in the cache."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkv_chat.checkpoints import q4, q8, safetensors
from rwkv_chat.checkpoints.floats import BLOCK, from_float32, to_float32
from rwkv_chat.checkpoints.folder import find_files
from rwkv_chat.checkpoints.layout import (
    converted_shapes,
    is_read_by_row,
    is_transposed,
    logarithm_of,
    render_spec,
)
from rwkv_chat.checkpoints.reading import Checkpoint
from rwkv_chat.checkpoints.source import FORMATS, Source, read_source
from rwkv_chat.errors import CheckpointError, UsageError
from rwkv_chat.paths import cache_dir, ensure_private
from rwkv_chat.weights import WEIGHTS

__all__ = ["Progress", "cached_path", "convert", "write_converted"]

Array = npt.NDArray[Any]
Progress = Callable[[str, float], None]
"""Told what is being done and how much of it is done, 0 to 1; it cancels by raising."""

_MARGIN = 64 << 20
_ABANDONED = 3600.0


def cached_path(source: Path, weights: str) -> Path:
    """Where the conversion of `source` as it is now is kept: a new size or time is a new file.

    Raises:
        CheckpointError: there is no such file.
    """
    files = find_files(source)
    try:
        found = [path.stat() for path in files.all]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"There is no file {source}. Check the path.") from error
    place = _digest(os.fsencode(files.main.absolute()))
    sizes = " ".join(f"{each.st_size} {each.st_mtime_ns}" for each in found)
    content = _digest(f"{sizes} {FORMATS.get(weights)}".encode())
    return cache_dir() / "converted" / f"{place}-{weights}-{content}.safetensors"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def convert(source: Path, weights: str, progress: Progress | None = None) -> Path:
    """Write the converted form of `source` into the cache, replacing what is there.

    Memory for one tensor is needed at a time, twice where it is quantised. Whatever ends it early
    leaves nothing behind.

    Args:
        source: a model file of any supported format.
        weights: "f32", "bf16", "q8" or "q4", the type of the matrices.
        progress: told how far it is, after every tensor, and while the new file is verified.

    Returns:
        The path of the new file.

    Raises:
        CheckpointError: the file cannot be used, holds a weight that is not finite, or the disk
            has no room or does not keep what is written.
        UsageError: there is no such weights type.
    """
    if weights not in WEIGHTS:
        raise UsageError(f'There is no weights type "{weights}"; use {" or ".join(WEIGHTS)}.')
    target = cached_path(source, weights)
    model = read_source(source)
    _sweep(target.parent)
    write_converted(model, weights, target, progress)
    _drop_outdated(target)
    return target


def write_converted(
    source: Source, weights: str, target: Path, progress: Progress | None = None
) -> None:
    """Write the converted form of `source` to `target`; see `convert`."""
    ensure_private(target.parent)
    _Conversion(source, weights, target, progress).run()


@dataclass(frozen=True, slots=True)
class _Conversion:
    source: Source
    weights: str
    target: Path
    progress: Progress | None

    def run(self) -> None:
        shapes = converted_shapes(self.source.spec, self.weights)
        plan = [(name, dtype, shape) for name, (dtype, shape) in shapes.items()]
        metadata = {
            "format": FORMATS[self.weights],
            "weights": self.weights,
            "spec": render_spec(self.source.spec),
            "name": self.source.name,
            "tokenizer": self.source.tokenizer,
            "template": self.source.template,
        }
        if self.source.vocabulary:
            metadata["vocabulary"] = self.source.vocabulary
        folder = self.target.parent
        self._check_room(folder, sum(_nbytes(dtype, shape) for _, dtype, shape in plan))
        try:
            written = safetensors.write_stream(
                self.target, plan, self._arrays(), metadata, digest_key="fingerprint"
            )
        except OSError as error:
            raise CheckpointError(
                f"Cannot write the converted model to {folder}: {error.strerror}. "
                "Free some space, or set RWKV_CHAT_HOME to another disk."
            ) from error
        self._verify(written)

    def _verify(self, written: str) -> None:
        """Read the new file once, so that a large one need not be read whenever it is opened."""
        try:
            with safetensors.open_file(self.target) as file:
                found = file.payload_sha256(partial(self._tell, f"Verifying {self.source.name}"))
            if found != written:
                raise CheckpointError(
                    f"The converted model {self.target} does not read back as it was written. "
                    "Try again, or set RWKV_CHAT_HOME to another disk."
                )
        except BaseException:
            with suppress(OSError):
                self.target.unlink()
            raise

    def _tell(self, step: str, part: float) -> None:
        if self.progress is not None:
            self.progress(step, part)

    def _arrays(self) -> Iterator[Array]:
        shapes = converted_shapes(self.source.spec, self.weights)
        total = sum(_nbytes(dtype, shape) for dtype, shape in shapes.values())
        done = 0
        step = f"Converting {self.source.name} to {self.weights}"
        for name, (dtype, shape) in shapes.items():
            self._tell(step, done / total)
            yield self._array(name, dtype, shapes)
            done += _nbytes(dtype, shape)
        self._tell(step, 1.0)

    def _array(
        self, entry: str, dtype: str, shapes: Mapping[str, tuple[str, tuple[int, ...]]]
    ) -> Array:
        """The content of one entry of the new file: a tensor, or the scales of one."""
        name = entry.removesuffix(q8.SCALE)
        file, stored = self.source.checkpoint, self.source.names[name]
        array = file.array(stored)
        plain_shape = converted_shapes(self.source.spec, "f32")[name][1]
        if array.dtype == np.int8:
            scales = file.array(stored + q8.SCALE) if is_read_by_row(name) else None
            array = q8.dequantize(array, scales, plain_shape)
        elif array.dtype == np.uint8:
            array = q4.unpack(array, plain_shape)
        if array.ndim >= 2 and is_transposed(name) and not self.source.is_turned(name):
            array = array.swapaxes(-1, -2)
        logarithm = logarithm_of(name)
        if logarithm and stored.endswith(logarithm):
            with np.errstate(over="ignore"):  # what is not finite is refused
                array = np.exp(to_float32(array))
        array = array.reshape(plain_shape)
        return _convert_tensor(file, entry, array, dtype, shapes[entry][1])

    def _check_room(self, folder: Path, size: int) -> None:
        free = shutil.disk_usage(folder).free
        if free < size + _MARGIN:
            raise CheckpointError(
                f"Converting {self.source.name} needs {size / 1e9:.2f} GB in {folder}, where "
                f"{free / 1e9:.2f} GB are free. Free some space, or set RWKV_CHAT_HOME to "
                "another disk."
            )


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * safetensors.DTYPES[dtype].itemsize


def _convert_tensor(
    file: Checkpoint, entry: str, array: Array, dtype: str, shape: tuple[int, ...]
) -> Array:
    """What an entry of the type `dtype` holds of the values of `array`, block by block."""
    result: Array = np.empty(shape, safetensors.DTYPES[dtype])
    rows = max(1, BLOCK // max(1, array[0].size))
    together = 1  # rows of the array that become one of the result
    if len(shape) == 3 and dtype in {"I8", "U8"}:
        together = q4.TILE_ROWS
        rows = -(-rows // together) * together
    for start in range(0, len(array), rows):
        block = array[start : start + rows]
        values = to_float32(block)
        finite = bool(np.isfinite(values).all())
        if finite and entry.endswith(q8.SCALE):
            block = q8.scales_of(values)
        elif finite and dtype == "I8":
            block = q8.quantize(values)
            block = block if together == 1 else q8.pack_tiles(block, q8.scales_of(values))
        elif finite and dtype == "U8":
            groups = q4.quantize(values)
            finite = all(np.isfinite(to_float32(part)).all() for part in groups[1:])
            block = q4.pack_rows(groups) if together == 1 else q4.pack_tiles(groups)
        elif array.dtype != result.dtype:
            block = from_float32(values, dtype)
            finite = finite and bool(np.isfinite(to_float32(block)).all())
        if not finite:
            raise CheckpointError(
                f"{file.path}: tensor {entry.removesuffix(q8.SCALE)} holds a value that is not "
                "finite or too large. The file is damaged: get it again."
            )
        result[start // together : (start + rows) // together] = block
    return result


def _drop_outdated(target: Path) -> None:
    """Remove conversions of what was at the same place before; who maps one keeps it."""
    prefix = target.name.rsplit("-", 1)[0]
    for path in target.parent.glob(f"{prefix}-*.safetensors"):
        if path != target:
            with suppress(OSError):  # not being able to tidy up spoils no conversion
                path.unlink()


def _sweep(folder: Path) -> None:
    """Remove what conversions that were killed have left; running ones write all the time."""
    for path in folder.glob(".*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()
        except OSError:
            continue  # another window was faster
