"""Weights to begin with: those of a model that there is already."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rwkv_chat.checkpoints.converted import ConvertedModel, open_model
from rwkv_chat.checkpoints.floats import to_float32
from rwkv_chat.checkpoints.layout import is_transposed
from rwkv_chat.checkpoints.plain import plain
from rwkv_chat.errors import UsageError
from rwkv_chat.training.model import Trainee

__all__ = ["begin_with", "official_tensors"]


def official_tensors(converted: ConvertedModel) -> dict[str, Tensor]:
    """The weights of an opened model, float32, by official names and in official shapes."""
    tensors = {}
    for name, array in plain(converted.spec, converted.tensors).items():
        values = to_float32(array)
        tensors[name] = torch.from_numpy(np.array(values.T if is_transposed(name) else values))
    return tensors


def begin_with(model: Trainee, path: Path) -> None:
    """Give `model` the weights of the model file `path`, which must have the same shape.

    Raises:
        CheckpointError: the file cannot be used.
        UsageError: it has another shape.
    """
    converted = open_model(path, "f32")
    if converted.spec != model.shape.spec():
        raise UsageError(
            f"{path} has another shape than this run: {converted.spec.n_layer} layers, width "
            f"{converted.spec.n_embd}, {converted.spec.vocab_size} tokens. Give --layers, --width "
            "and text that was packed with its vocabulary."
        )
    model.load_state_dict(official_tensors(converted))
