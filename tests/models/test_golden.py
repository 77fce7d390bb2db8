"""RWKV-1 to 4 against what the official code computes from seeded weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rwkv_chat.engine.reference import ReferenceBackend
from rwkv_chat.models.generations import GENERATIONS
from rwkv_chat.models.spec import ModelSpec
from tests.models.golden import CASES, FILE, ids, weights
from tests.seeded import turned

NAMES = sorted(CASES)


def backend(name: str, spec: ModelSpec | None = None) -> ReferenceBackend:
    shapes = CASES[name].parts.shapes(CASES[name].n_layer, CASES[name].sizes)
    tensors = {t: torch.from_numpy(array).reshape(shapes[t]) for t, array in weights(name).items()}
    return ReferenceBackend(spec or CASES[name], turned(tensors))


def stepped(model: ReferenceBackend, tokens: list[int]) -> np.ndarray:
    rows, state = [], None
    for token in tokens:
        row, state = model.forward([token], state)
        rows.append(row)
    return np.stack(rows)


def test_every_variant_without_an_official_package_is_here() -> None:
    old = {name for name, parts in GENERATIONS.items() if parts.family in {"1", "2", "2.5", "3"}}
    assert old <= set(CASES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["sequence", "steps"])
def test_equals_the_official_code(name: str, form: str) -> None:
    expected, tokens = np.load(FILE)[name], ids(CASES[name])
    assert len(expected) >= 16
    model = backend(name)
    if form == "steps":
        found = stepped(model, tokens)
    else:
        found = model._model.forward(tokens, model._model.new_state())[0].numpy()
    scale = np.abs(expected).max()
    assert scale > 0.5
    assert np.abs(found - expected).max() <= 1e-4 * scale


@pytest.mark.parametrize("name", ["2", "2, 1e-09", "2, 1e-08", "2.5", "2.5, 1e-16", "3, 0.001"])
def test_another_epsilon_is_not_what_the_official_code_computes(name: str) -> None:
    expected, spec = np.load(FILE)[name], CASES[name]
    for eps in {1e-16, 1e-9, 1e-8} - {spec.key_eps}:
        found = stepped(backend(name, replace(spec, key_eps=eps)), ids(spec))
        assert np.abs(found - expected).max() > 1e-4 * np.abs(expected).max()
