"""What is checked of a tensor before it is believed, and the vocabulary that GGUF files carry."""

from dataclasses import replace
from math import prod
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_chat.checkpoints.ggml import (
    GgmlFile,
    GgmlTensor,
    Stored,
    check_stored,
    check_tiling,
    number_of,
    parts_of,
    turned,
)
from rwkv_chat.checkpoints.gguf_header import Header
from rwkv_chat.checkpoints.gguf_vocabulary import describe_vocabulary
from rwkv_chat.errors import CheckpointError, TruncatedError
from rwkv_chat.tokenizer.parse import parse
from tests.ggml_files import escaped

PATH = Path("m.gguf")
CODES = (0, 1, 30, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23)
BYTES = [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize("code", CODES)
def test_the_types_have_the_sizes_of_the_official_package(code: int) -> None:
    number = number_of(PATH, "a", code)
    kind = gguf.GGMLQuantizationType(code)
    assert (number.values, number.nbytes) == gguf.GGML_QUANT_SIZES[kind]
    assert number.name == kind.name


@given(
    st.sampled_from(CODES),
    st.lists(st.integers(-(2**63), 2**64), max_size=5) | st.lists(st.integers(0, 600), max_size=5),
    st.integers(0, 2**64) | st.integers(0, 5000),
    st.integers(0, 10_000),
)
def test_a_tensor_lies_inside_the_file_or_is_refused(
    code: int, shape: list[int], start: int, size: int
) -> None:
    number = number_of(PATH, "a", code)
    tensor = Stored("a", number, tuple(shape), start)
    try:
        check_stored(PATH, tensor, size)
    except CheckpointError:
        return
    assert 0 <= start < tensor.end <= size
    assert tensor.nbytes * number.values == prod(shape) * number.nbytes


@given(
    st.lists(st.integers(1, 20), max_size=6),
    st.sampled_from([1, 4, 32]),
    st.lists(st.integers(-40, 40), min_size=7, max_size=7),
)
def test_tensors_fill_the_file_or_are_refused(
    sizes: list[int], alignment: int, shifts: list[int]
) -> None:
    number = number_of(PATH, "a", 0)
    tensors, at = [], 96
    for size in sizes:
        tensors.append(Stored(f"t{at}", number, (size,), at))
        at = -(-tensors[-1].end // alignment) * alignment
    last = tensors[-1].end if tensors else at
    for end in {last, at}:
        check_tiling(PATH, tensors, 96, end, alignment)
    with pytest.raises(TruncatedError, match="1 bytes follow its last tensor"):
        check_tiling(PATH, tensors, 96, at + 1, alignment)
    moved = [replace(t, start=t.start + by) for t, by in zip(tensors, shifts, strict=False)]
    if moved != tensors:
        with pytest.raises(TruncatedError, match=r"overlaps another|does not follow another"):
            check_tiling(PATH, moved, 96, at, alignment)


def test_tensors_come_out_in_their_official_shape_and_read_only() -> None:
    data = np.arange(12, dtype="<f4")
    stored = Stored("a", number_of(PATH, "a", 0), (2, 2, 3), 0)
    parts = dict(parts_of(PATH, stored, ["x", "y", "z"]))
    tensors = {"turned": GgmlTensor(stored, (2, 3, 2), turned), **parts}
    file = GgmlFile(PATH, {}, tensors, data.view(np.uint8))
    assert np.array_equal(file.array("turned"), data.reshape(2, 2, 3).swapaxes(1, 2))
    assert file.array("y").tolist() == [4, 5, 6, 7]
    assert not any(file.array(name).flags.writeable for name in tensors)


@given(st.lists(st.binary(min_size=1, max_size=8), unique=True))
def test_every_token_comes_back_from_its_escapes(more: list[bytes]) -> None:
    tokens = list(dict.fromkeys([*BYTES, *more]))
    values = {
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.tokens": [b"<s>", *escaped(tokens), b"[PAD]", b"[PAD]"],
        "tokenizer.ggml.token_type": [3, *[1] * len(tokens), 5, 5],
    }
    told = describe_vocabulary(PATH, Header(values, {}), 1000)
    assert told["tokenizer"] == "inside"
    assert parse(told["vocabulary"].encode(), "x") == [b"", *tokens]
    values["tokenizer.ggml.tokens"] = escaped(BYTES)
    assert describe_vocabulary(PATH, Header(values, {}), 1000) == {"tokenizer": "bytes"}
