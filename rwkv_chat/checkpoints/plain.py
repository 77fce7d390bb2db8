"""Converted weights of any type as numbers that every program knows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkv_chat.checkpoints import q4, q8
from rwkv_chat.checkpoints.layout import converted_shapes
from rwkv_chat.models.spec import ModelSpec

__all__ = ["plain"]


def plain(spec: ModelSpec, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a converted model with its integer matrices as float32, and without scales."""
    shapes = converted_shapes(spec, "f32")
    result = {}
    for name, array in tensors.items():
        if name.endswith(q8.SCALE):
            continue
        if array.dtype == np.int8:
            array = q8.dequantize(array, tensors.get(name + q8.SCALE), shapes[name][1])
        elif array.dtype == np.uint8:
            array = q4.unpack(array, shapes[name][1])
        result[name] = array
    return result
