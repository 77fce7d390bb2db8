"""The number types of weights, to and from float32; bfloat16 appears in numpy as uint16."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK", "from_float32", "to_float32"]

BLOCK = 1 << 20
"""How many values to convert at once, so that the intermediate arrays stay small."""


def to_float32(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The values of a float32, float16 or bfloat16 array, exactly, as a C-contiguous array."""
    if array.dtype == np.uint16:
        wide = array.astype(np.uint32, order="C")
        wide <<= 16
        return wide.view(np.float32)
    return np.ascontiguousarray(array, dtype=np.float32)


def from_float32(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    """`values` as "F32", or rounded to "BF16" (to nearest, ties to even; NaN stays NaN)."""
    if dtype == "F32":
        return values
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, 0x7FC0, rounded).astype(np.uint16)
