"""GGUF files, as llama.cpp uses them, of RWKV-6 and RWKV-7 models.

The names are those of `llm_build_rwkv6_base` and `llm_build_rwkv7_base` in llama.cpp. Its converter
stores the low-rank matrices as their transpose, the shares of all mixes as one tensor, and divides
two matrices of RWKV-6 for the sake of float16; all of this is undone here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkv_chat.checkpoints.files import map_file
from rwkv_chat.checkpoints.floats import to_float32
from rwkv_chat.checkpoints.ggml import GgmlFile, GgmlTensor, Stored, parts_of, turned
from rwkv_chat.checkpoints.gguf_header import Header, read_header
from rwkv_chat.checkpoints.gguf_vocabulary import describe_vocabulary
from rwkv_chat.errors import (
    MissingTensorError,
    NotAModelError,
    ShapeError,
    UnsupportedModelError,
)

__all__ = ["open_gguf"]

_PLACE = re.compile(r"blk\.([0-9]{1,3})\.([a-z0-9_]+)\.(weight|bias)")
_WHOLE = {
    "token_embd": "emb",
    "token_embd_norm": "blocks.0.ln0",
    "output_norm": "ln_out",
    "output": "head",
}
_LAYER = {
    "attn_norm": "ln1",
    "attn_norm_2": "ln2",
    "time_mix_ln": "att.ln_x",
    **{f"time_mix_{m}": f"att.{m}" for m in ("receptance", "key", "value", "output", "gate")},
    **{f"channel_mix_{m}": f"ffn.{m}" for m in ("receptance", "key", "value")},
}
"""What both worlds end with .weight or .bias."""

_RESCALED = "rescale_every_n_layers"
_MAX_LAYERS = 1000
_DIVIDED = ("time_mix_output", "channel_mix_value")


@dataclass(frozen=True, slots=True)
class _Architecture:
    """Vectors and low-rank matrices, which only GGUF ends with .weight, and the mixes in one."""

    vectors: Mapping[str, str]
    low_rank: Mapping[str, str]
    mixes: tuple[str, ...]


_ARCHITECTURES = {
    "rwkv6": _Architecture(
        {
            "time_mix_first": "att.time_faaaa",
            "time_mix_decay": "att.time_decay",
            "channel_mix_lerp_k": "ffn.time_maa_k",
            "channel_mix_lerp_r": "ffn.time_maa_r",
            **{f"time_mix_lerp_{part}": f"att.time_maa_{part}" for part in "xwkvrg"},
        },
        {
            **{f"time_mix_w{side}": f"att.time_maa_w{side}" for side in "12"},
            **{f"time_mix_decay_w{side}": f"att.time_decay_w{side}" for side in "12"},
        },
        tuple(f"att.time_maa_{part}" for part in "wkvrg"),
    ),
    "rwkv7": _Architecture(
        {
            "channel_mix_lerp_k": "ffn.x_k",
            **{f"time_mix_{v}": f"att.{v}" for v in ("w0", "a0", "v0", "k_k", "k_a", "r_k")},
        },
        {f"time_mix_{part}{side}": f"att.{part}{side}" for part in "wavg" for side in "12"},
        tuple(f"att.x_{part}" for part in "rwkvag"),
    ),
}


def open_gguf(path: Path) -> GgmlFile:
    """Open a GGUF file and verify its header against the size of the file.

    Its metadata is that of `describe_vocabulary`.

    Raises:
        CheckpointError: one of its subclasses, with the file and what is wrong with it.
    """
    data = map_file(path)
    header = read_header(path, data)
    architecture = header.text("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise UnsupportedModelError(
            f"{path} is a GGUF file of the architecture {architecture[:40]!a}, which is not "
            "supported. Give one of an RWKV-6 or RWKV-7 model (rwkv6 or rwkv7)."
        )
    parts = header.number("split.count") or 1
    if parts > 1:
        raise UnsupportedModelError(
            f"{path} is one of {parts} parts of a model. Put them together with "
            "llama-gguf-split --merge, and give the whole file."
        )
    _check_rescaling(path, header, architecture)
    tensors: dict[str, GgmlTensor] = {}
    for stored in header.tensors.values():
        for name, tensor in _official(path, header, architecture, stored):
            if name in tensors:
                raise NotAModelError(f"{path} is damaged: it has the tensor {name} twice.")
            tensors[name] = tensor
    _check_layers(path, header.number(f"{architecture}.block_count"), tensors)
    embedding = tensors.get("emb.weight")
    told = describe_vocabulary(path, header, embedding.shape[0]) if embedding is not None else {}
    return GgmlFile(path, told, tensors, data)


def _check_rescaling(path: Path, header: Header, architecture: str) -> None:
    """Every RWKV-6 says after how many layers it was divided, if by 0: without that it is wrong."""
    every = header.number(f"{architecture}.{_RESCALED}")
    if architecture == "rwkv6" and (every is None or not 0 <= every <= _MAX_LAYERS):
        raise NotAModelError(
            f"{path} is damaged: it does not say after how many layers its matrices were divided "
            f"(rwkv6.{_RESCALED}). Copy or download it again."
        )


def _check_layers(path: Path, announced: int | None, tensors: Mapping[str, GgmlTensor]) -> None:
    found = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if announced is not None and announced != found:
        raise MissingTensorError(
            f"{path} has {found} layers, and {announced} were announced. "
            "The file is not complete: get it again."
        )


def _official(
    path: Path, header: Header, architecture: str, stored: Stored
) -> Iterator[tuple[str, GgmlTensor]]:
    """What a stored tensor is officially; it keeps its name where that is nothing known."""
    names, shape = _ARCHITECTURES[architecture], stored.shape
    place = _PLACE.fullmatch(stored.name)
    if place is None:
        stem, _, kind = stored.name.rpartition(".")
        name = f"{_WHOLE[stem]}.{kind}" if stem in _WHOLE else stored.name
        yield name, GgmlTensor(stored, shape)
        return
    layer, inner, kind = int(place[1]), place[2], place[3]
    block = f"blocks.{layer}."
    if inner in _LAYER:
        factor = _factor(header, architecture, layer) if inner in _DIVIDED else 1.0
        name = f"{block}{_LAYER[inner]}.{kind}"
        if factor == 1:
            yield name, GgmlTensor(stored, shape)
        else:
            yield name, GgmlTensor(stored, shape, partial(_times, factor), computed=True)
    elif inner in names.low_rank:
        official = (*shape[:-2], *shape[-2:][::-1])
        yield block + names.low_rank[inner], GgmlTensor(stored, official, turned)
    elif inner == "time_mix_r_k":
        yield block + names.vectors[inner], GgmlTensor(stored, _heads(path, header, stored))
    elif inner in names.vectors:
        yield block + names.vectors[inner], GgmlTensor(stored, shape)
    elif inner == "time_mix_lerp_fused":
        yield from parts_of(path, stored, [block + name for name in names.mixes])
    else:
        yield stored.name, GgmlTensor(stored, shape)


def _factor(header: Header, architecture: str, layer: int) -> float:
    """What llama.cpp has divided two matrices of a layer by, for RWKV-6 not to overflow float16."""
    every = header.number(f"{architecture}.{_RESCALED}") or 0
    return 2.0 ** (layer // every) if every > 0 else 1.0


def _times(factor: float, array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return to_float32(array) * np.float32(factor)


def _heads(path: Path, header: Header, stored: Stored) -> tuple[int, int]:
    """The shape [H, N] of r_k, which is stored flat."""
    size, width = header.number("rwkv7.wkv.head_size") or 0, prod(stored.shape)
    if size <= 0 or width % size:
        raise ShapeError(
            f"{path}: heads of {size} do not divide the {width} numbers of {stored.name}. "
            "The file does not fit together: get it again."
        )
    return width // size, size
