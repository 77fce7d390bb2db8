"""4-bit weights: near what they were, in both layouts, whole in their files, and policy kept."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rwkv_chat import checkpoints
from rwkv_chat.checkpoints.convert import convert
from rwkv_chat.checkpoints.converted import open_model, verify
from rwkv_chat.checkpoints.plain import plain
from rwkv_chat.checkpoints.q4 import (
    pack_rows,
    pack_tiles,
    quantize,
    row_shape,
    tile_shape,
    unpack,
)
from rwkv_chat.errors import CheckpointError
from rwkv_chat.models.generations import GENERATIONS
from tests.checkpoints.writers import as_rwkvpip
from tests.seeded import converted_arrays, official, random_weights, small_spec, spec_of

SPEC = small_spec(n_layer=2, n_embd=48, head_size=16, n_ffn=150)
MATRICES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 35), st.sampled_from((1, 2, 63, 64, 65, 128, 129, 200))),
    elements=st.floats(-(2.0**60), 2.0**60, width=32) | st.floats(-1, 1, width=32),
)
PROJECTIONS = ("receptance", "key", "value", "output", "gate")


@given(values=MATRICES)
def test_every_weight_is_near_and_both_layouts_hold_the_same(values: np.ndarray) -> None:
    groups = quantize(values)
    tiles, rows = pack_tiles(groups), pack_rows(groups)
    assert (tiles.dtype, tiles.shape) == (np.uint8, tile_shape(values.shape))
    assert (rows.dtype, rows.shape) == (np.uint8, row_shape(values.shape))
    found = unpack(tiles, values.shape)
    assert np.array_equal(found, unpack(rows, values.shape))
    for first in range(0, values.shape[1], 64):
        part = values[:, first : first + 64].astype(float)
        low, high = part.min(axis=1), part.max(axis=1)
        # Half a step of the whole range, or of a narrower one with a smaller error; and what
        # bfloat16 takes from the offset.
        error = np.sqrt(np.square(found[:, first : first + 64] - part).mean(axis=1))
        bound = (high - low) / 15 + np.maximum(abs(low), abs(high)) * 2.0**-7
        assert (error <= bound + 1e-37).all()


def test_normal_weights_lose_a_twelfth() -> None:
    values = np.random.default_rng(1).standard_normal((64, 768), dtype=np.float32)
    error = unpack(pack_tiles(quantize(values)), values.shape) - values
    assert np.sqrt(np.square(error).mean()) < 0.09


def test_equal_weights_stay() -> None:
    for value in (0.0, 0.5, -2.0):
        values = np.full((3, 70), value, np.float32)
        assert np.array_equal(unpack(pack_rows(quantize(values)), values.shape), values)


@pytest.mark.parametrize("generation", sorted(GENERATIONS))
def test_only_projections_of_layers_have_4_bits(tmp_path: Path, generation: str) -> None:
    spec = spec_of(generation)
    weights = official(random_weights(spec))
    if "head_qk" in generation:
        weights["copy_mask"] = torch.ones(spec.ctx_len, spec.ctx_len)
    is_normed = generation.endswith("normed")
    torch.save(as_rwkvpip(weights) if is_normed else weights, tmp_path / "m.pth")
    narrow, wider = open_model(tmp_path / "m.pth", "q4"), open_model(tmp_path / "m.pth", "q8")
    packed = {name for name, array in narrow.tensors.items() if array.dtype == np.uint8}
    assert bool(packed) == (not generation.startswith("1"))  # that has other matrices
    for name, array in narrow.tensors.items():
        if name in packed:
            _, _, module, projection, _ = name.split(".")
            assert module in ("att", "ffn")
            assert projection in PROJECTIONS
            assert array.ndim == (2 if ".ffn.value." in name else 3)
        else:
            assert np.array_equal(array, wider.tensors[name])
    exact = converted_arrays(spec)
    values = plain(spec, narrow.tensors)
    assert values.keys() == exact.keys()
    for name in packed:
        assert np.abs(values[name] - exact[name]).max() < 0.2 * np.abs(exact[name]).max()


def test_a_file_is_cached_verified_and_becomes_other_types(tmp_path: Path) -> None:
    torch.save(official(random_weights(SPEC)), tmp_path / "tiny.pth")
    made = open_model(tmp_path / "tiny.pth", "q4")
    verify(made.path)
    info = checkpoints.open(tmp_path / "tiny.pth")
    assert sum(array.nbytes for array in made.tensors.values()) == info.weights_bytes["q4"]
    assert checkpoints.open(made.path).dtype == "U8"
    assert open_model(made.path).weights == "q4"
    assert convert(made.path, "q4") != made.path
    wide = open_model(made.path, "f32")
    for name, values in plain(SPEC, made.tensors).items():
        assert np.array_equal(wide.tensors[name], values), name


def test_a_weight_too_large_for_its_group_is_refused(tmp_path: Path) -> None:
    weights = random_weights(SPEC)
    weights["blocks.1.att.key.weight"][3, :2] = torch.tensor([3.3e38, -3.3e38])
    torch.save(official(weights), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.att\.key\.weight.*too large"):
        open_model(tmp_path / "m.pth", "q4")
