"""Models of the official sizes with weights that cost nothing, to measure speeds with."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rwkv_chat.checkpoints.layout import converted_shapes, is_vector
from rwkv_chat.checkpoints.q8 import GROUP, scale_shape
from rwkv_chat.models.spec import ModelSpec

__all__ = ["SIZES", "Shape", "make_weights"]

_PATTERN = 1 << 20
_ACTIVE = 0.2  # of the rows of ffn.key are not zero; half of what they give is negative


@dataclass(frozen=True, slots=True)
class Shape:
    """Layers, width and the ranks of w, a, v and g of an RWKV-7 model."""

    layers: int
    width: int
    ranks: tuple[int, int, int, int]
    vocab: int = 65536
    head: int = 64

    @property
    def spec(self) -> ModelSpec:
        """As the engine knows it."""
        return ModelSpec(
            "7", self.layers, self.width, self.vocab, self.head, 4 * self.width, *self.ranks
        )


SIZES = {
    "tiny": Shape(2, 32, (8, 8, 8, 8), 300, 16),
    "0.1B": Shape(12, 768, (64, 64, 32, 128)),
    "0.4B": Shape(24, 1024, (64, 64, 32, 128)),
    "1.5B": Shape(24, 2048, (96, 96, 64, 256)),
    "2.9B": Shape(32, 2560, (96, 96, 64, 320)),
    "7.2B": Shape(32, 4096, (128, 128, 96, 480)),
}


def _bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _packed(noise: npt.NDArray[np.int8], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Numbers in 4 bits with a scale of 2^-7 and a least of -2^-4, where q4 files have them."""
    array = np.resize(noise.view(np.uint8), shape)
    scale, least = 0x3C00, 0xBD80
    if len(shape) == 3:  # tiles: 16 scales, then 16 leasts
        array[..., :64] = np.repeat(np.array([scale, least], "<u2"), 16).view(np.uint8)
    else:  # rows: both of two groups, then 64 bytes of numbers
        heads = np.array([scale, least, scale, least], "<u2").view(np.uint8)
        array.reshape(shape[0], -1, 72)[..., :8] = heads
    return array


def _tiled(
    noise: npt.NDArray[np.int8], scale: float, shape: tuple[int, ...]
) -> npt.NDArray[np.int8]:
    """Numbers in 8 bits with this scale, where tiles of q8 have them."""
    array = np.resize(noise, shape)
    for at in range(0, shape[1], 4 + GROUP):
        array[:, at : at + 4] = np.full(16, scale, "<f4").view(np.int8).reshape(4, 16)
    return array


def make_weights(spec: ModelSpec, weights: str) -> dict[str, npt.NDArray[np.generic]]:
    """Tensors of the converted form. Layers share them, so that memory holds one layer.

    The hidden channels are active as in trained models: about a tenth of them.
    """
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(_PATTERN).astype(np.float32)
    bytes_ = rng.integers(-127, 128, _PATTERN).astype(np.int8)
    shared: dict[tuple[str, str, tuple[int, ...]], npt.NDArray[np.generic]] = {}
    tensors: dict[str, npt.NDArray[np.generic]] = {}
    plain = converted_shapes(spec, "f32")
    for name, (dtype, shape) in converted_shapes(spec, weights).items():
        short = name.split(".", 2)[2] if name.startswith("blocks.") else name
        key = (short, dtype, shape)
        if key not in shared:
            size = 1.0 / np.sqrt(shape[-1])
            if is_vector(name):
                array = np.full(shape, 1.0 if name.endswith("weight") else 0.3, np.float32)
            elif dtype == "F32":
                array = np.full(shape, size / 73, np.float32)  # the scales of q8
            elif dtype == "I8" and len(shape) == 3:
                groups = scale_shape(plain[name][1])[1]
                array = _tiled(bytes_, 1.0 / np.sqrt(groups) / 73, shape)
            elif dtype == "I8":
                array = np.resize(bytes_, shape)
            elif dtype == "U8":
                array = _packed(bytes_, shape)
            else:
                array = _bf16(np.resize(noise * np.float32(size), shape))
            if short == "ffn.key.weight":
                array[rng.random(shape[0]) >= _ACTIVE] = 0  # of q8 and q4: whole tiles of rows
            shared[key] = array
        tensors[name] = shared[key]
    return tensors
