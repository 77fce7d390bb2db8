"""Models as the `rwkv` package converts them for one of its strategies, undone.

What it does is in `RWKV.__init__` of rwkv/model.py: the embeddings go through ln0, which is
dropped; matrices are transposed; decays and bonuses become what the recurrence uses; and for fp16
the outputs of later layers are divided by powers of 2, as it halves what runs between the layers.
"""

import re
from collections.abc import Mapping
from functools import partial
from math import prod

import numpy as np

from rwkv_chat.checkpoints.derived import Array, DerivedTensors
from rwkv_chat.checkpoints.floats import to_float32
from rwkv_chat.checkpoints.reading import Checkpoint
from rwkv_chat.errors import NotAModelError, UnsupportedModelError

__all__ = ["is_converted", "restore_converted"]

_OLDEST = 0.7
_TURNED = tuple(f"{m}.weight" for m in ("key", "value", "receptance", "gate", "output", "head"))
_RESCALED = re.compile(r"blocks\.(\d{1,4})\.(?:att\.output|ffn\.value)\.weight")
_TINY = float(np.finfo(np.float32).tiny)
_NO_DECAY = 2.0**-26
"""exp of the negative is 1 in float32."""


def is_converted(file: Checkpoint) -> bool:
    """Whether the package says so beside the tensors."""
    return "_strategy" in file.metadata


def restore_converted(file: Checkpoint, names: Mapping[str, str]) -> Checkpoint:
    """The same model under official names and in official shapes, but for its embeddings.

    Args:
        file: the model.
        names: its names without the prefixes of wrappers, mapped to those in the file.

    Raises:
        UnsupportedModelError: it is quantised, or was converted by an old version.
        NotAModelError: what the package notes of its conversion is no such thing.
    """
    every = _rescaled_every(file)
    tensors = DerivedTensors(file)
    has_heads = "blocks.0.att.ln_x.weight" in names
    is_6 = "blocks.0.att.time_maa_x" in names
    for name, stored in names.items():
        shape = file.tensors[stored].shape
        scaled = _RESCALED.fullmatch(name)
        if scaled and every and len(shape) == 2:
            undo = partial(_rescale, by=int(scaled[1]) // every)
            tensors.add(name, stored, shape[::-1], undo, "F32")
        elif name.endswith(_TURNED):
            tensors.turn(name, stored)
        elif name.endswith(".att.time_first") and has_heads:
            bonus = name.removesuffix("time_first") + "time_faaaa"
            kept = _by_head(shape)
            tensors.add(bonus, stored, kept, partial(_reshape, shape=kept))
        elif name.endswith(".att.time_decay") and is_6:
            tensors.add(name, stored, (prod(shape),), np.ravel)
        elif name.endswith(".att.time_decay"):
            kept = _by_head(shape)
            undo = partial(_logarithm, shape=kept, twice=has_heads)
            tensors.add(name, stored, kept, undo, "F32")
        else:
            tensors.keep(name, stored)
    return tensors.file()


def _rescaled_every(file: Checkpoint) -> int:
    """After how many layers the package halves what runs between them; 0: after none."""
    told = file.metadata
    again = f'{file.path} was converted by the rwkv package for "{told["_strategy"]}"'
    if any(tensor.dtype == "U8" for tensor in file.tensors.values()):
        raise UnsupportedModelError(
            f"{again}, with 8-bit weights, which cannot be read. Give the model that it was made "
            "from."
        )
    try:
        version, every = float(told["_version"]), int(told["_rescale_layer"])
    except (KeyError, ValueError):
        raise NotAModelError(
            f"{again}, but what it notes of that is damaged. Give the model that it was made from."
        ) from None
    if not version >= _OLDEST:
        raise UnsupportedModelError(
            f"{again}, by its version {version}, which is too old. Give the model that it was made "
            "from."
        )
    return max(every, 0)


def _by_head(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[H, N] from [H, N, 1]; anything else will be checked as it is."""
    return shape[:2] if len(shape) == 3 and shape[2] == 1 else shape


def _reshape(array: Array, shape: tuple[int, ...]) -> Array:
    return array.reshape(shape)


def _rescale(array: Array, by: int) -> Array:
    with np.errstate(over="ignore"):  # what is not finite is refused
        return np.ldexp(to_float32(array), by).T


def _logarithm(array: Array, shape: tuple[int, ...], *, twice: bool) -> Array:
    """From -exp(decay), or `twice` from exp(-exp(decay)), to the decay."""
    values = to_float32(array).astype(np.float64)
    rates = np.maximum(-np.log(np.maximum(values, _TINY)), _NO_DECAY) if twice else -values
    return np.log(np.maximum(rates, _TINY)).astype(np.float32).reshape(shape)
