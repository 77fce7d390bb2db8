"""Adapters (LoRA, PiSSA, Bone, DiSHA) merged into a model, as the repository JL-er/RWKV-PEFT trains
and merges them (its folder `merge`).

For a matrix W [out, in] an adapter has, under the name of W without its "weight":

    lora_A [r, in], lora_B [out, r]   W + alpha / r * B A
    the same, and what they began as  W - B0 A0 + B A            (PiSSA)
    bone or disha [in / r, r, r]      W + W X + X, for each block of r by r of W, X by its column
    disha [r, out]                    W[o, i] + X[i mod r, o]

Every other tensor of an adapter takes the place of that of the model, before anything is added.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from rwkv_chat.checkpoints.derived import Derived, DerivedFile
from rwkv_chat.checkpoints.floats import to_float32
from rwkv_chat.checkpoints.folder import read_json
from rwkv_chat.checkpoints.huggingface import official_name
from rwkv_chat.checkpoints.layout import is_low_rank
from rwkv_chat.checkpoints.names import strip_prefixes
from rwkv_chat.checkpoints.reading import Checkpoint, open_checkpoint
from rwkv_chat.checkpoints.source import Source
from rwkv_chat.errors import MissingTensorError, ShapeError, UnsupportedModelError, UsageError
from rwkv_chat.models.state import F32

__all__ = ["Adapter", "merge"]

_PART = re.compile(
    r"(?P<target>.+)\.(?P<init>init_)?(?P<kind>lora_A|lora_B|lora\.0|lora\.1|bone|disha)"
    r"(\.default)?(\.weight)?"
)
_KINDS = {"lora.0": "lora_A", "lora.1": "lora_B", "bone": "disha"}
_CONFIG = "adapter_config.json"
_MAX_ALPHA = 1e6
_FLOATS = {"F32", "F16", "BF16"}
Parts = dict[str, dict[str, str]]
Change = Callable[[F32], F32]


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's file, with what it does not say of itself.

    Attributes:
        path: the file.
        alpha: of the training, for LoRA; None where the description of peft beside it tells.
        init: the file of what the matrices began as, for PiSSA.
    """

    path: Path
    alpha: float | None = None
    init: Path | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UsageError(f"The alpha of a LoRA must be above 0, not {self.alpha}.")
        if self.alpha is not None and self.init is not None:
            raise UsageError("With what it began as (PiSSA), a LoRA has no alpha; leave it out.")


def merge(source: Source, adapter: Adapter) -> Source:
    """`source` with the adapter merged into its tensors, which are computed in float32.

    Raises:
        CheckpointError: the adapter cannot be read, or does not fit the model.
        UsageError: it is a LoRA and neither its alpha nor what it began as is given.
    """
    if source.is_converted:
        raise UnsupportedModelError(
            f"{source.checkpoint.path} is converted already, and adapters fit the original. "
            "Give the model that it was made from."
        )
    file, _ = open_checkpoint(adapter.path)
    parts, others = _sort(file)
    if not parts and not others:
        raise MissingTensorError(f"{adapter.path} holds no tensors. Give an adapter's file.")
    init = _beginning(adapter.init) if adapter.init is not None else None
    base = source.checkpoint
    tensors = {
        name: Derived(info.dtype, info.shape, partial(base.array, name))
        for name, info in base.tensors.items()
    }
    for target, stored_name in others.items():
        name = _target(source, file, target, target)
        tensors[name] = _replaced(source, file, target, name, stored_name)
    for target, stored in parts.items():
        name = _target(source, file, f"{target}.weight", target)
        before = tensors[name]
        change = _change(file, target, stored, before.shape, adapter, init)
        tensors[name] = Derived("F32", before.shape, partial(_changed, before, change))
    merged = DerivedFile(base.path, MappingProxyType(tensors))
    return replace(source, checkpoint=merged, dtype="F32")


def _sort(file: Checkpoint) -> tuple[Parts, dict[str, str]]:
    """The parts of adapters by the matrix they change, and all other tensors."""
    parts: Parts = {}
    others: dict[str, str] = {}
    for short, stored in strip_prefixes(file.path, file.tensors).items():
        found = _PART.fullmatch(short)
        if found is None:
            others[short] = stored
            continue
        kind = (found["init"] or "") + _KINDS.get(found["kind"], found["kind"])
        parts.setdefault(found["target"], {})[kind] = stored
        if file.tensors[stored].dtype not in _FLOATS:
            raise ShapeError(
                f"{file.path}: tensor {short} has the type {file.tensors[stored].dtype}; "
                "save the adapter as float32, float16 or bfloat16."
            )
    return parts, others


def _beginning(path: Path) -> tuple[Checkpoint, Parts]:
    file, _ = open_checkpoint(path)
    return file, _sort(file)[0]


def _target(source: Source, file: Checkpoint, name: str, shown: str) -> str:
    """The name in the model's file of the tensor that the adapter calls `name`."""
    official = name if name in source.names else official_name(name)
    if official not in source.names:
        raise MissingTensorError(
            f"{file.path} changes {shown[:80]!a}, which {source.name} does not have. "
            "Give the adapter of this model."
        )
    return source.names[official]


def _changed(before: Derived, change: Change) -> F32:
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
        return change(to_float32(before.make()))


