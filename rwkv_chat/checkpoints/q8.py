"""Weights as 8-bit integers: each is an int8 times the scale of its group.

A group is GROUP columns of one row; the last one of a row may be shorter. Its scale is its largest
magnitude / 127, and every weight is kept within half a scale. In a file the scales of a matrix are
a float32 tensor [rows, groups] of the same name and SCALE.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["GROUP", "SCALE", "dequantize", "quantize", "scale_shape", "scales_of"]

GROUP = 128
"""Columns that share a scale; the kernels know the same number."""
SCALE = ".scale"

F32 = npt.NDArray[np.float32]
_LARGEST = 127


def scale_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The shape of the scales of a matrix of this shape."""
    rows, columns = shape
    return rows, -(-columns // GROUP)


def scales_of(values: F32) -> F32:
    """The scales [R, groups] of finite weights [R, C]."""
    largest: F32 = np.abs(_grouped(values)).max(axis=-1)
    return largest / np.float32(_LARGEST)


def quantize(values: F32) -> npt.NDArray[np.int8]:
    """Finite weights [R, C] in units of `scales_of(values)`, to the nearest, ties to even."""
    scales = scales_of(values)[..., np.newaxis]
    units = _grouped(values) / np.where(scales > 0, scales, 1)
    # The scale of the smallest numbers is itself rounded: their units may be more than there are.
    numbers = np.clip(np.rint(units), -_LARGEST, _LARGEST).astype(np.int8)
    return numbers.reshape(len(values), -1)[:, : values.shape[1]]


def dequantize(numbers: npt.NDArray[np.int8], scales: F32) -> F32:
    """The weights [R, C] of which `numbers` [R, C] and `scales` [R, groups] were made, rounded."""
    return numbers * np.repeat(scales, GROUP, axis=1)[:, : numbers.shape[1]]


def _grouped(values: F32) -> F32:
    """[R, groups, GROUP], filled up with zeros."""
    rows, columns = values.shape
    groups = scale_shape(values.shape)[1]
    padded = np.pad(values, ((0, 0), (0, groups * GROUP - columns)))
    return padded.reshape(rows, groups, GROUP)
