"""Which files make up a model: one, or those of a folder in the form of Hugging Face."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkv_chat.errors import CheckpointError, NotAModelError, UnsupportedModelError
from rwkv_chat.paths import models_dir

__all__ = ["ModelFiles", "find_files", "is_model_folder", "read_json"]

Parts = dict[Path, tuple[str, ...] | None]

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_ORDER = (_INDEX[0], _SINGLE[0], _INDEX[1], _SINGLE[1])
_CONFIG = "config.json"
_SHARD = re.compile(r"(model|pytorch_model)-\d{5}-of-\d{5}\.(safetensors|bin)")
_PART = re.compile(r"[\w.-]{1,200}\.(safetensors|bin)")
_MAX_JSON = 16 << 20
_MAX_PARTS = 1000


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of one model.

    Attributes:
        main: the file with the tensors, or the index of several.
        parts: for each file with tensors the names that are taken from it; those of a single file
            are not known and None.
        config: the description beside them, where the form is that of Hugging Face.
        name: what the model is called.
    """

    main: Path
    parts: Parts
    config: Path | None
    name: str

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file whose change makes it another model."""
        others = [path for path in (self.main, self.config) if path is not None]
        return tuple(dict.fromkeys((*self.parts, *others)))


def is_model_folder(path: Path) -> bool:
    """Whether a folder holds a model in the form of Hugging Face."""
    return path.is_dir() and any((path / name).is_file() for name in _ORDER)


def find_files(path: Path) -> ModelFiles:
    """The files of the model at `path`: a file, a folder, or a part or description in a folder.

    Raises:
        CheckpointError: a folder without a model, or an index that cannot be used.
    """
    try:
        main = _main(path)
    except (OSError, ValueError):  # whoever opens it says what is wrong
        main = path
    if main.name not in _ORDER:
        return ModelFiles(main, {main: None}, None, main.stem)
    config = main.parent / _CONFIG
    folder = main.absolute().parent
    name = main.stem if folder == models_dir() else folder.name or main.stem
    parts: Parts = _parts(main) if main.name in _INDEX else {main: None}
    return ModelFiles(main, parts, config if config.is_file() else None, name)


def _main(path: Path) -> Path:
    if path.is_dir():
        folder = path
    elif path.name == _CONFIG:
        folder = path.parent
    else:
        shard = _SHARD.fullmatch(path.name)
        index = path.with_name(f"{shard[1]}.{shard[2]}.index.json") if shard else path
        return index if index.is_file() else path
    for name in _ORDER:
        if (folder / name).is_file():
            return folder / name
    raise NotAModelError(
        f"{folder} holds no model: there is no model.safetensors and no pytorch_model.bin in it. "
        "Give the path of a model file."
    )


def _parts(index: Path) -> Parts:
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise NotAModelError(f"{index} is damaged: it names no files. Download it again.")
    names: dict[str, list[str]] = {}
    for tensor, file in found.items():
        if not isinstance(file, str) or not _PART.fullmatch(file) or ".." in file:
            raise NotAModelError(f"{index} names {str(file)[:80]!a}, which is no file beside it.")
        names.setdefault(file, []).append(tensor)
    if len(names) > _MAX_PARTS:
        raise UnsupportedModelError(f"{index} names {len(names)} files, more than any model has.")
    return {index.with_name(file): tuple(tensors) for file, tensors in sorted(names.items())}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: it cannot be read, or is no such object.
    """
    try:
        if path.stat().st_size > _MAX_JSON:
            raise NotAModelError(f"{path} is larger than any description of a model.")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise NotAModelError(f"{path} is damaged: it is no JSON. Download it again.") from error
    if not isinstance(found, dict):
        raise NotAModelError(f"{path} is damaged: it holds no description. Download it again.")
    return found
