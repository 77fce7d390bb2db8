"""Models in the naming of Hugging Face: from their names back to the official ones.

RWKV-6 and 7 as the repository fla-org/flash-linear-attention stores them (its
`utils/convert_from_rwkv6.py` and `convert_from_rwkv7.py` say how), and RWKV-4 to 6 in the layout of
the transformers library.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_chat.checkpoints.derived import Array, DerivedTensors
from rwkv_chat.checkpoints.folder import read_json
from rwkv_chat.checkpoints.reading import Checkpoint
from rwkv_chat.errors import ShapeError, UnsupportedModelError
from rwkv_chat.models.spec import ModelSpec

__all__ = [
    "is_fla",
    "is_transformers",
    "official_name",
    "restore_fla",
    "restore_transformers",
    "with_config",
]

_LAYER_NORM_EPS = 1e-5
_HEAD = "head.weight"
_MODEL = {
    "embeddings.weight": "emb.weight",
    "norm.weight": "ln_out.weight",
    "norm.bias": "ln_out.bias",
    "lm_head.weight": _HEAD,
}
_LAYER = re.compile(r"layers\.(\d{1,4})\.(.+)")
_FLA = re.compile(r"layers\.\d{1,4}\.attn\.(r_proj\.weight|x_bias)")
_MATRICES = {"r": "receptance", "k": "key", "v": "value", "g": "gate", "o": "output"}
_PARTS = {
    **{
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in {
            "pre_norm": "ln0",
            "attn_norm": "ln1",
            "ffn_norm": "ln2",
            "attn.g_norm": "att.ln_x",
        }.items()
        for kind in ("weight", "bias")
    },
    **{f"attn.{letter}_proj.weight": f"att.{name}.weight" for letter, name in _MATRICES.items()},
    **{
        f"attn.{letter}_proj.linear.weight": f"att.{name}.weight"
        for letter, name in _MATRICES.items()
    },
    **{f"attn.{name}": f"att.{name}" for name in ("k_k", "k_a", "r_k")},
    **{f"attn.x_{letter}": f"att.x_{letter}" for letter in "rwkvag"},
    **{f"attn.{pair}_lora.lora.2.bias": f"att.{pair}0" for pair in "wav"},
    "attn.x_proj.0.mu": "att.time_maa_x",
    "attn.w_proj.linear.lora.2.bias": "att.time_decay",
    "attn.bonus": "att.time_faaaa",
    "ffn.key.linear.weight": "ffn.key.weight",
    "ffn.key.mu": "ffn.time_maa_k",
    "ffn.receptance.linear.weight": "ffn.receptance.weight",
    "ffn.receptance.mu": "ffn.time_maa_r",
}
_TURNED = {
    **{f"attn.{pair}_lora.lora.0.weight": f"att.{pair}1" for pair in "wavg"},
    **{f"attn.{pair}_lora.lora.2.weight": f"att.{pair}2" for pair in "wavg"},
    "attn.w_proj.linear.lora.0.weight": "att.time_decay_w1",
    "attn.w_proj.linear.lora.2.weight": "att.time_decay_w2",
}
_ROWS = {
    "attn.x_x": [f"att.x_{letter}" for letter in "rwkvag"],
    "attn.x_bias": [f"att.time_maa_{letter}" for letter in "rwkvg"],
}
_BIASED_ALIKE = (
    frozenset({"pre_norm", "attn_norm", "ffn_norm", "norm"}),
    frozenset({"g_norm"}),
)
_OFFICIAL_ORDER = (1, 2, 3, 0, 4)  # of w, k, v, r, g among their r, w, k, v, g


def is_fla(names: Mapping[str, str]) -> bool:
    """Whether names (without the prefixes of wrappers) are those of flash-linear-attention."""
    return any(map(_FLA.fullmatch, names))


def restore_fla(file: Checkpoint, names: Mapping[str, str]) -> Checkpoint:
    """The same model under official names and in official shapes.

    Args:
        file: the model.
        names: its names without the prefixes of wrappers, mapped to those in the file.

    Raises:
        CheckpointError: a fused tensor has a shape that cannot be taken apart, or what a name
            stands for is there twice.
    """
    tensors = DerivedTensors(file)
    for short, stored in names.items():
        _restore(tensors, file, short, stored)
    for norms in _BIASED_ALIKE:
        _without_biases(tensors, file, norms, names)
    return _tied(file, tensors, names)


def _without_biases(
    tensors: DerivedTensors, file: Checkpoint, norms: frozenset[str], names: Mapping[str, str]
) -> None:
    """Give `norms` biases of 0 where none has one, as `norm_bias: false` leaves them out."""
    found: dict[str, list[str]] = {"weight": [], "bias": []}
    for name in names:
        place, _, kind = name.rpartition(".")
        if place.rpartition(".")[2] in norms and kind in found:
            found[kind].append(place)
    for place in found["weight"] if not found["bias"] else ():
        stored = names[f"{place}.weight"]
        shape = file.tensors[stored].shape
        tensors.add(official_name(f"{place}.bias"), stored, shape, np.zeros_like)


def official_name(name: str) -> str:
    """The official name of a tensor that fla stores as it is; any other name is left alone."""
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return _MODEL.get(name, name)
    return f"blocks.{int(layer[1])}.{_PARTS.get(layer[2], layer[2])}"


def _restore(tensors: DerivedTensors, file: Checkpoint, short: str, stored: str) -> None:
    """Take over the tensor `short`, which the file calls `stored`."""
    shape = file.tensors[stored].shape
    layer = _LAYER.fullmatch(short)
    part = layer[2] if layer else ""
    block = f"blocks.{int(layer[1])}." if layer else ""
    if part in _TURNED:
        tensors.turn(block + _TURNED[part], stored)
    elif part in _ROWS:
        for row, name in enumerate(_ROWS[part]):
            _need(file, stored, len(shape) == 2 and shape[0] == len(_ROWS[part]))
            tensors.add(block + name, stored, shape[1:], partial(_row, row=row))
    elif part == "attn.x_proj.0.linear.weight":
        _need(file, stored, len(shape) == 2 and shape[0] % 5 == 0)
        tensors.add(f"{block}att.time_maa_w1", stored, shape[::-1], _first_half)
    elif part == "attn.x_proj.2.weight":
        _need(file, stored, len(shape) == 2 and shape[1] % 5 == 0)
        three = (5, shape[1] // 5, shape[0])
        tensors.add(f"{block}att.time_maa_w2", stored, three, _second_half)
    else:
        tensors.keep(official_name(short), stored)


def _row(array: Array, row: int) -> Array:
    found: Array = array[row]
    return found


def _first_half(array: Array) -> Array:
    """[5 * rank, D] in their order to [D, 5 * rank] in the official one."""
    blocks = array.reshape(5, -1, array.shape[1])
    return np.concatenate([blocks[place] for place in _OFFICIAL_ORDER]).T


def _second_half(array: Array) -> Array:
    """[D, 5 * rank] in their order to [5, rank, D] in the official one."""
    blocks = np.ascontiguousarray(array.T).reshape(5, -1, array.shape[0])
    return np.stack([blocks[place] for place in _OFFICIAL_ORDER])


def _need(file: Checkpoint, stored: str, fits: bool) -> None:
    if not fits:
        raise ShapeError(
            f"{file.path}: tensor {stored} is {list(file.tensors[stored].shape)}, which does not "
            "hold what it should. The file does not fit together: get it again."
        )


def _tied(file: Checkpoint, tensors: DerivedTensors, names: Mapping[str, str]) -> Checkpoint:
    """Small models may use their embedding as the head, too, and then hold it once."""
    if "lm_head.weight" not in names and _HEAD not in names and "embeddings.weight" in names:
        tensors.keep(_HEAD, names["embeddings.weight"])
    return tensors.file()


_TRANSFORMERS = (
    (re.compile(r"^rwkv\.embeddings\."), "emb."),
    (re.compile(r"^rwkv\."), ""),
    (re.compile(r"\.attention\."), ".att."),
    (re.compile(r"\.feed_forward\."), ".ffn."),
    (re.compile(r"\.pre_ln\."), ".ln0."),
)
_LONG = re.compile(r"(?<=\.time_mix_)(key|value|receptance|gate)$")


def is_transformers(names: Mapping[str, str]) -> bool:
    """Whether names (without the prefixes of wrappers) are those of the transformers library."""
    return "rwkv.blocks.0.attention.key.weight" in names


def restore_transformers(file: Checkpoint, names: Mapping[str, str]) -> Checkpoint:
    """As `restore_fla`, for the layout of the transformers library."""
    tensors = DerivedTensors(file)
    for short, stored in names.items():
        name = _LONG.sub(lambda found: found[0][0], short)
        for pattern, replacement in _TRANSFORMERS:
            name = pattern.sub(replacement, name)
        tensors.keep(name, stored)
    return tensors.file()


def with_config(spec: ModelSpec, path: Path | None) -> ModelSpec:
    """`spec` with what the config.json of a fla model says beyond its tensors.

    Their group norm has the epsilon of the layer norms in RWKV-6, and that times the size of a head
    in RWKV-7.

    Raises:
        CheckpointError: the description cannot be read, or is that of another computation.
    """
    config: dict[str, Any] = read_json(path) if path is not None else {}
    epsilon = config.get("norm_eps", _LAYER_NORM_EPS)
    if type(epsilon) is not float or abs(epsilon - _LAYER_NORM_EPS) > 1e-9:
        raise UnsupportedModelError(
            f"{path} gives the layer norms the epsilon {str(epsilon)[:40]}, where only 1e-05 is "
            "supported."
        )
    if config.get("hidden_act", "sqrelu") != "sqrelu":
        raise UnsupportedModelError(
            f"{path} names the activation {str(config['hidden_act'])[:40]!a}, where only sqrelu is "
            "supported."
        )
    if spec.generation == "6":
        return replace(spec, group_norm_eps=_LAYER_NORM_EPS)
    return replace(spec, group_norm_eps=spec.head_size / 1e5)  # 64e-5 exactly for heads of 64
