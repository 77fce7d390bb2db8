"""Models with seeded random weights, under official names, as torch tensors."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv_chat.checkpoints.layout import official_shapes
from rwkv_chat.models.base import Reference
from rwkv_chat.models.generations import GENERATIONS
from rwkv_chat.models.rwkv4 import Rwkv4
from rwkv_chat.models.rwkv5 import Rwkv5
from rwkv_chat.models.rwkv6 import Rwkv6
from rwkv_chat.models.rwkv7 import Rwkv7, Rwkv7a
from rwkv_chat.models.spec import ModelSpec

torch.set_num_threads(1)  # on matrices this small, threads only wait for each other

SHARED = Path(__file__).parents[2] / "shared" / "models"

REFERENCES: dict[str, type[Reference]] = {
    "4": Rwkv4,
    "5.0": Rwkv5,
    "5.1": Rwkv5,
    "5.2": Rwkv5,
    "6": Rwkv6,
    "7": Rwkv7,
    "7a": Rwkv7a,
}


def small_spec(
    n_layer: int = 2,
    n_embd: int = 32,
    head_size: int = 16,
    vocab_size: int = 50,
    ranks: tuple[int, int, int, int] = (8, 6, 4, 12),
    n_ffn: int | None = None,
) -> ModelSpec:
    """The shape of a model that computes in no time."""
    w, a, v, g = ranks
    v = v if n_layer > 1 else 0
    return ModelSpec("7", n_layer, n_embd, vocab_size, head_size, n_ffn or 4 * n_embd, w, a, v, g)


def spec_of(generation: str, **sizes: int) -> ModelSpec:
    """A small shape with the sizes that its generation has."""
    usual = {"n_layer": 2, "n_embd": 32, "vocab_size": 50, "head_size": 16, "n_ffn": 96}
    letters = GENERATIONS[generation].letters
    usual |= {"rank_w": 6, "rank_mix": 5} if generation.startswith("6") else {}
    usual |= {"ctx_len": 14} if "C" in letters else {}
    usual |= {"rank_copy": 12} if "rc" in letters else {}
    if generation[0] == "7":
        usual |= {"rank_w": 8, "rank_a": 6, "rank_v": 4, "rank_g": 12}
    usual |= sizes
    if "N" not in letters:
        usual["head_size"] = 0
    return ModelSpec(generation, **usual)


def random_weights(spec: ModelSpec, seed: int = 1) -> dict[str, torch.Tensor]:
    """Official float32 tensors that make every part of the model matter."""
    numbers = torch.Generator().manual_seed(seed)
    columns = spec.parts.family in {"2", "2.5", "3"}  # which have decays as [A, 1]

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        value = torch.randn(shape, generator=numbers)
        if ".ln" in name or name.startswith("ln_"):
            return 0.2 * value + (1.0 if name.endswith("weight") else 0.0)
        last = name.rsplit(".", 1)[-1]
        if last in {"time_decay", "time_first"} and columns:
            return (value - 1.0).unsqueeze(1)
        if last == "time_decay":
            return value - 1.0
        if last in {"time_w", "time_ww", "time_alpha", "time_beta", "time_gamma", "time_out"}:
            return 0.8 + 0.2 * value
        if last == "time_faaaa":
            return value * 0.5
        if last == "time_maa_w2":
            return value * 0.3
        if len(shape) == 2 and not name.endswith("r_k"):
            return value / math.sqrt(shape[0] if shape[0] < shape[1] else shape[1])
        if ".x_" in name or last.startswith(("time_mix", "time_maa_")):
            return torch.rand(shape, generator=numbers)
        return value * 0.5

    return {name: draw(name, shape) for name, shape in official_shapes(spec).items()}


def official(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with vectors as official files have them, [1, 1, D]."""

    finch = "blocks.0.att.time_maa_x" in weights

    def official_shape(name: str, shape: torch.Size) -> tuple[int, ...]:
        last = name.rsplit(".", 1)[-1]
        mixes = last.startswith(("x_", "time_mix", "time_maa_")) and len(shape) == 1
        if mixes or last in {"w0", "a0", "v0", "k_k", "k_a"} or (finch and last == "time_decay"):
            return (1, 1, *shape)
        if last == "time_decay" and "blocks.0.att.gate.weight" in weights and len(shape) == 1:
            return (*shape, 1, 1)
        return tuple(shape)

    return {n: t.reshape(official_shape(n, t.shape)).clone() for n, t in weights.items()}


def turned(weights: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Official tensors as float32 arrays in the converted layout, made without the converter."""
    parts = (*"wavg", "time_maa_w", "time_decay_w")
    last = {
        "ffn.value.weight",
        "ffnPre.value.weight",
        "ffn.s1",
        "ffn.s2",
        *(f"att.{part}{side}" for part in parts for side in "12"),
    }
    arrays = {name: tensor.float().numpy() for name, tensor in weights.items()}
    for name, array in arrays.items():
        if name.endswith(("att.time_decay", "att.time_first")) and array.shape[1:] == (1,):
            arrays[name] = array[:, 0]
    return {
        n: a.swapaxes(-1, -2).copy() if n.split(".", 2)[-1] in last else a
        for n, a in arrays.items()
    }


def converted_arrays(spec: ModelSpec, seed: int = 1) -> dict[str, np.ndarray]:
    """Random float32 weights in the converted layout."""
    return turned(random_weights(spec, seed))


def shared_model(name: str) -> Path:
    """A trained model that is kept beside the checkout; skips the test where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"the trained test models are not beside this checkout ({path.name})")
    return path
