"""Weights as 4-bit integers: each is `scale * number + least`, with a number from 0 to 15.

Scale and least, bfloat16, belong to a group: GROUP columns of one row. They are chosen to keep the
squared error of the group small. There are two layouts of uint8 arrays, described in
kernels/include/rwkv/kernels.h: tiles of 16 rows [tiles, groups, 576], and rows by themselves
[R, bytes], for ffn.value, of which single rows are read. Both are filled up with zeros.
"""

import numpy as np
import numpy.typing as npt

from rwkv_chat.checkpoints.floats import from_float32, to_float32

__all__ = [
    "GROUP",
    "TILE_ROWS",
    "Groups",
    "pack_rows",
    "pack_tiles",
    "quantize",
    "row_shape",
    "tile_shape",
    "unpack",
]

GROUP = 64
"""Columns that share scale and least; the kernels know the same number."""
TILE_ROWS = 16

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Groups = tuple[U8, npt.NDArray[np.uint16], npt.NDArray[np.uint16]]
"""Numbers [R, groups, GROUP], and scales and leasts [R, groups], bfloat16 as uint16."""

_LARGEST = 15
_PARTS = (1.0, 0.9, 0.8)
"""Shares of a group's range to try: what lies outside is cut, and all else is finer."""


def tile_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape of the tiles of a matrix of this shape."""
    rows, columns = shape
    return -(-rows // TILE_ROWS), -(-columns // GROUP), TILE_ROWS * (4 + GROUP // 2)


def row_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The shape of the packed rows of a matrix of this shape."""
    rows, columns = shape
    return rows, -(-columns // (2 * GROUP)) * (8 + GROUP)


def quantize(values: F32) -> Groups:
    """Finite weights [R, C] as groups; the scales are not finite where the range of a group is not.

    Of some ranges the one is kept, for each group, whose least-squares scale and least fit best.
    """
    rows, columns = values.shape
    groups = -(-columns // GROUP)
    padded = np.pad(values, ((0, 0), (0, groups * GROUP - columns)), mode="edge")
    x = padded.reshape(rows, groups, GROUP)
    low, high = x.min(axis=-1), x.max(axis=-1)
    best = np.zeros_like(x, np.uint8), np.zeros_like(low), np.zeros_like(low)
    least_error = np.full(low.shape, np.nan, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
        for part in _PARTS:
            numbers = _round(x, *_fit(x, _round(x, (high - low) * (part / _LARGEST), low * part)))
            scale, least = _fit(x, numbers)
            numbers = _round(x, scale, least)
            error = np.square(numbers * scale[..., None] + least[..., None] - x).sum(axis=-1)
            better = ~(error >= least_error)
            least_error = np.where(better, error, least_error)
            best = (
                np.where(better[..., None], numbers, best[0]),
                np.where(better, scale, best[1]),
                np.where(better, least, best[2]),
            )
    return best[0], from_float32(best[1], "BF16"), from_float32(best[2], "BF16")


def pack_tiles(groups: Groups) -> U8:
    """[tiles, groups, 576]; R may be any number."""
    numbers, scales, leasts = groups
    rows, count, _ = numbers.shape
    tiles = -(-rows // TILE_ROWS)
    more = tiles * TILE_ROWS - rows
    result = np.empty((tiles, count, TILE_ROWS * (4 + GROUP // 2)), np.uint8)
    head = np.stack([scales, leasts], axis=1).astype("<u2")  # [R, 2, groups]
    head = np.pad(head, ((0, more), (0, 0), (0, 0))).reshape(tiles, TILE_ROWS, 2, count)
    head = np.ascontiguousarray(head.transpose(0, 3, 2, 1))
    result[:, :, : 4 * TILE_ROWS] = head.view(np.uint8).reshape(tiles, count, -1)
    # Blocks of 8 columns: two halves of 4.
    whole = np.pad(numbers, ((0, more), (0, 0), (0, 0)))
    whole = whole.reshape(tiles, TILE_ROWS, count, GROUP // 8, 2, 4)
    both = whole[..., 0, :] | whole[..., 1, :] << 4  # [tiles, row, group, block, 4]
    body = both.transpose(0, 2, 3, 1, 4).reshape(tiles, count, -1)
    result[:, :, 4 * TILE_ROWS :] = body
    return result


def pack_rows(groups: Groups) -> U8:
    """[R, bytes]."""
    numbers, scales, leasts = groups
    rows, count, _ = numbers.shape
    more = count % 2
    spans = (count + more) // 2
    result = np.empty((rows, spans, 8 + GROUP), np.uint8)
    head = np.pad(np.stack([scales, leasts], axis=-1), ((0, 0), (0, more), (0, 0))).astype("<u2")
    result[:, :, :8] = head.view(np.uint8).reshape(rows, spans, 8)
    whole = np.pad(numbers, ((0, 0), (0, more), (0, 0))).reshape(rows, spans, 4, 2, 16)
    both = whole[..., 0, :] | whole[..., 1, :] << 4  # [R, spans, byte of an integer, integer]
    result[:, :, 8:] = both.transpose(0, 1, 3, 2).reshape(rows, spans, GROUP)
    return result.reshape(rows, -1)


def unpack(packed: U8, shape: tuple[int, ...]) -> F32:
    """The weights [R, C] of this shape of which tiles or packed rows were made, rounded."""
    rows, columns = shape
    if packed.ndim == 3:
        tiles, count, _ = packed.shape
        head = np.ascontiguousarray(packed[:, :, : 4 * TILE_ROWS]).view("<u2")
        head = head.reshape(tiles, count, 2, TILE_ROWS).transpose(2, 0, 3, 1)
        scales, leasts = head.reshape(2, tiles * TILE_ROWS, count)
        body = packed[:, :, 4 * TILE_ROWS :].reshape(tiles, count, GROUP // 8, TILE_ROWS, 4)
        both = np.stack([body & 15, body >> 4], axis=4)  # [tiles, group, block, row, half, 4]
        numbers = both.transpose(0, 3, 1, 2, 4, 5).reshape(tiles * TILE_ROWS, count, GROUP)
    else:
        spans = packed.shape[1] // (8 + GROUP)
        records = packed.reshape(rows, spans, 8 + GROUP)
        head = np.ascontiguousarray(records[:, :, :8]).view("<u2").reshape(rows, 2 * spans, 2)
        scales, leasts = head[..., 0], head[..., 1]
        body = records[:, :, 8:].reshape(rows, spans, 16, 4).transpose(0, 1, 3, 2)
        numbers = np.stack([body & 15, body >> 4], axis=3).reshape(rows, 2 * spans, GROUP)
    wide = to_float32(scales)[..., None] * numbers + to_float32(leasts)[..., None]
    values: F32 = wide.reshape(len(wide), -1)[:rows, :columns]
    return values


def _round(x: F32, scale: F32, least: F32) -> U8:
    """The numbers nearest to `x` [R, groups, GROUP]."""
    units = (x - least[..., None]) / np.where(scale > 0, scale, 1)[..., None]
    return np.rint(np.clip(np.nan_to_num(units), 0, _LARGEST)).astype(np.uint8)


def _fit(x: F32, numbers: U8) -> tuple[F32, F32]:
    """Scale and least, rounded to bfloat16, with the smallest squared error for these numbers."""
    mean_x = x.mean(axis=-1)
    n = numbers.astype(np.float32)
    mean_n = n.mean(axis=-1)
    n -= mean_n[..., None]
    spread = np.square(n).sum(axis=-1)
    scale = (n * (x - mean_x[..., None])).sum(axis=-1) / np.where(spread > 0, spread, 1)
    scale = to_float32(from_float32(np.maximum(scale, 0), "BF16"))
    return scale, to_float32(from_float32(mean_x - scale * mean_n, "BF16"))