def _replaced(source: Source, file: Checkpoint, target: str, name: str, stored: str) -> Derived:
    """The adapter's tensor in the shape that the model has it."""
    info, shape = file.tensors[stored], source.checkpoint.tensors[name].shape
    squeezed = [size for size in info.shape if size != 1]
    if squeezed != [size for size in shape if size != 1] or info.dtype not in _FLOATS:
        raise _misfit(file, target, info.shape, shape)
    if source.swapped and is_low_rank(target):
        raise UnsupportedModelError(
            f"{file.path} replaces {target}, which {source.checkpoint.path} holds transposed. "
            "Give the original model."
        )
    return Derived(info.dtype, shape, lambda: file.array(stored).reshape(shape))


def _change(
    file: Checkpoint,
    target: str,
    stored: Mapping[str, str],
    shape: tuple[int, ...],
    adapter: Adapter,
    init: tuple[Checkpoint, Parts] | None,
) -> Change:
    """What the parts `stored` make of a matrix of `shape`."""
    if "disha" in stored:
        return _blocks(file, target, stored["disha"], shape)
    product = _product(file, target, stored, shape)
    if init is None:
        scale = np.float32(_alpha(adapter) / file.tensors[stored["lora_B"]].shape[1])
        return lambda matrix: matrix + scale * product()
    beginning, parts = init
    first = {kind.removeprefix("init_"): name for kind, name in parts.get(target, {}).items()}
    before = _product(beginning, target, first, shape)
    return lambda matrix: matrix - before() + product()


def _alpha(adapter: Adapter) -> float:
    """The alpha that was given, or that the description which peft puts beside a LoRA tells."""
    if adapter.alpha is not None:
        return adapter.alpha
    config = adapter.path.with_name(_CONFIG)
    if not config.is_file():
        raise UsageError(
            f"{adapter.path} is a LoRA, which does not tell its alpha: give it with --lora-alpha "
            "(it is the lora_alpha of the training). For PiSSA give --lora-init instead."
        )
    found = read_json(config)
    for name in ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "fan_in_fan_out"):
        if found.get(name):
            raise UnsupportedModelError(f"{config} says {name}, which is not supported.")
    alpha = found.get("lora_alpha")
    if not isinstance(alpha, int | float) or not 0 < alpha < _MAX_ALPHA:
        raise UnsupportedModelError(f"{config} names no lora_alpha; give it with --lora-alpha.")
    return float(alpha)


def _product(
    file: Checkpoint, target: str, stored: Mapping[str, str], shape: tuple[int, ...]
) -> Callable[[], F32]:
    """The product of the two halves of a LoRA, [out, in], once it is asked for."""
    for kind in ("lora_A", "lora_B"):
        if kind not in stored:
            raise MissingTensorError(
                f"{file.path} lacks the tensor {target[:80]}.{kind}. The file is not complete: "
                "get it again."
            )
    first, second = (file.tensors[stored[kind]].shape for kind in ("lora_A", "lora_B"))
    # The converter of web-rwkv calls them lora.0 and lora.1, and stores the first one transposed.
    turned = ".lora.0" in stored["lora_A"]
    inner = first[::-1] if turned else first
    if not (
        len(inner) == len(second) == len(shape) == 2
        and inner[0] == second[1]
        and (second[0], inner[1]) == shape
    ):
        raise _misfit(file, target, (*second, *first), shape)

    def product() -> F32:
        a, b = (to_float32(file.array(stored[kind])) for kind in ("lora_A", "lora_B"))
        found: F32 = b @ (a.T if turned else a)
        return found

    return product


def _blocks(file: Checkpoint, target: str, stored: str, shape: tuple[int, ...]) -> Change:
    """The change by a Bone or a DiSHA."""
    found = file.tensors[stored].shape
    if len(shape) == 2 and len(found) == 3 and found[1] == found[2]:
        columns, r, _ = found
        if columns * r == shape[1] and shape[0] % r == 0:
            return lambda matrix: _by_blocks(matrix, to_float32(file.array(stored)))
    if len(shape) == 2 and len(found) == 2 and found[1] == shape[0]:
        return lambda matrix: matrix + _repeated(to_float32(file.array(stored)), shape[1])
    raise _misfit(file, target, found, shape)


def _by_blocks(matrix: F32, x: F32) -> F32:
    """`matrix` [out, in] + its blocks [a, b, r, r] times `x` [b, r, r] + `x`."""
    columns, r, _ = x.shape
    blocks = matrix.reshape(-1, r, columns, r).transpose(0, 2, 1, 3)
    changed: F32 = (blocks + blocks @ x + x).transpose(0, 2, 1, 3).reshape(matrix.shape)
    return changed


def _repeated(x: F32, width: int) -> F32:
    """`x` [r, out] as [out, width], its rows again and again."""
    times = -(-width // x.shape[0])
    repeated: F32 = np.tile(x.T, (1, times))[:, :width]
    return repeated


def _misfit(
    file: Checkpoint, target: str, found: tuple[Any, ...], shape: tuple[int, ...]
) -> ShapeError:
    return ShapeError(
        f"{file.path}: what it has for {target[:80]} ({list(found)}) does not fit the model's "
        f"{list(shape)}. Give the adapter of this model."
    )
