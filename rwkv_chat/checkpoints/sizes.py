"""How big a model gets, from its shape and its weights type."""

from math import prod

from rwkv_chat.checkpoints.layout import converted_shapes
from rwkv_chat.checkpoints.safetensors import DTYPES
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.state import StateLayout

__all__ = ["memory_bytes", "state_bytes", "weights_bytes"]


def weights_bytes(spec: ModelSpec, weights: str) -> int:
    """Bytes of all tensors of a converted file."""
    shapes = converted_shapes(spec, weights).values()
    return sum(prod(shape) * DTYPES[dtype].itemsize for dtype, shape in shapes)


def state_bytes(spec: ModelSpec) -> int:
    """Bytes of one state, which is float32."""
    return 4 * StateLayout.of(spec).size


def memory_bytes(spec: ModelSpec, weights: str, *, on_reference: bool) -> int:
    """Bytes of a loaded model and one state; the reference keeps a copy in float32 beside it."""
    copy = weights_bytes(spec, "f32") if on_reference else 0
    return weights_bytes(spec, weights) + state_bytes(spec) + copy
