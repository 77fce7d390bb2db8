"""From the tensors of a file to the shape of the model, with everything verified."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rwkv_chat.checkpoints.layout import check_limits, check_shapes, is_low_rank, official_shapes
from rwkv_chat.checkpoints.names import require_rwkv7, strip_prefixes
from rwkv_chat.checkpoints.reading import Checkpoint, TensorShape
from rwkv_chat.errors import MissingTensorError, ShapeError
from rwkv_chat.models.spec import ModelSpec

__all__ = ["Detected", "detect"]


@dataclass(frozen=True, slots=True)
class Detected:
    """What a file of official names holds.

    `names` maps official names to those in the file; `swapped` tells that the low-rank matrices are
    stored [rank, D] and [D, rank], as web-rwkv does; `ignored` are tensors that have no use here.
    """

    spec: ModelSpec
    names: Mapping[str, str]
    swapped: bool
    ignored: tuple[str, ...]


def detect(checkpoint: Checkpoint) -> Detected:
    """Find the shape of the model, and verify the name, type and shape of every tensor it needs.

    Raises:
        CheckpointError: one of its subclasses, with the tensor and what is wrong with it.
    """
    path = checkpoint.path
    names = strip_prefixes(path, checkpoint.tensors)
    tensors = {short: checkpoint.tensors[name] for short, name in names.items()}
    require_rwkv7(path, tensors)
    swapped = _is_swapped(path, tensors)
    spec = _spec(path, tensors, swapped=swapped)
    check_limits(path, spec)
    expected = official_shapes(spec)
    if swapped:
        expected |= {n: shape[::-1] for n, shape in expected.items() if is_low_rank(n)}
    check_shapes(path, tensors, expected)
    ignored = tuple(name for name in tensors if name not in expected)
    return Detected(spec, {name: names[name] for name in expected}, swapped, ignored)


def _is_swapped(path: Path, tensors: Mapping[str, TensorShape]) -> bool:
    width = _shape(path, tensors, "emb.weight", 2)[1]
    first = _shape(path, tensors, "blocks.0.att.w1", 2)
    return first[0] != width and first[1] == width


def _spec(path: Path, tensors: Mapping[str, TensorShape], *, swapped: bool) -> ModelSpec:
    def rank(name: str) -> int:
        return _shape(path, tensors, name, 2)[0 if swapped else 1]

    vocab_size, n_embd = _shape(path, tensors, "emb.weight", 2)
    layers = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    n_layer = len(layers)  # a gap in their numbers is then a missing tensor
    return ModelSpec(
        generation="7",
        n_layer=n_layer,
        n_embd=n_embd,
        vocab_size=vocab_size,
        head_size=_shape(path, tensors, "blocks.0.att.r_k", 2)[1],
        n_ffn=_shape(path, tensors, "blocks.0.ffn.key.weight", 2)[0],
        rank_w=rank("blocks.0.att.w1"),
        rank_a=rank("blocks.0.att.a1"),
        rank_v=rank("blocks.1.att.v1") if n_layer > 1 else 0,
        rank_g=rank("blocks.0.att.g1"),
    )


def _shape(
    path: Path, tensors: Mapping[str, TensorShape], name: str, dimensions: int
) -> tuple[int, ...]:
    if name not in tensors:
        raise MissingTensorError(
            f"{path} lacks the tensor {name}. The file is not complete: get it again."
        )
    shape = tensors[name].shape
    if len(shape) != dimensions:
        raise ShapeError(
            f"{path}: tensor {name} is {list(shape)} and should have {dimensions} dimensions. "
            "The file does not fit together: get it again."
        )
    return shape
