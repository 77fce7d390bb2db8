"""Opening models by name: no file is in memory twice."""

import gc
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_chat.engine.library import LocalLibrary
from rwkv_chat.engine.model import Model
from rwkv_chat.paths import models_dir
from tests.tiny import model_file


def open_model(library: LocalLibrary, name: str) -> Model:
    return library.open(name, lambda step, fraction: None)


def as_found(path: Path) -> dict[str, Any]:
    return {}


def test_a_file_that_is_open_is_not_loaded_again_under_any_name() -> None:
    models_dir().mkdir(parents=True)
    (models_dir() / "mine.pth").symlink_to(model_file())
    library = LocalLibrary("f32", 1, as_found, {})
    first = open_model(library, "mine")
    assert open_model(library, "mine") is first
    assert open_model(library, str(model_file())) is first
    assert open_model(LocalLibrary("bf16", 1, as_found, {}), "mine") is not first


def test_a_file_with_another_epsilon_is_another_model() -> None:
    chosen: dict[str, Any] = {}
    library = LocalLibrary("f32", 1, lambda path: dict(chosen), {})
    first = open_model(library, str(model_file("5.2")))
    chosen["group_norm_eps"] = 1e-5
    second = open_model(library, str(model_file("5.2")))
    assert (first.spec.group_norm_eps, second.spec.group_norm_eps) == (64e-5, 1e-5)
    assert open_model(library, str(model_file("5.2"))) is second


def test_a_model_that_nobody_uses_is_let_go() -> None:
    library = LocalLibrary("f32", 1, as_found, {})
    model = weakref.ref(open_model(library, str(model_file())))
    gc.collect()
    assert model() is None
    assert open_model(library, str(model_file())).name == "tiny"


def test_another_content_is_another_model(tmp_path: Path) -> None:
    path = Path(shutil.copy(model_file(), tmp_path / "m.pth"))
    library = LocalLibrary("f32", 1, as_found, {})
    first = open_model(library, str(path))
    other = Path(shutil.copy(model_file("4"), tmp_path / "new.pth"))
    other.replace(path)
    second = open_model(library, str(path))
    assert (first.spec.generation, second.spec.generation) == ("7", "4")


def test_two_models_answer_beside_each_other() -> None:
    library = LocalLibrary("f32", 1, as_found, {})
    old, new = open_model(library, str(model_file("4"))), open_model(library, str(model_file()))
    alone = [model.read(b"Hello", None).logits for model in (old, new)]
    states = [model.read(b"Hel", None) for model in (old, new)]
    after = [model.read(b"lo", state) for model, state in zip((old, new), states, strict=True)]
    for expected, found in zip(alone, after, strict=True):
        np.testing.assert_array_equal(found.logits, expected)
