"""A run that begins with the weights of a model that there is."""

from pathlib import Path

import pytest
import torch

from rwkv_chat.errors import UsageError
from rwkv_chat.training.export import write_converted, write_official
from rwkv_chat.training.initial import begin_with
from rwkv_chat.training.model import Shape, Trainee

SHAPE = Shape(n_layer=2, n_embd=64, vocab_size=300)


def model_of(seed: int, shape: Shape = SHAPE) -> Trainee:
    torch.manual_seed(seed)
    return Trainee(shape)


@pytest.mark.parametrize("form", ["official", "converted"])
def test_the_weights_are_those_of_the_file(tmp_path: Path, form: str) -> None:
    there = model_of(1)
    path = tmp_path / ("m.pth" if form == "official" else "m.safetensors")
    if form == "official":
        write_official(path, there.state_dict(), SHAPE.spec())
    else:
        write_converted(path, there.state_dict(), SHAPE.spec(), "f32", "embedded")
    here = model_of(2)
    begin_with(here, path)
    for name, value in here.state_dict().items():
        assert torch.equal(value, there.state_dict()[name]), name


def test_another_shape_is_refused(tmp_path: Path) -> None:
    write_official(tmp_path / "m.pth", model_of(1).state_dict(), SHAPE.spec())
    with pytest.raises(UsageError, match="another shape than this run: 2 layers, width 64, 300"):
        begin_with(model_of(2, Shape(1, 64, 300)), tmp_path / "m.pth")
