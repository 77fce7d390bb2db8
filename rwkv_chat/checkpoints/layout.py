"""Where each weight of a model stands: names and shapes of official and converted files."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path

from rwkv_chat.checkpoints import q4, q8
from rwkv_chat.checkpoints.reading import TensorShape
from rwkv_chat.errors import MissingTensorError, NotAModelError, ShapeError
from rwkv_chat.models.generations import GENERATIONS, Generation
from rwkv_chat.models.spec import ModelSpec
from rwkv_chat.models.tensors import SIZES, TensorRule

__all__ = [
    "check_limits",
    "check_shapes",
    "converted_shapes",
    "is_low_rank",
    "is_read_by_row",
    "is_transposed",
    "is_vector",
    "logarithm_of",
    "official_shapes",
    "parse_spec",
    "render_spec",
]

Shapes = dict[str, tuple[int, ...]]

_MAXIMA = {
    "n_layer": 256,
    "n_embd": 16_384,
    "vocab_size": 1 << 20,
    "head_size": 1024,
    "n_ffn": 1 << 17,
    "rank_w": 16_384,
    "rank_a": 16_384,
    "rank_v": 16_384,
    "rank_g": 16_384,
    "n_att": 16_384,
    "rank_mix": 16_384,
    "rank_copy": 16_384,
    "ctx_len": 16_384,
}

_MATRIX_TYPES = {"f32": "F32", "bf16": "BF16", "q8": "I8", "q4": "I8"}
_WIDEST_FIRST = ("F32", "BF16", "I8", "U8")
_BY_ROW = ("emb.weight", ".ffn.value.weight")
_LARGE = re.compile(r"blocks\.\d+\.(?:att|ffn)\.(?:receptance|key|value|output|gate)\.weight")


def official_shapes(spec: ModelSpec) -> Shapes:
    """Every tensor of the official layout, vectors as [D], in the order of the layers."""
    return spec.parts.shapes(spec.n_layer, spec.sizes)


@cache
def _rules() -> dict[str, TensorRule]:
    """How each tensor is kept, the same in all generations that have it, by its name in a layer."""
    return {rule.name: rule for parts in GENERATIONS.values() for rule in parts.rules}


def _rule(name: str) -> TensorRule | None:
    return _rules().get(name.split(".", 2)[2] if name.startswith("blocks.") else name)


def is_vector(name: str) -> bool:
    """Whether a tensor stays float32 in every weights type (r_k too, though it is [H, N])."""
    rule = _rule(name)
    return rule is not None and rule.kind == "vector"


def is_transposed(name: str) -> bool:
    """Whether a converted file holds the transpose of the official tensor."""
    rule = _rule(name)
    return rule is not None and rule.is_turned


def is_low_rank(name: str) -> bool:
    """Whether a tensor is one half of a low-rank pair, such as w1 [D, rank] and w2 [rank, D]."""
    rule = _rule(name)
    return rule is not None and rule.kind == "low_rank"


def is_read_by_row(name: str) -> bool:
    """Whether only some rows of a converted matrix are read in a step."""
    return name.endswith(_BY_ROW)


def logarithm_of(name: str) -> str:
    """The name of what some files hold instead: the tensor's logarithm; empty where none do."""
    rule = _rule(name)
    if rule is None or not rule.logarithm:
        return ""
    return name.removesuffix(rule.name) + rule.logarithm


