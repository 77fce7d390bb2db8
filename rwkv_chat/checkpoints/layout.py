"""Where each weight of an RWKV-7 model stands: names and shapes of official and converted files."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

from rwkv_chat.checkpoints.reading import TensorShape
from rwkv_chat.errors import MissingTensorError, NotAModelError, ShapeError
from rwkv_chat.models.spec import ModelSpec

__all__ = [
    "check_limits",
    "check_shapes",
    "converted_shapes",
    "is_low_rank",
    "is_transposed",
    "is_vector",
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
}
_MIX = tuple(f"att.x_{part}" for part in "rwkvag")
_VECTORS = frozenset(
    (*_MIX, "att.w0", "att.a0", "att.v0", "att.k_k", "att.k_a", "att.r_k", "ffn.x_k")
)


def official_shapes(spec: ModelSpec) -> Shapes:
    """Every tensor of the official layout, vectors as [D], in the order of the layers."""
    d, v = spec.n_embd, spec.vocab_size
    shapes: Shapes = {"emb.weight": (v, d)}
    for layer in range(spec.n_layer):
        if layer == 0:
            shapes |= {"blocks.0.ln0.weight": (d,), "blocks.0.ln0.bias": (d,)}
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in _layer(spec, layer).items()}
    return shapes | {"ln_out.weight": (d,), "ln_out.bias": (d,), "head.weight": (v, d)}


def _layer(spec: ModelSpec, layer: int) -> Shapes:
    d, f = spec.n_embd, spec.n_ffn
    ranks = {"w": spec.rank_w, "a": spec.rank_a, "v": spec.rank_v, "g": spec.rank_g}
    if layer == 0:
        del ranks["v"]  # the value residual of layer 0 would be its own value
    shapes: Shapes = {f"{norm}.{part}": (d,) for norm in ("ln1", "ln2") for part in _NORM}
    shapes |= dict.fromkeys(_MIX, (d,))
    for part, rank in ranks.items():
        if part != "g":
            shapes[f"att.{part}0"] = (d,)
        shapes |= {f"att.{part}1": (d, rank), f"att.{part}2": (rank, d)}
    shapes |= {"att.k_k": (d,), "att.k_a": (d,), "att.r_k": (spec.n_head, spec.head_size)}
    for matrix in ("receptance", "key", "value", "output"):
        shapes[f"att.{matrix}.weight"] = (d, d)
    shapes |= {"att.ln_x.weight": (d,), "att.ln_x.bias": (d,), "ffn.x_k": (d,)}
    return shapes | {"ffn.key.weight": (f, d), "ffn.value.weight": (d, f)}


_NORM = ("weight", "bias")


def is_vector(name: str) -> bool:
    """Whether a tensor stays float32 in every weights type (r_k too, though it is [H, N])."""
    return ".ln" in name or name.startswith("ln_out") or _short(name) in _VECTORS


def is_transposed(name: str) -> bool:
    """Whether a converted file holds the transpose of the official tensor."""
    return _short(name) == "ffn.value.weight" or is_low_rank(name)


def is_low_rank(name: str) -> bool:
    """Whether a tensor is one half of a low-rank pair, such as w1 [D, rank] and w2 [rank, D]."""
    return _short(name) in _LOW_RANK


_LOW_RANK = frozenset(f"att.{part}{side}" for part in "wavg" for side in "12")


def _short(name: str) -> str:
    """The name inside its layer."""
    return name.split(".", 2)[2] if name.startswith("blocks.") else name


def converted_shapes(spec: ModelSpec, weights: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor of a converted file, in file order.

    The float32 vectors come first, so that every tensor is aligned to its type.
    """
    matrix = {"f32": "F32", "bf16": "BF16"}[weights]
    shapes = official_shapes(spec)
    entries = {
        name: ("F32", shape)
        if is_vector(name)
        else (matrix, shape[:: -1 if is_transposed(name) else 1])
        for name, shape in shapes.items()
    }
    return dict(sorted(entries.items(), key=lambda item: not is_vector(item[0])))


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
    for name, maximum in _MAXIMA.items():
        minimum = 0 if name == "rank_v" and spec.n_layer == 1 else 1
        if not minimum <= getattr(spec, name) <= maximum:
            raise ShapeError(
                f"{path}: {name} is {getattr(spec, name)}, outside {minimum} to {maximum}. "
                "The file is not a model that can be used."
            )
    if spec.n_head * spec.head_size != spec.n_embd:
        raise ShapeError(
            f"{path}: heads of {spec.head_size} do not divide the width {spec.n_embd}. "
            "The file is not a model that can be used."
        )


def render_spec(spec: ModelSpec) -> str:
    """The spec as the JSON of a converted file's metadata."""
    return json.dumps(asdict(spec))


def parse_spec(path: Path, text: str) -> ModelSpec:
    """The inverse of `render_spec`, for text from outside.

    Raises:
        NotAModelError, ShapeError: it is not such text, or its sizes are impossible.
    """
    try:
        values = json.loads(text)
        good = isinstance(values, dict) and values.keys() == {f.name for f in fields(ModelSpec)}
        good = good and values["generation"] == "7" and _is_epsilon(values["group_norm_eps"])
        good = good and all(type(values[name]) is int for name in _MAXIMA)
    except (ValueError, RecursionError):
        good = False
    if not good:
        raise NotAModelError(f"{path} is damaged: the description of the model is not readable.")
    spec = ModelSpec(**values)
    check_limits(path, spec)
    return spec


def _is_epsilon(value: object) -> bool:
    return isinstance(value, float) and 0 < value < 1
