"""From the tensors of a file to the shape of the model, with everything verified."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from rwkv_chat.checkpoints.foreign import START, check_known
from rwkv_chat.checkpoints.layout import (
    check_limits,
    check_shapes,
    is_low_rank,
    logarithm_of,
    official_shapes,
)
from rwkv_chat.checkpoints.names import find_generation, strip_prefixes
from rwkv_chat.checkpoints.reading import Checkpoint, TensorShape
from rwkv_chat.errors import MissingTensorError, ShapeError
from rwkv_chat.models.generations import GENERATIONS
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.tensors import SIZES, split_size

__all__ = ["Detected", "detect"]

_COPY_MASK = "copy_mask"
_USUAL_CTX_LEN = 1024
_PILE_VOCAB_SIZES = frozenset({50277, 50304})
_PILE_KEY_EPS = 1e-8


@dataclass(frozen=True, slots=True)
class Detected:
    """What a file of official names holds.

    `names` maps official names to those in the file; `swapped` tells that the low-rank matrices are
    stored [rank, D] and [D, rank], as web-rwkv does; `ignored` are tensors that have no use here.
    `has_start` tells that a start state was merged into it.
    """

    spec: ModelSpec
    names: Mapping[str, str]
    swapped: bool
    ignored: tuple[str, ...]
    has_start: bool


def detect(checkpoint: Checkpoint, *, normed: bool = False) -> Detected:
    """Find the shape of the model, and verify the name, type and shape of every tensor it needs.

    `normed` tells that its embeddings have gone through ln0, and that it has none for this reason.

    Raises:
        CheckpointError: one of its subclasses, with the tensor and what is wrong with it.
    """
    path = checkpoint.path
    names = strip_prefixes(path, checkpoint.tensors)
    tensors = {short: checkpoint.tensors[name] for short, name in names.items()}
    generation = find_generation(path, tensors, normed=normed)
    check_known(path, tensors, generation)
    swapped = generation == "7" and _is_swapped(path, tensors)
    spec = _spec(path, tensors, generation, swapped=swapped)
    check_limits(path, spec)
    expected = official_shapes(spec)
    if swapped:
        expected |= {n: shape[::-1] for n, shape in expected.items() if is_low_rank(n)}
    present = {name: _present(tensors, name) for name in expected}
    check_shapes(path, {n: tensors[at] for n, at in present.items() if at in tensors}, expected)
    used = {*present.values(), _COPY_MASK}
    starts = {name for name in tensors if name.endswith(f".{START}")}
    ignored = tuple(name for name in tensors if name not in used | starts)
    found = {name: names[at] for name, at in present.items()}
    return Detected(spec, found, swapped, ignored, bool(starts))


def _present(tensors: Mapping[str, TensorShape], name: str) -> str:
    """The name under which a file has a tensor, which may be that of its logarithm."""
    other = logarithm_of(name)
    return other if name not in tensors and other in tensors else name


def _is_swapped(path: Path, tensors: Mapping[str, TensorShape]) -> bool:
    width = _shape(path, tensors, "emb.weight", 2)[1]
    first = _shape(path, tensors, "blocks.0.att.w1", 2)
    return first[0] != width and first[1] == width


def _spec(
    path: Path, tensors: Mapping[str, TensorShape], generation: str, *, swapped: bool
) -> ModelSpec:
    parts = GENERATIONS[generation]
    layers = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    n_layer = len(layers)  # a gap in their numbers is then a missing tensor
    sizes: dict[str, int] = {}
    for name, rule in parts.tensors(2 if n_layer > 1 else 1):
        letters = [split_size(size) for size in rule.shape]
        if all(letter in sizes or not letter for _, letter in letters):
            continue
        shape = _shape(path, tensors, _present(tensors, name), len(letters))
        if swapped and is_low_rank(name):
            shape = shape[::-1]
        for (factor, letter), number in zip(letters, shape, strict=True):
            if letter:
                sizes.setdefault(letter, number // factor)
    n_head = sizes.pop("H", 0)
    if n_head:
        sizes.setdefault("N", sizes.get("A", 0) // n_head)
    if "C" in parts.letters and "C" not in sizes:
        sizes["C"] = (
            _shape(path, tensors, _COPY_MASK, 2)[0] if _COPY_MASK in tensors else _USUAL_CTX_LEN
        )
    fields = {SIZES[letter]: number for letter, number in sizes.items()}
    return ModelSpec(
        generation=generation,
        n_layer=n_layer,
        key_eps=_key_eps(parts.family, sizes),
        **{"head_size": 0, **fields},
    )


def _key_eps(family: str, sizes: Mapping[str, int]) -> float:
    """That of the last RWKV-2 models of the Pile; 0, the usual one, for all others."""
    return _PILE_KEY_EPS if family == "2" and sizes.get("V") in _PILE_VOCAB_SIZES else 0.0


def _shape(
    path: Path, tensors: Mapping[str, TensorShape], name: str, dimensions: int
) -> tuple[int, ...]:
    """The shape of a tensor, as one number where one dimension is asked for."""
    if name not in tensors:
        raise MissingTensorError(
            f"{path} lacks the tensor {name}. The file is not complete: get it again."
        )
    shape = tensors[name].shape
    if dimensions == 1:  # official files have some vectors as [1, 1, D]
        return (prod(shape),)
    if len(shape) != dimensions:
        raise ShapeError(
            f"{path}: tensor {name} is {list(shape)} and should have {dimensions} dimensions. "
            "The file does not fit together: get it again."
        )
    return shape
