"""The files of rwkv.cpp (.bin): RWKV-4, 5, 6 and 7.

A file is `ggmf` as a little-endian number, a version, three sizes and a type, all int32, and then
tensors until its end: number of dimensions, length of the name, type, the dimensions (innermost
first), the name, the bytes. The names are official, but the converter of rwkv.cpp has computed some
tensors in advance (`python/convert_pytorch_to_ggml.py` there), which is undone here.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkv_chat.checkpoints.files import U8, map_file
from rwkv_chat.checkpoints.ggml import (
    GgmlFile,
    GgmlTensor,
    Number,
    Stored,
    check_name,
    check_stored,
    number_of,
    parts_of,
    turned,
)
from rwkv_chat.errors import (
    NotAModelError,
    ShapeError,
    TruncatedError,
    UnsupportedModelError,
)

__all__ = ["open_rwkvcpp"]

Array = npt.NDArray[Any]

_HEADER_BYTES = 24
_MAX_TENSORS = 1 << 16
_MAX_NAME = 256
_GGML_CODES = {0: 0, 1: 1, 2: 2, 3: 3, 7: 6, 8: 7, 9: 8, 11: 10, 12: 11, 13: 12, 14: 13, 15: 14}
"""The codes of types in these files, and what ggml calls them."""

_TURNED = {
    "6": {"time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2"},
    "7": {f"{part}{side}" for part in "wavg" for side in "12"},
}


def open_rwkvcpp(path: Path) -> GgmlFile:
    """Open a file of rwkv.cpp and verify its headers against its size.

    Raises:
        CheckpointError: one of its subclasses, with the file and what is wrong with it.
    """
    data = map_file(path)
    if len(data) < _HEADER_BYTES:
        raise TruncatedError(f"{path} ends inside its header. Copy or download it again.")
    version, n_vocab, n_embd, n_layer, _ = _integers(data, 4, 5)
    if version not in (100, 101):
        raise UnsupportedModelError(
            f"{path} is a file of rwkv.cpp of version {version}, and only 100 and 101 can be read. "
            "Get the model as .safetensors or .pth."
        )
    stored: dict[str, Stored] = {}
    at = _HEADER_BYTES
    while at < len(data):
        tensor = _described(path, data, at, version)
        if tensor.name in stored:
            raise NotAModelError(f"{path} is damaged: it has the tensor {tensor.name} twice.")
        stored[tensor.name] = tensor
        if len(stored) > _MAX_TENSORS:
            raise NotAModelError(f"{path} is damaged: it has more than {_MAX_TENSORS} tensors.")
        at = tensor.end
    _check_sizes(path, stored, (n_vocab, n_embd), n_layer)
    tensors = dict(_official(path, stored))
    return GgmlFile(path, {}, tensors, data)


def _integers(data: U8, at: int, count: int) -> list[int]:
    found: list[int] = data[at : at + 4 * count].view("<i4").tolist()
    return found


def _described(path: Path, data: U8, at: int, version: int) -> Stored:
    """The tensor whose description begins at `at`."""
    left = len(data) - at
    fixed = _integers(data, at, 3) if left >= 12 else [0, 0, 0]
    dimensions, length, code = fixed
    if left >= 12 and not (1 <= dimensions <= 4 and 1 <= length <= _MAX_NAME):
        raise NotAModelError(
            f"{path} is damaged: what begins at byte {at} is no description of a tensor."
        )
    start = at + 12 + 4 * dimensions + length
    if left < 12 or start > len(data):
        raise TruncatedError(
            f"{path} ends inside the description of a tensor. Copy or download it again."
        )
    shape = tuple(_integers(data, at + 12, dimensions)[::-1])
    name = check_name(path, data[start - length : start].tobytes().decode("latin-1"))
    number = _number(path, name, code, version)
    tensor = Stored(name, number, shape, start)
    check_stored(path, tensor, len(data))
    return tensor


def _number(path: Path, name: str, code: int, version: int) -> Number:
    if code not in _GGML_CODES:
        raise UnsupportedModelError(
            f"{path}: tensor {name} has the type number {code}, which rwkv.cpp no longer has. "
            "Quantise the model again from its original, or get it as .safetensors or .pth."
        )
    number = number_of(path, name, _GGML_CODES[code])
    if version == 100 and not number.is_plain:
        raise UnsupportedModelError(
            f"{path} was quantised before rwkv.cpp changed its {number.name} in May 2023. "
            "Quantise the model again from its original, or get it as .safetensors or .pth."
        )
    return number


def _check_sizes(
    path: Path, stored: Mapping[str, Stored], embedding: tuple[int, int], n_layer: int
) -> None:
    """Compare the sizes in the header with the tensors."""
    found = len({name.split(".")[1] for name in stored if name.startswith("blocks.")})
    shape = stored["emb.weight"].shape if "emb.weight" in stored else embedding
    if (shape, found) != (embedding, n_layer):
        raise ShapeError(
            f"{path} is damaged: {n_layer} layers and an embedding {list(embedding)} were "
            f"announced, it has {found} layers and {list(shape)}. Copy or download it again."
        )


def _official(path: Path, stored: Mapping[str, Stored]) -> Iterator[tuple[str, GgmlTensor]]:
    """All tensors under official names, made what they were before they were converted."""
    generation = _generation(stored)
    for name, tensor in stored.items():
        block, _, inner = name.rpartition(".att.")
        shape = tensor.shape
        if not block:
            yield name, GgmlTensor(tensor, shape)
        elif inner == "x_rwkvag":
            yield from parts_of(path, tensor, [f"{block}.att.x_{part}" for part in "rwkvag"])
        elif inner in _TURNED.get(generation, ()):
            yield name, GgmlTensor(tensor, (*shape[:-2], *shape[-2:][::-1]), turned)
        elif inner in ("time_first", "time_faaaa") and generation in ("5", "6"):
            # The logarithm that time_first is of in older files is undone already.
            yield f"{block}.att.time_faaaa", GgmlTensor(tensor, _squeezed(shape))
        elif inner == "time_decay" and generation != "7":
            yield name, _decay(tensor, generation)
        else:
            yield name, GgmlTensor(tensor, shape)


def _generation(stored: Mapping[str, Stored]) -> str:
    marks = {"att.r_k": "7", "att.time_maa_x": "6", "att.ln_x.weight": "5"}
    return next((marks[mark] for mark in marks if f"blocks.0.{mark}" in stored), "4")


def _decay(tensor: Stored, generation: str) -> GgmlTensor:
    if generation == "4":
        return GgmlTensor(tensor, tensor.shape, _from_negated, computed=True)
    if generation == "5":
        return GgmlTensor(tensor, _squeezed(tensor.shape), _from_factor, computed=True)
    return GgmlTensor(tensor, (int(np.prod(tensor.shape, dtype=np.int64)),))


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without the dimensions of one that were added at the end."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _from_negated(array: Array) -> Array:
    """The official decay d of RWKV-4 from -exp(d)."""
    return _logarithm(-array.astype(np.float64))


def _from_factor(array: Array) -> Array:
    """The official decay d of RWKV-5 from exp(-exp(d)), the share that is kept of the state."""
    factor = array.astype(np.float64)
    factor[~((factor >= 0) & (factor <= 1))] = np.nan
    return _logarithm(-np.log(factor))


def _logarithm(speed: Array) -> Array:
    """log(speed) in float32; what had been rounded to a speed of 0 or infinity stays finite.

    From 1e-10 downward and from 1e3 upward exp(-speed) in float32 is 1 and 0 all the same.
    """
    speed[speed < 0] = np.nan
    logarithm: Array = np.log(np.clip(speed, 1e-10, 1e3)).astype(np.float32)
    return logarithm
