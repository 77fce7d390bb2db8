"""Files of rwkv.cpp, written byte by byte: the same models come out of them."""

import struct
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from rwkv_chat import checkpoints
from rwkv_chat.checkpoints.converted import open_model
from rwkv_chat.checkpoints.reading import open_checkpoint
from rwkv_chat.engine.select import load_model
from rwkv_chat.errors import (
    CheckpointError,
    NotAModelError,
    ShapeError,
    TruncatedError,
    UnsupportedModelError,
)
from tests.ggml_files import Kind, quantised, write_rwkvcpp
from tests.seeded import official, random_weights, shared_model, spec_of, turned

GENERATIONS = ("4", "5.0", "5.1", "5.2", "6", "7", "7a")
COMPUTED = "att.time_decay"


def expected(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Compare the model in `path` with official weights: equal, but for decays and rounding."""
    model = open_model(path, "f32")
    arrays = turned(weights)
    assert model.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        if name.endswith(COMPUTED):
            np.testing.assert_allclose(model.tensors[name], array, rtol=1e-5, atol=2e-6)
        else:
            assert np.array_equal(model.tensors[name], array), name


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("version", [100, 101])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_what_was_computed_in_advance_is_undone(
    generation: str, version: int, wide: bool, tmp_path: Path
) -> None:
    weights = random_weights(spec_of(generation, n_layer=3))
    given = official(weights) if wide else weights
    path = write_rwkvcpp(tmp_path / "m.bin", given, version=version)
    assert open_model(path, "f32").spec == spec_of(generation, n_layer=3)
    expected(weights, path)


def test_a_bonus_given_as_its_logarithm_is_its_exponential(tmp_path: Path) -> None:
    weights = random_weights(spec_of("5.0"))
    old = {name.replace("time_faaaa", "time_first"): t for name, t in weights.items()}
    model = open_model(write_rwkvcpp(tmp_path / "m.bin", old), "f32")
    name = "blocks.1.att.time_faaaa"
    assert np.array_equal(model.tensors[name], np.exp(weights[name].numpy()))


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_logits_are_those_of_the_source(generation: str, tmp_path: Path) -> None:
    spec, ids = spec_of(generation, vocab_size=256), [3, 1, 4, 1, 5]
    weights = random_weights(spec)
    torch.save(official(weights), tmp_path / "m.pth")
    source, _ = load_model(tmp_path / "m.pth", threads=1).forward(ids)
    path = write_rwkvcpp(tmp_path / "m.bin", official(weights))
    logits, _ = load_model(path, threads=1).forward(ids)
    np.testing.assert_allclose(logits, source, rtol=0, atol=1e-6 * float(np.abs(source).max()))


@pytest.mark.parametrize(
    ("generation", "name"), [("4", "4v0-660K"), ("5.2", "5v2-730K"), ("7", "7v0-834K")]
)
def test_trained_models_give_their_published_logits(
    generation: str, name: str, tmp_path: Path
) -> None:
    weights = torch.load(shared_model(f"tiny-rwkv-{name}.pth"), weights_only=True)
    logits = np.load(shared_model(f"expected-logits-{name}.npy"))
    path = write_rwkvcpp(tmp_path / "m.bin", weights)
    model = load_model(path, threads=1, group_norm_eps=1e-5 if generation == "5.2" else None)
    assert model.spec.generation == generation
    found, _ = model.forward(list(b'"in'))
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-5)


QUANTISED = (Kind.F16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q4_K, Kind.Q6_K)


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_quantised_weights_are_exactly_what_they_stand_for(kind: Kind, tmp_path: Path) -> None:
    spec = spec_of("7", n_embd=256, head_size=64, n_ffn=512)
    weights = random_weights(spec)
    path = write_rwkvcpp(tmp_path / "m.bin", official(weights), kind)
    model = open_model(path, "f32")
    assert checkpoints.open(path).dtype == ("F16" if kind == Kind.F16 else "F32")
    for name in ("blocks.0.att.key.weight", "blocks.1.ffn.value.weight"):
        array = weights[name].numpy()
        wanted = gguf.quants.dequantize(quantised(array, kind), kind)
        wanted = wanted.T if "value" in name else wanted
        assert np.array_equal(model.tensors[name], wanted), name
        assert not np.array_equal(wanted, array.T if "value" in name else array)
    for name in ("blocks.0.att.r_k", "blocks.1.ffn.x_k", "blocks.1.ln1.weight"):
        assert np.array_equal(model.tensors[name], weights[name].numpy())


@pytest.mark.parametrize(
    ("value", "wanted"), [(1.0, 1.0), (0.0, 0.0), (1 - 2.0**-24, 1 - 2.0**-24), (0.5, 0.5)]
)
def test_rounded_decays_of_rwkv_5_stay_what_they_are(
    value: float, wanted: float, tmp_path: Path
) -> None:
    path = with_decay(tmp_path, "5.2", value)
    decay = open_model(path, "f32").tensors["blocks.1.att.time_decay"]
    np.testing.assert_allclose(np.exp(-np.exp(decay))[0, 0], np.float32(wanted), rtol=1e-7)


@pytest.mark.parametrize(
    ("generation", "value"),
    [("5.2", 1.5), ("5.2", -0.1), ("5.2", np.nan), ("5.2", np.inf), ("4", 0.5), ("4", np.nan)],
)
def test_decays_that_nothing_was_computed_from_are_refused(
    generation: str, value: float, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"blocks\.1\.att\.time_decay holds a value that is"):
        open_model(with_decay(tmp_path, generation, value), "f32")


def test_decays_of_rwkv_4_that_underflowed_are_usable(tmp_path: Path) -> None:
    decay = open_model(with_decay(tmp_path, "4", -0.0), "f32").tensors["blocks.1.att.time_decay"]
    assert np.exp(-np.exp(decay[0])) == 1


def with_decay(folder: Path, generation: str, value: float) -> Path:
    """A file whose first stored decay of layer 1 is `value`."""
    path = write_rwkvcpp(folder / "m.bin", random_weights(spec_of(generation)))
    data = bytearray(path.read_bytes())
    name = b"blocks.1.att.time_decay"
    start = data.index(name) + len(name)
    data[start : start + 4] = struct.pack("<f", value)
    path.write_bytes(data)
    return path


def test_models_of_before_may_2023_are_refused_when_quantised(tmp_path: Path) -> None:
    weights = random_weights(spec_of("4"))
    path = write_rwkvcpp(tmp_path / "m.bin", weights, Kind.Q4_0, version=100)
    with pytest.raises(
        UnsupportedModelError, match=r"before rwkv\.cpp changed its Q4_0 in May 2023"
    ):
        open_checkpoint(path)
    path = write_rwkvcpp(tmp_path / "m.bin", weights, Kind.F16, version=100)
    assert open_model(path, "f32").spec == spec_of("4")


def header(version: int = 101, rows: int = 1, width: int = 1, layers: int = 0) -> bytes:
    return b"fmgg" + struct.pack("<5i", version, rows, width, layers, 0)


def tensor(name: bytes, shape: tuple[int, ...], code: int = 0, room: int = 4) -> bytes:
    sizes = struct.pack(f"<3i{len(shape)}i", len(shape), len(name), code, *shape[::-1])
    return sizes + name + bytes(room)


HOSTILE = {
    "the magic alone": (b"fmgg", TruncatedError, "inside its header"),
    "version 99": (header(99), UnsupportedModelError, "version 99"),
    "big endian": (b"ggmf" + bytes(30), UnsupportedModelError, "big-endian"),
    "a cut description": (header() + bytes(11), TruncatedError, "inside the description"),
    "no dimensions": (header() + bytes(12), NotAModelError, "at byte 24 is no description"),
    "2**31 - 1 dimensions": (
        header() + struct.pack("<3i", 2**31 - 1, 1, 0),
        NotAModelError,
        "no description",
    ),
    "a name of -1 bytes": (header() + struct.pack("<3i", 1, -1, 0), NotAModelError, "no descr"),
    "a name that is cut": (
        header() + struct.pack("<4i", 1, 200, 0, 1),
        TruncatedError,
        "inside the description",
    ),
    "a name of codes": (header() + tensor(b"\x1b[2J", (1,)), NotAModelError, "forbidden name"),
    "a size of -1": (header() + tensor(b"a", (-1,)), ShapeError, "impossible shape"),
    "a size of 0": (header() + tensor(b"a", (4, 0)), ShapeError, "impossible shape"),
    "a huge tensor": (header() + tensor(b"a", (2**31 - 1,) * 4), TruncatedError, "inside the ten"),
    "a tensor twice": (header() + 2 * tensor(b"a", (1,)), NotAModelError, "tensor a twice"),
    "a removed type": (header() + tensor(b"a", (1,), 4), UnsupportedModelError, "type number 4"),
    "an unknown type": (header() + tensor(b"a", (1,), 99), UnsupportedModelError, "number 99"),
    "broken blocks": (header() + tensor(b"a", (31,), 2), ShapeError, "no whole blocks of Q4_0"),
    "another embedding": (
        header() + tensor(b"emb.weight", (1, 2), room=8),
        ShapeError,
        r"0 layers and \[1, 2\]",
    ),
    "other layers": (header() + tensor(b"blocks.0.a", (1,)), ShapeError, "it has 1 layers"),
    "five in one": (
        header(layers=1) + tensor(b"blocks.0.att.x_rwkvag", (5,), room=20),
        ShapeError,
        "is not 6 vectors",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(case: str, tmp_path: Path) -> None:
    data, error, reason = HOSTILE[case]
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(error, match=reason) as caught:
        open_checkpoint(tmp_path / "m")
    assert str(caught.value).isprintable()


def test_a_file_without_its_last_tensors_is_refused(tmp_path: Path) -> None:
    spec = replace(spec_of("7"), n_layer=2)
    path = write_rwkvcpp(tmp_path / "m.bin", random_weights(spec))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"head.weight") - 20])
    with pytest.raises(CheckpointError, match=r"lacks the tensor head\.weight"):
        checkpoints.open(path)
