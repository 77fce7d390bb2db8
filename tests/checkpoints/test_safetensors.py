import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_chat.checkpoints.safetensors import _NESTING, open_file, write, write_stream
from rwkv_chat.errors import CheckpointError, NotAModelError, ShapeError, TruncatedError


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def raw(path: Path, header: object, payload: bytes = bytes(8)) -> Path:
    """A file of this header, which is text or becomes JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + payload)
    return path


def test_reads_what_the_official_library_writes(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "c": torch.tensor([[0.5]], dtype=torch.float16),
    }
    safetensors.torch.save_file(tensors, tmp_path / "m.safetensors", {"who": "me"})
    with open_file(tmp_path / "m.safetensors") as file:
        assert file.metadata == {"who": "me"}
        assert {n: (t.dtype, t.shape) for n, t in file.tensors.items()} == {
            "a": ("F32", (2, 3)),
            "b": ("BF16", (2,)),
            "c": ("F16", (1, 1)),
        }
        assert np.array_equal(file.array("a"), tensors["a"].numpy())
        assert np.array_equal(file.array("b"), tensors["b"].view(torch.int16).numpy().view("u2"))
        assert np.array_equal(file.array("c"), tensors["c"].numpy())


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=5),
    kind=st.sampled_from(["f4", "f2", "u2", "u1", "i8"]),
    metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3),
)
def test_the_official_library_reads_what_is_written(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[list[int]],
    kind: str,
    metadata: dict[str, str],
) -> None:
    path = tmp_path_factory.mktemp("w") / "m.safetensors"
    numbers = np.random.default_rng(3)
    arrays = {f"t{i}": numbers.integers(0, 99, s).astype(kind) for i, s in enumerate(shapes)}
    digest = write(path, arrays, metadata, digest_key="sum")
    found = safetensors.torch.load_file(path)
    for name, array in arrays.items():
        same = found[name].view(torch.int16) if kind == "u2" else found[name]
        assert np.array_equal(same.numpy(), array.view("i2") if kind == "u2" else array)
    with open_file(path) as file:
        assert dict(file.metadata) == {**metadata, "sum": digest}
        assert file.payload_sha256() == digest
        assert all(np.array_equal(file.array(name), array) for name, array in arrays.items())
        size = int.from_bytes(path.read_bytes()[:8], "little")
        assert (size + 8) % 64 == 0


def test_arrays_cannot_be_written_to_and_outlive_the_file(tmp_path: Path) -> None:
    write(tmp_path / "m", {"a": np.ones(4, np.float32)}, {})
    with open_file(tmp_path / "m") as file:
        array = file.array("a")
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2
    assert array.sum() == 4
    with pytest.raises(CheckpointError, match="closed"):
        file.array("a")


def test_a_file_is_private_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write(path, {"a": np.ones(4, np.float32)}, {})
    with open_file(path) as old:
        before = old.array("a")
        write(path, {"a": np.zeros(4, np.float32)}, {})
        assert before.sum() == 4
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write(path, {"a": np.ones(4, np.float32)}, {})
    before = path.read_bytes()

    def arrays() -> Any:
        yield np.zeros(4, np.float32)
        raise RuntimeError("cancelled")

    plan = [("a", "F32", (4,)), ("b", "F32", (4,))]
    with pytest.raises(RuntimeError, match="cancelled"):
        write_stream(path, plan, arrays(), {})
    with pytest.raises(ValueError, match="b is"):
        write_stream(path, plan, [np.zeros(4, np.float32), np.zeros(5, np.float32)], {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


OVER = {"a": entry(), "b": entry(offsets=(4, 12))}
HOLE = {"a": entry(), "b": entry(offsets=(12, 20))}
REFUSED: list[tuple[object, type[CheckpointError], str]] = [
    (b'{"a":1', NotAModelError, "header cannot be read"),
    (b"[1, 2]", NotAModelError, "header is not a map"),
    (b"\xff\xfe{}", NotAModelError, "header cannot be read"),
    (b'{"a":NaN}', NotAModelError, "NaN is not a number"),
    (b'{"a":{},"a":{}}', NotAModelError, "a name occurs twice"),
    (b'{"a":{"dtype":"F32","dtype":"F16"}}', NotAModelError, "a name occurs twice"),
    (b"[" * 100_000, NotAModelError, "too nested"),
    (b'{"a":' * 50_000, NotAModelError, "too nested"),
    (b'{"' + b'\\"[' * 100, NotAModelError, "header cannot be read"),
    ({"__metadata__": {"a": 1}}, NotAModelError, "metadata is not a map of strings"),
    ({"__metadata__": []}, NotAModelError, "metadata is not a map of strings"),
    ({"../a": entry()}, NotAModelError, "forbidden name"),
    ({"/a": entry()}, NotAModelError, "forbidden name"),
    ({"a\x1b[31m": entry()}, NotAModelError, "forbidden name"),
    ({"a\\b": entry()}, NotAModelError, "forbidden name"),
    ({"": entry()}, NotAModelError, "forbidden name"),
    ({"a" * 300: entry()}, NotAModelError, "forbidden name"),
    ({"ä": entry()}, NotAModelError, "forbidden name"),
    ({"a": {"dtype": "F32"}}, NotAModelError, "entry of tensor a is not complete"),
    ({"a": {**entry(), "more": 1}}, NotAModelError, "entry of tensor a is not complete"),
    ({"a": 5}, NotAModelError, "entry of tensor a is not complete"),
    ({"a": entry("F64")}, ShapeError, "type 'F64', which is not supported"),
    ({"a": {**entry(), "dtype": 5}}, ShapeError, "type '5', which is not supported"),
    ({"a": entry(shape=(0, 2))}, ShapeError, "impossible shape"),
    ({"a": entry(shape=(-2,))}, ShapeError, "impossible shape"),
    ({"a": entry(shape=(1, 1, 1, 1, 2))}, ShapeError, "impossible shape"),
    ({"a": entry(shape=(2**31,))}, ShapeError, "impossible shape"),
    ({"a": entry(shape=(True, 2))}, ShapeError, "impossible shape"),
    ({"a": entry(shape=(2.0,))}, ShapeError, "impossible shape"),
    ({"a": {**entry(), "shape": "2"}}, ShapeError, "impossible shape"),
    ({"a": entry(offsets=(0,))}, NotAModelError, "no valid place"),
    ({"a": entry(offsets=(0, 8, 9))}, NotAModelError, "no valid place"),
    ({"a": entry(offsets=(0, "8"))}, NotAModelError, "no valid place"),
    ({"a": entry(offsets=(-8, 0))}, TruncatedError, "does not fit its shape"),
    ({"a": entry(offsets=(0, 4))}, TruncatedError, "does not fit its shape"),
    ({"a": entry(offsets=(8, 16))}, TruncatedError, "tensor a leaves a hole"),
    (OVER, TruncatedError, "tensor b overlaps another"),
    (HOLE, TruncatedError, "tensor b leaves a hole"),
    ({"a": entry(shape=(4,), offsets=(0, 16))}, TruncatedError, "ends too early"),
    ({}, TruncatedError, "bytes that belong to no tensor"),
]


@pytest.mark.parametrize(("header", "kind", "reason"), REFUSED, ids=range(len(REFUSED)))
def test_refuses_with_a_sentence(
    tmp_path: Path, header: object, kind: type[CheckpointError], reason: str
) -> None:
    path = raw(tmp_path / "bad.safetensors", header)
    with pytest.raises(kind, match=reason) as caught:
        open_file(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.endswith(".")
    assert message.isprintable()


def test_refuses_what_is_no_such_file(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with pytest.raises(CheckpointError, match="There is no file"):
        open_file(path)
    with pytest.raises(CheckpointError):
        open_file(Path("a\0b"))
    with pytest.raises(NotAModelError, match="not a regular file"):
        open_file(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotAModelError, match="not a regular file"):
        open_file(tmp_path / "pipe")
    path.write_bytes(b"")
    with pytest.raises(TruncatedError, match="is empty"):
        open_file(path)
    path.write_bytes(b"short")
    with pytest.raises(NotAModelError, match="only 5 bytes"):
        open_file(path)
    path.write_bytes(b"\xff" * 8 + b"{}")
    with pytest.raises(NotAModelError, match="no header size"):
        open_file(path)
    path.write_bytes((1000).to_bytes(8, "little") + b"{}")
    with pytest.raises(TruncatedError, match="ends inside its header"):
        open_file(path)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write(path, {"a": np.ones(5, np.float32), "b": np.ones((2, 3), np.float16)}, {"k": "v"})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            open_file(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(TruncatedError, match="belong to no tensor"):
        open_file(path)


@pytest.mark.parametrize("end", [b"", b"\\", b"a"])
def test_an_unclosed_string_is_looked_at_once(end: bytes) -> None:
    text = b'"' + b'\\"' * 5000 + end
    assert [match.span() for match in _NESTING.finditer(text)] == [(0, len(text))]


def test_a_huge_sparse_file_is_refused_at_once(tmp_path: Path) -> None:
    path = raw(tmp_path / "m", {"a": entry(shape=(3,), offsets=(0, 12))}, b"")
    os.truncate(path, 100_000_000_000)
    with pytest.raises(TruncatedError, match="belong to no tensor"):
        open_file(path)
