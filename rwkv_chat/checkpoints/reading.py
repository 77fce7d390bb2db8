"""One door for model files of every format, told apart by their first bytes, not their name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from rwkv_chat.checkpoints.files import map_file
from rwkv_chat.checkpoints.gguf import open_gguf
from rwkv_chat.checkpoints.pth import open_pth
from rwkv_chat.checkpoints.rwkvcpp import open_rwkvcpp
from rwkv_chat.checkpoints.safetensors import open_file
from rwkv_chat.errors import NotAModelError, UnsupportedModelError

__all__ = ["Checkpoint", "TensorShape", "open_checkpoint"]

_OTHER_FORMATS = {
    b"ggmf": "a file of rwkv.cpp for big-endian machines",
    b"lmgg": "an old file of llama.cpp",
    b"tjgg": "an old file of llama.cpp",
}


class TensorShape(Protocol):
    """What is known of a tensor without reading it; `dtype` is a key of safetensors.DTYPES."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class Checkpoint(Protocol):
    """An open model file, whatever its format."""

    @property
    def path(self) -> Path: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...
    @property
    def tensors(self) -> Mapping[str, TensorShape]: ...
    def array(self, name: str) -> npt.NDArray[Any]:
        """The tensor, read-only: a view of the file (bfloat16 as uint16), or computed from it."""


def open_checkpoint(path: Path) -> tuple[Checkpoint, str]:
    """Open a model file; also returns its format: "safetensors", "pth", "gguf" or "rwkv.cpp".

    Raises:
        CheckpointError: one of its subclasses, with the file and what is wrong with it.
    """
    start = map_file(path)[:9].tobytes()
    if start[:4] == b"GGUF":
        return open_gguf(path), "gguf"
    if start[:4] == b"fmgg":
        return open_rwkvcpp(path), "rwkv.cpp"
    if start[:4] in _OTHER_FORMATS:
        raise UnsupportedModelError(
            f"{path} is {_OTHER_FORMATS[start[:4]]}, which cannot be read. "
            "Get the model as .safetensors or .pth."
        )
    # The size of a header may begin with the byte that pickles begin with.
    if start[4:] == b"\0\0\0\0{":
        return open_file(path), "safetensors"
    if start[:4] == b"PK\3\4" or start[:1] == b"\x80":
        return open_pth(path), "pth"
    if start[8:9] == b"{" or path.suffix in {".safetensors", ".st"}:
        return open_file(path), "safetensors"
    raise NotAModelError(
        f"{path} is not a model file. Give a .safetensors, .pth or .gguf file, or a .bin file of "
        "rwkv.cpp."
    )
