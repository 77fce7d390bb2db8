"""Weights as 8-bit integers: each is an int8 times the scale of its group.

A group is GROUP columns of one row; the last one of a row may be shorter. Its scale is its largest
magnitude / 127, and every weight is kept within half a scale. There are two layouts of int8 arrays,
described in kernels/include/rwkv/kernels.h: tiles of 16 rows [tiles, bytes of a row, 16] with their
scales among them, and, for matrices of which single rows are read, [R, C] with the scales in a
float32 tensor [R, groups] of the same name and SCALE.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from rwkv_chat.checkpoints.q4 import TILE_ROWS

__all__ = [
    "GROUP",
    "SCALE",
    "dequantize",
    "pack_tiles",
    "quantize",
    "scale_shape",
    "scales_of",
    "tile_shape",
    "unpack_tiles",
]

GROUP = 128
"""Columns that share a scale; the kernels know the same number."""
SCALE = ".scale"

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
_LARGEST = 127
_PADDED = 32
"""Columns are filled up to a multiple of it in a tile."""
_BIAS = np.uint8(128)


def scale_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The shape of the scales of a matrix of this shape."""
    rows, columns = shape
    return rows, -(-columns // GROUP)


def tile_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape of the tiles of a matrix of this shape."""
    rows, columns = shape
    of_row = 4 * scale_shape(shape)[1] + -(-columns // _PADDED) * _PADDED
    return -(-rows // TILE_ROWS), of_row, TILE_ROWS


def scales_of(values: F32) -> F32:
    """The scales [R, groups] of finite weights [R, C]."""
    largest: F32 = np.abs(_grouped(values)).max(axis=-1)
    return largest / np.float32(_LARGEST)


def quantize(values: F32) -> I8:
    """Finite weights [R, C] in units of `scales_of(values)`, to the nearest, ties to even."""
    scales = scales_of(values)[..., np.newaxis]
    units = _grouped(values) / np.where(scales > 0, scales, 1)
    # The scale of the smallest numbers is itself rounded: their units may be more than there are.
    numbers = np.clip(np.rint(units), -_LARGEST, _LARGEST).astype(np.int8)
    return numbers.reshape(len(values), -1)[:, : values.shape[1]]


def dequantize(array: I8, scales: F32 | None, shape: tuple[int, ...]) -> F32:
    """The weights [R, C] that tiles, or numbers [R, C] with scales, were made of, rounded.

    Args:
        array: tiles, or numbers.
        scales: [R, groups] of numbers, and None for tiles.
        shape: of the weights.
    """
    numbers, own = unpack_tiles(array, shape) if scales is None else (array, scales)
    return numbers * np.repeat(own, GROUP, axis=1)[:, : shape[1]]


def pack_tiles(numbers: I8, scales: F32) -> I8:
    """Tiles of `numbers` [R, C] and `scales` [R, groups]; R may be any number."""
    rows, columns = numbers.shape
    tiles, of_row, _ = tile_shape(numbers.shape)
    more = tiles * TILE_ROWS - rows
    biased = np.pad(numbers, ((0, more), (0, -columns % _PADDED))).view(np.uint8) ^ _BIAS
    head = np.pad(scales, ((0, more), (0, 0))).astype("<f4").view(np.uint8)
    result = np.empty((tiles, of_row, TILE_ROWS), np.uint8)
    for source, place in _pieces(columns):
        for array, part, at in zip((head, biased), source, place, strict=True):
            own = array[:, part].reshape(tiles, TILE_ROWS, -1, 4).transpose(0, 2, 1, 3)
            result[:, at] = own.reshape(tiles, -1, TILE_ROWS)
    return result.view(np.int8)


def unpack_tiles(packed: I8, shape: tuple[int, ...]) -> tuple[I8, F32]:
    """The numbers [R, C] and scales [R, groups] of which tiles were made."""
    rows, columns = shape
    tiles = len(packed)
    count = tiles * TILE_ROWS
    bytes_ = packed.view(np.uint8)
    head = np.empty((count, 4 * scale_shape(shape)[1]), np.uint8)
    biased = np.empty((count, -(-columns // _PADDED) * _PADDED), np.uint8)
    for source, place in _pieces(columns):
        for array, part, at in zip((head, biased), source, place, strict=True):
            own = bytes_[:, at].reshape(tiles, -1, TILE_ROWS, 4).transpose(0, 2, 1, 3)
            array[:, part] = own.reshape(count, -1)
    numbers = (biased[:rows, :columns] ^ _BIAS).view(np.int8)
    return numbers, head.view("<f4")[:rows].astype(np.float32)


def _pieces(columns: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """For every group: bytes of its scale and its columns, and their places in a row of a tile."""
    place = 0
    for group, first in enumerate(range(0, columns, GROUP)):
        last = min(first + GROUP, -(-columns // _PADDED) * _PADDED)
        numbers = place + 4, place + 4 + last - first
        yield (
            (slice(4 * group, 4 * group + 4), slice(first, last)),
            (slice(place, place + 4), slice(*numbers)),
        )
        place = numbers[1]


def _grouped(values: F32) -> F32:
    """[R, groups, GROUP], filled up with zeros."""
    rows, columns = values.shape
    groups = scale_shape(values.shape)[1]
    padded = np.pad(values, ((0, 0), (0, groups * GROUP - columns)))
    return padded.reshape(rows, groups, GROUP)
