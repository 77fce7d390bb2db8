"""Start states that were trained (state tuning): one matrix for every head of every layer.

A torch file with `blocks.N.att.time_state` [H, N, N]. The training of RWKV-5 and 6 keeps values
before keys, of which the state is the transpose; that of RWKV-7 has the order of the state. Nothing
was read, so the tokens before are zero.
"""

import re
from pathlib import Path

import numpy as np

from rwkv_chat.checkpoints.floats import to_float32
from rwkv_chat.checkpoints.names import strip_prefixes
from rwkv_chat.checkpoints.reading import open_checkpoint
from rwkv_chat.errors import CheckpointError, SnapshotError
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.state import F32, StateLayout

__all__ = ["read_start"]

_NAME = re.compile(r"blocks\.(\d{1,4})\.att\.time_state")
_MATRIX = "wkv"


def read_start(path: Path, spec: ModelSpec) -> F32:
    """The state that `path` holds for a model of the shape `spec`, float32 [layout.size].

    Raises:
        SnapshotError: the file holds none, one of another model, or one that is not finite.
    """
    try:
        file, kind = open_checkpoint(path)
        names = strip_prefixes(path, file.tensors)
    except CheckpointError as error:
        raise SnapshotError(f"{path} holds no start state: {error}") from error
    found = {int(m[1]): n for short, n in names.items() if (m := _NAME.fullmatch(short))}
    if not found:
        raise SnapshotError(
            f"{path} holds no start state (blocks.N.att.time_state), as state tuning makes it."
        )
    if kind != "pth":
        raise SnapshotError(
            f"{path} does not tell which way its matrices lie: converters to safetensors differ. "
            "Give the .pth file that it was made from."
        )
    layout = StateLayout.of(spec)
    if all(field.name != _MATRIX for field in layout.fields):
        raise SnapshotError(f"{path} is for RWKV-5, 6 or 7; an RWKV-{spec.generation} has no such.")
    shape = (spec.n_head, spec.head_size, spec.head_size)
    if sorted(found) != list(range(spec.n_layer)):
        raise SnapshotError(
            f"{path} has states for {len(found)} layers, and the model has {spec.n_layer}. "
            "Give a file that was trained for this model."
        )
    state = layout.new().reshape(spec.n_layer, -1)
    at = 0
    for field in layout.fields:
        if field.name == _MATRIX:
            break
        at += field.size
    for layer, name in found.items():
        tensor = file.tensors[name]
        if tensor.shape != shape or tensor.dtype not in {"F32", "F16", "BF16"}:
            raise SnapshotError(
                f"{path}: {name} is {tensor.dtype} {list(tensor.shape)}, and the model needs "
                f"{list(shape)}. Give a file that was trained for this model."
            )
        try:
            matrix = to_float32(file.array(name))
        except CheckpointError as error:
            raise SnapshotError(f"{path} holds no start state: {error}") from error
        if spec.generation[0] != "7":
            matrix = matrix.swapaxes(1, 2)
        state[layer, at : at + matrix.size] = matrix.reshape(-1)
    if not np.isfinite(state).all():
        raise SnapshotError(f"{path} holds numbers that are not finite. Get it again.")
    return state.reshape(-1)
