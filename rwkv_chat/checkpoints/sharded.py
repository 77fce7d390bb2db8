"""One model in several files, as Hugging Face stores large ones."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy.typing as npt

from rwkv_chat.checkpoints.folder import ModelFiles
from rwkv_chat.checkpoints.reading import Checkpoint, TensorShape, open_checkpoint
from rwkv_chat.errors import MissingTensorError

__all__ = ["ShardedFile", "open_files"]


class ShardedFile:
    """The tensors of several open files under the path of their index."""

    def __init__(self, path: Path, homes: Mapping[str, Checkpoint]) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = MappingProxyType({})
        self.tensors: Mapping[str, TensorShape] = MappingProxyType(
            {name: home.tensors[name] for name, home in homes.items()}
        )
        self._homes = homes

    def array(self, name: str) -> npt.NDArray[Any]:
        """The tensor `name` (KeyError if there is none), a read-only view of its shape."""
        return self._homes[name].array(name)


def open_files(files: ModelFiles) -> tuple[Checkpoint, str]:
    """Open the files of a model; also returns the name of their format.

    Raises:
        CheckpointError: one of its subclasses, with the file and what is wrong with it.
    """
    if files.main in files.parts:
        return open_checkpoint(files.main)
    homes: dict[str, Checkpoint] = {}
    kind = ""
    for path, names in files.parts.items():
        part, kind = open_checkpoint(path)
        for name in names or ():
            if name not in part.tensors:
                raise MissingTensorError(
                    f"{path} lacks the tensor {name[:80]!a}, which {files.main.name} says is "
                    "there. Download both again."
                )
            homes[name] = part
    return ShardedFile(files.main, homes), f"{kind}, {len(files.parts)} files"