def converted_shapes(spec: ModelSpec, weights: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor of a converted file, in file order.

    The float32 vectors come first, then the wider types, so that every tensor is aligned to its
    type. In "q8" every matrix is int8, in tiles, or where it is read by row with its scales beside
    it. In "q4" the projections of the layers are packed as uint8; what they have by the token, in
    pairs of low rank, and the embeddings and the head decide more, and are as in "q8". Matrices in
    a stack remain bfloat16.
    """
    entries: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in official_shapes(spec).items():
        if is_vector(name):
            entries[name] = ("F32", shape)
            continue
        kept = _kept(name, shape)
        dtype = _MATRIX_TYPES[weights]
        if dtype == "I8" and len(kept) > 2:
            dtype = "BF16"
        if weights == "q4" and _LARGE.fullmatch(name):
            packed = q4.row_shape if is_read_by_row(name) else q4.tile_shape
            entries[name] = ("U8", packed(kept))
        elif dtype == "I8" and not is_read_by_row(name):
            entries[name] = (dtype, q8.tile_shape(kept))
        else:
            entries[name] = (dtype, kept)
            if dtype == "I8":
                entries[name + q8.SCALE] = ("F32", q8.scale_shape(kept))

    def place(item: tuple[str, tuple[str, tuple[int, ...]]]) -> tuple[bool, int]:
        return not is_vector(item[0]), _WIDEST_FIRST.index(item[1][0])

    return dict(sorted(entries.items(), key=place))


def _kept(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], shape[-1], shape[-2]) if is_transposed(name) else shape


def check_shapes(
    path: Path, tensors: Mapping[str, TensorShape], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Check that every expected tensor is there; a vector [D] may also be [1, 1, D].

    Raises:
        MissingTensorError, ShapeError: with the tensor, what it is and what it should be.
    """
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise MissingTensorError(
                f"{path} lacks the tensor {name}. The file is not complete: get it again."
            )
        if tensor.dtype not in {"F32", "F16", "BF16"}:
            raise ShapeError(
                f"{path}: tensor {name} has the type {tensor.dtype}; "
                "save the model as float32, float16 or bfloat16."
            )
        squeezed = tuple(size for size in tensor.shape if size != 1)
        if tensor.shape != shape and (
            len(shape) != 1 or squeezed != tuple(n for n in shape if n != 1)
        ):
            raise ShapeError(
                f"{path}: tensor {name} is {list(tensor.shape)} and should be {list(shape)}. "
                "The file does not fit together: get it again."
            )


def check_limits(path: Path, spec: ModelSpec) -> None:
    """Check that the sizes are those of a possible model.

    Raises:
        ShapeError: with the size that is not.
    """
    names = _size_names(spec.parts)
    for name in names:
        maximum = _MAXIMA[name]
        minimum = 0 if name == "rank_v" and spec.n_layer == 1 else 1
        if not minimum <= getattr(spec, name) <= maximum:
            raise ShapeError(
                f"{path}: {name} is {getattr(spec, name)}, outside {minimum} to {maximum}. "
                "The file is not a model that can be used."
            )
    if "head_size" in names and spec.n_head * spec.head_size != spec.n_att:
        raise ShapeError(
            f"{path}: heads of {spec.head_size} do not divide the width {spec.n_att}. "
            "The file is not a model that can be used."
        )


def _size_names(parts: Generation) -> tuple[str, ...]:
    """The fields of ModelSpec that are sizes of this generation, in their order."""
    letters = {SIZES[letter] for letter in parts.letters}
    return tuple(
        field.name
        for field in fields(ModelSpec)
        if field.name == "n_layer" or field.name in letters
    )


def render_spec(spec: ModelSpec) -> str:
    """The spec as the JSON of a converted file's metadata: what its generation has."""
    return json.dumps({name: getattr(spec, name) for name in _described(spec.parts)})


def _described(parts: Generation) -> list[str]:
    names = {"generation", *_size_names(parts)}
    if parts.has_group_norm:
        names.add("group_norm_eps")
    if parts.key_eps:
        names.add("key_eps")
    return [field.name for field in fields(ModelSpec) if field.name in names]


def parse_spec(path: Path, text: str) -> ModelSpec:
    """The inverse of `render_spec`, for text from outside.

    Raises:
        NotAModelError, ShapeError: it is not such text, or its sizes are impossible.
    """
    try:
        spec = _parsed(json.loads(text))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise NotAModelError(
            f"{path} is damaged: the description of the model is not readable."
        ) from None
    check_limits(path, spec)
    return spec


def _parsed(values: object) -> ModelSpec:
    if not isinstance(values, dict):
        raise TypeError("not an object")
    parts = GENERATIONS[values["generation"]]
    sizes = _size_names(parts)
    if values.keys() != set(_described(parts)) or any(type(values[n]) is not int for n in sizes):
        raise ValueError("other fields")
    if not all(_is_epsilon(values.get(name, 0.5)) for name in ("group_norm_eps", "key_eps")):
        raise ValueError("no epsilon")
    return ModelSpec(**{"head_size": 0, **values})


def _is_epsilon(value: object) -> bool:
    return isinstance(value, float) and 0 < value < 1
