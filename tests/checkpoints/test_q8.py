"""8-bit weights: near what they were, whole in their files, and refused when damaged."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rwkv_chat import checkpoints
from rwkv_chat.checkpoints import safetensors as files
from rwkv_chat.checkpoints.convert import convert
from rwkv_chat.checkpoints.converted import open_model, verify
from rwkv_chat.checkpoints.layout import converted_shapes, is_read_by_row, is_vector
from rwkv_chat.checkpoints.plain import plain
from rwkv_chat.checkpoints.q8 import (
    SCALE,
    dequantize,
    pack_tiles,
    quantize,
    scale_shape,
    scales_of,
    tile_shape,
    unpack_tiles,
)
from rwkv_chat.errors import CheckpointError, MissingTensorError, ShapeError, TruncatedError
from rwkv_chat.models.generations import GENERATIONS
from tests.checkpoints.writers import as_rwkvpip
from tests.kernels.oracle import to_q8
from tests.seeded import converted_arrays, official, random_weights, small_spec, spec_of

SPEC = small_spec(n_layer=2, n_embd=48, head_size=16, n_ffn=150)
MATRICES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 18), st.sampled_from((1, 2, 33, 127, 128, 129, 257))),
    elements=st.floats(-(2.0**127), 2.0**127, width=32) | st.floats(-1, 1, width=32),
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.save(official(random_weights(SPEC)), tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


@given(values=MATRICES)
def test_every_weight_is_within_half_a_scale(values: np.ndarray) -> None:
    numbers, scales = quantize(values), scales_of(values)
    assert numbers.dtype == np.int8
    assert numbers.shape == values.shape
    assert scales.shape == scale_shape(values.shape)
    assert np.abs(numbers.astype(int)).max() <= 127
    wide = np.repeat(scales.astype(float), 128, axis=1)[:, : values.shape[1]]
    error = np.abs(numbers * wide - values.astype(float))
    # Half a scale, and what the scale itself was rounded by, 127 times.
    assert (error <= wide * (0.5 + 127 * 2.0**-23) + 127 * 2.0**-150).all()
    expected = (numbers * wide).astype(np.float32)
    assert np.array_equal(dequantize(numbers, scales, values.shape), expected)
    assert np.array_equal(dequantize(pack_tiles(numbers, scales), None, values.shape), expected)


@given(values=MATRICES)
def test_tiles_hold_scales_and_numbers_where_kernels_expect_them(values: np.ndarray) -> None:
    numbers, scales = quantize(values), scales_of(values)
    packed = pack_tiles(numbers, scales)
    assert (packed.dtype, packed.shape) == (np.int8, tile_shape(values.shape))
    tiles = packed.view(np.uint8).reshape(len(packed), -1)
    row, column = np.indices(values.shape)
    record = column // 128 * (16 * 4 + 16 * 128) + row % 16 * 4
    place = record + 16 * 4 + column % 128 // 4 * (16 * 4) + column % 4
    assert np.array_equal(tiles[row // 16, place], numbers.astype(int) + 128)
    scale = tiles[(row // 16)[..., None], record[..., None] + np.arange(4)]
    assert np.array_equal(scale.view("<f4")[..., 0], scales[row, column // 128])
    found = unpack_tiles(packed, values.shape)
    assert np.array_equal(found[0], numbers)
    assert np.array_equal(found[1], scales)


@given(values=MATRICES)
def test_it_is_what_the_oracle_of_the_kernels_makes(values: np.ndarray) -> None:
    numbers, scales = to_q8(values)
    assert np.array_equal(quantize(values), numbers)
    assert np.array_equal(scales_of(values), scales)


def test_outliers_spoil_only_their_own_group() -> None:
    values = np.random.default_rng(1).standard_normal((8, 384), dtype=np.float32)
    spoilt = values.copy()
    spoilt[:, 0] = 1e4
    for part, same in ((slice(0, 128), False), (slice(128, None), True)):
        assert np.array_equal(quantize(spoilt)[:, part], quantize(values)[:, part]) is same


@pytest.mark.parametrize("generation", sorted(GENERATIONS))
def test_matrices_are_int8_vectors_float32_and_stacks_bfloat16(
    tmp_path: Path, generation: str
) -> None:
    spec = spec_of(generation)
    weights = official(random_weights(spec))
    if "head_qk" in generation:
        weights["copy_mask"] = torch.ones(spec.ctx_len, spec.ctx_len)
    is_normed = generation.endswith("normed")
    torch.save(as_rwkvpip(weights) if is_normed else weights, tmp_path / "m.pth")
    model = open_model(tmp_path / "m.pth", "q8")
    assert (model.spec, model.weights) == (spec, "q8")
    kinds = set()
    for name, array in converted_arrays(spec).items():
        found = model.tensors[name]
        assert found.flags.aligned
        if is_vector(name):
            np.testing.assert_allclose(found, array, rtol=1e-6, atol=1e-6)  # a decay may be undone
        elif array.ndim > 2:
            assert found.dtype == np.uint16
        elif not is_read_by_row(name):
            assert np.array_equal(found, pack_tiles(quantize(array), scales_of(array)))
            assert name + SCALE not in model.tensors
        else:
            assert np.array_equal(found, quantize(array))
            assert np.array_equal(model.tensors[name + SCALE], scales_of(array))
        kinds.add(found.dtype.name)
    assert {"float32", "int8"} <= kinds
    assert plain(spec, model.tensors).keys() == converted_arrays(spec).keys()


def test_it_is_cached_and_verified_and_told_of(source: Path) -> None:
    made = open_model(source, "q8")
    told: list[float] = []
    again = open_model(source, "q8", lambda _, part: told.append(part))
    assert (again.path, again.fingerprint, told) == (made.path, made.fingerprint, [])
    verify(made.path)
    info = checkpoints.open(source)
    assert sum(array.nbytes for array in made.tensors.values()) == info.weights_bytes["q8"]
    assert info.weights_bytes["q8"] < info.weights_bytes["bf16"] < info.weights_bytes["f32"]
    assert checkpoints.open(made.path).dtype == "I8"
    assert open_model(made.path).weights == "q8"
    other = {open_model(source, weights).fingerprint for weights in ("f32", "bf16")}
    assert len({made.fingerprint, *other}) == 3


def test_a_converted_file_becomes_other_types(source: Path) -> None:
    made = open_model(source, "q8")
    wide = open_model(made.path, "f32")
    expected = plain(SPEC, made.tensors)
    assert wide.tensors.keys() == expected.keys()
    for name, array in expected.items():
        values = (array.astype(np.uint32) << 16).view("f4") if array.dtype == np.uint16 else array
        assert np.array_equal(wide.tensors[name], values), name
    with files.open_file(convert(made.path, "q8")) as file:
        for name, array in made.tensors.items():
            if array.dtype == np.int8:
                assert np.array_equal(file.array(name), array)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    weights = random_weights(SPEC)
    weights["blocks.1.ffn.value.weight"][3, 140] = value
    torch.save(official(weights), tmp_path / "m.pth")
    with pytest.raises(
        CheckpointError, match=r"tensor blocks\.1\.ffn\.value\.weight holds a value"
    ):
        open_model(tmp_path / "m.pth", "q8")


def test_a_flipped_bit_of_a_number_or_a_scale_is_noticed(source: Path, tmp_path: Path) -> None:
    made = open_model(source, "q8")
    data = made.path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    with files.open_file(made.path) as file:
        places = [
            start + file.tensors[name].start for name in ("head.weight", "emb.weight" + SCALE)
        ]
    for place in places:
        bad = bytearray(data)
        bad[place] ^= 1
        path = tmp_path / f"{place}.safetensors"
        path.write_bytes(bad)
        with pytest.raises(TruncatedError, match="do not match their fingerprint"):
            open_model(path)


def test_a_file_without_scales_or_with_other_ones_is_refused(source: Path, tmp_path: Path) -> None:
    made = open_model(source, "q8")
    name = "blocks.0.ffn.value.weight" + SCALE
    with files.open_file(made.path) as file:
        metadata, tensors = dict(file.metadata), {n: file.array(n) for n in file.tensors}
        path = tmp_path / "bad.safetensors"
        files.write(path, {n: a for n, a in tensors.items() if n != name}, metadata)
        with pytest.raises(MissingTensorError, match=f"lacks the tensor {name}"):
            open_model(path)
        for wrong in (tensors[name][:-1], tensors[name].astype(np.float16)):
            files.write(path, {**tensors, name: wrong}, metadata)
            with pytest.raises(ShapeError, match=f"tensor {name} is .* should be F32"):
                open_model(path)


def test_every_tensor_is_aligned_to_its_type() -> None:
    sizes = {"F32": 4, "BF16": 2, "I8": 1}
    for generation in GENERATIONS:
        start = 0
        for dtype, shape in converted_shapes(spec_of(generation), "q8").values():
            assert start % sizes[dtype] == 0
            start += sizes[dtype] * int(np.prod(shape))
