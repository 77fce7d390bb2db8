"""Whole models saved as objects: read by the names in them, with no class looked up."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rwkv_chat.checkpoints.converted import open_model
from rwkv_chat.checkpoints.modules import SavedObject, named_tensors
from rwkv_chat.checkpoints.pth import open_pth
from rwkv_chat.errors import NotAModelError
from tests.seeded import random_weights, spec_of

SPEC = spec_of("1+head_qk", n_layer=3)


def classes() -> ModuleType:
    """A module of a training script, as RWKV-1 had one, that raises when it is used again."""
    module = ModuleType("training_script")

    class Part(nn.Module):
        __module__ = "training_script"

    class Config:
        __module__ = "training_script"

    module.Part, module.Config = Part, Config  # type: ignore[attr-defined]
    Part.__qualname__, Config.__qualname__ = "Part", "Config"
    return module


def as_module(weights: dict[str, torch.Tensor], script: Any) -> Any:
    """The weights as the parameters of modules in modules, with all that surrounds them there."""
    root = script.Part()
    root.config = script.Config()
    root.config.__dict__ |= {"n_layer": 3, "betas": (0.9, 0.99), "name": "RWKV", "scale": None}
    root.register_buffer("copy_mask", torch.tril(torch.ones(SPEC.ctx_len, SPEC.ctx_len)))
    for name, tensor in weights.items():
        *path, last = name.split(".")
        at = root
        for part in path:
            if not hasattr(at, part):
                at.add_module(part, script.Part())
            at = getattr(at, part)
        at.register_parameter(last, nn.Parameter(tensor))
    root.shift = nn.ZeroPad2d((0, 0, 1, -1))
    root.register_parameter("bias", None)
    return root


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_saved_module_is_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    script, weights = classes(), random_weights(SPEC)
    monkeypatch.setitem(sys.modules, "training_script", script)
    torch.save(as_module(weights, script), tmp_path / "m.pth", pickle_protocol=protocol)
    torch.save(weights, tmp_path / "plain.pth")
    monkeypatch.setitem(sys.modules, "training_script", None)  # importing it would now fail
    with pytest.raises(ImportError):
        torch.load(tmp_path / "m.pth", weights_only=False)
    model = open_model(tmp_path / "m.pth", "f32")
    assert model.spec == SPEC
    plain = open_model(tmp_path / "plain.pth", "f32")
    for name, array in plain.tensors.items():
        np.testing.assert_array_equal(model.tensors[name], array)


def test_prefixes_of_wrappers_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = classes()
    monkeypatch.setitem(sys.modules, "training_script", script)
    wrapper = script.Part()
    wrapper.module = as_module(random_weights(SPEC), script)
    torch.save(wrapper, tmp_path / "m.pth")
    assert open_model(tmp_path / "m.pth", "f32").spec == SPEC


def module(**maps: Any) -> SavedObject:
    return SavedObject("some Part", {f"_{name}": value for name, value in maps.items()})


def test_names_are_those_of_a_state_dict() -> None:
    inner = module(parameters={"weight": 1, "bias": None}, buffers={"mask": 2})
    root = module(modules={"a": inner, "b": module(modules={"0": inner}), "c": None})
    found = named_tensors(root)
    assert {name: value for name, value in found.items() if value} == {
        f"{place}.{name}": value
        for place in ("a", "b.0")
        for name, value in (("weight", 1), ("mask", 2))
    }
    assert named_tensors(SavedObject("x", {"_modules": [1], "_parameters": "no"})) == {}


def test_modules_without_end_are_refused() -> None:
    own = module(modules={})
    own.attributes["_modules"]["again"] = own
    doubled = module(parameters={"p": 1})
    for _ in range(60):
        doubled = module(modules={"a": doubled, "b": doubled})
    many = module(parameters={str(n): 1 for n in range(70_000)})
    long = module(parameters={"x" * 300: 1})
    for root in (own, doubled, many, long):
        with pytest.raises(ValueError, match="more parts"):
            named_tensors(root)


def test_a_module_without_end_in_a_file_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = classes()
    monkeypatch.setitem(sys.modules, "training_script", script)
    root = script.Part()
    root._modules["again"] = root
    torch.save(root, tmp_path / "m.pth")
    with pytest.raises(NotAModelError, match="more parts"):
        open_pth(tmp_path / "m.pth")
