"""Converted models that keep a name of their own in the models folder."""

import re
from dataclasses import replace
from pathlib import Path

from rwkv_chat.checkpoints import catalog
from rwkv_chat.checkpoints.adapter import Adapter, merge
from rwkv_chat.checkpoints.convert import Progress, write_converted
from rwkv_chat.checkpoints.source import read_source
from rwkv_chat.errors import UnsupportedModelError, UsageError
from rwkv_chat.paths import models_dir

__all__ = ["convert_named"]

_NAME = re.compile(r"\w[\w. -]{0,99}")
_SUFFIX = ".safetensors"


def convert_named(
    path: Path,
    weights: str,
    name: str | None = None,
    adapter: Adapter | None = None,
    progress: Progress | None = None,
) -> Path:
    """Convert the model at `path`, with `adapter` merged into it, into the models folder.

    Args:
        path: a model of any supported format; with an adapter not a converted one.
        weights: the type of the matrices.
        name: what to call it; None joins the names of the model and of the adapter.
        adapter: what to merge.
        progress: told how far it is.

    Returns:
        The path of the new file.

    Raises:
        CheckpointError: a file cannot be used, or the disk has no room.
        UsageError: the name cannot be used, or is taken.
    """
    source = read_source(path)
    if source.has_start:
        raise UnsupportedModelError(
            f"{path} has a start state merged into it, which a converted model cannot keep. Give "
            "the model without it, and use this file with --state."
        )
    if adapter is not None:
        source = merge(source, adapter)
    if name is None:
        name = f"{source.name}-{adapter.path.stem}" if adapter is not None else source.name
    name = name.removesuffix(_SUFFIX)
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:100]!a} is no name for a model: use letters, digits, dots and dashes."
        )
    if any(name in (entry.name, entry.path.name) for entry in catalog.available()):
        raise UsageError(f"There is a model {name} already; choose another name with --output.")
    target = models_dir() / f"{name}{_SUFFIX}"
    write_converted(replace(source, name=name), weights, target, progress)
    return target
