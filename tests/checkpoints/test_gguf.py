"""GGUF files, written by the official package: the same models come out of them."""

import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from rwkv_chat import checkpoints
from rwkv_chat.checkpoints.converted import open_model
from rwkv_chat.checkpoints.files import map_file
from rwkv_chat.checkpoints.gguf_header import read_header
from rwkv_chat.checkpoints.reading import open_checkpoint
from rwkv_chat.checkpoints.source import read_source
from rwkv_chat.commands.memory import peak_memory, reset_peak_memory
from rwkv_chat.engine.select import load_model
from rwkv_chat.errors import (
    CheckpointError,
    MissingTensorError,
    NotAModelError,
    ShapeError,
    TokenizerError,
    TruncatedError,
    UnsupportedModelError,
)
from rwkv_chat.tokenizer.vocabulary import Vocabulary
from rwkv_chat.tokenizer.world import world_tokens
from tests.ggml_files import READ_ONLY, Kind, quantised, write_gguf
from tests.seeded import official, random_weights, small_spec, spec_of, turned

SPECS = {"6": spec_of("6", n_layer=3), "7": small_spec(n_layer=3)}
WIDE = {
    "6": spec_of("6", n_embd=256, head_size=64, n_ffn=512, rank_w=32, rank_mix=32),
    "7": small_spec(n_embd=256, head_size=64, ranks=(32, 32, 32, 64)),
}
BYTES = [bytes([byte]) for byte in range(256)]


@pytest.fixture(params=["6", "7"])
def generation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("wide", [True, False])
def test_float32_comes_back_exactly(generation: str, wide: bool, tmp_path: Path) -> None:
    spec = SPECS[generation]
    weights = random_weights(spec)
    path = write_gguf(tmp_path / "m.gguf", official(weights) if wide else weights, spec)
    model = open_model(path, "f32")
    assert model.spec == spec
    assert model.tensors.keys() == turned(weights).keys()
    for name, array in turned(weights).items():
        assert np.array_equal(model.tensors[name], array), name


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("rescale", [1, 2, 6])
def test_what_rwkv_6_was_divided_by_is_undone(fused: bool, rescale: int, tmp_path: Path) -> None:
    weights = random_weights(SPECS["6"])
    path = tmp_path / "m.gguf"
    write_gguf(path, weights, SPECS["6"], rescale=rescale, fused=fused)
    model = open_model(path, "f32")
    for name, array in turned(weights).items():
        assert np.array_equal(model.tensors[name], array), name


def read_back(weights: dict[str, torch.Tensor], kind: Kind) -> dict[str, torch.Tensor]:
    """The weights after a way through a number type, where the writer uses it."""
    low_rank = {f"att.{part}{side}" for part in "wavg" for side in "12"}
    low_rank |= {f"att.time_decay_w{side}" for side in "12"} | {"att.time_maa_w1"}

    def through(name: str, tensor: torch.Tensor) -> torch.Tensor:
        array, inner = tensor.numpy(), name.split(".", 2)[-1]
        if array.ndim != 2 or name.endswith(("r_k", "time_faaaa")):
            return tensor
        array = array.T.copy() if inner in low_rank else array
        if array.shape[1] % gguf.GGML_QUANT_SIZES[kind][0]:
            array = array.astype(np.float16).astype(np.float32)
        else:
            array = gguf.quants.dequantize(quantised(array, kind), kind)
        return torch.from_numpy(array.T.copy() if inner in low_rank else array)

    return {name: through(name, tensor) for name, tensor in weights.items()}


WRITTEN = (Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1)


@pytest.mark.parametrize("kind", [*WRITTEN, *READ_ONLY], ids=lambda kind: kind.name)
def test_quantised_weights_are_exactly_what_they_stand_for(
    generation: str, kind: Kind, tmp_path: Path
) -> None:
    spec = WIDE[generation]
    weights = random_weights(spec)
    expected = turned(read_back(weights, kind))
    model = open_model(write_gguf(tmp_path / "m.gguf", weights, spec, kind), "f32")
    for name, array in expected.items():
        assert np.array_equal(model.tensors[name], array), name
    changed = {name for name, array in turned(weights).items() if (array != expected[name]).any()}
    assert {"emb.weight", "blocks.1.att.key.weight", "head.weight"} <= changed


def test_bfloat16_files_open_as_bfloat16(tmp_path: Path) -> None:
    weights = random_weights(WIDE["7"])
    path = write_gguf(tmp_path / "m.gguf", weights, WIDE["7"], Kind.BF16)
    assert checkpoints.open(path).dtype == "BF16"
    model = open_model(path)
    assert model.weights == "bf16"
    head = weights["head.weight"].bfloat16().view(torch.int16).numpy().view("u2")
    assert np.array_equal(model.tensors["head.weight"], head)


def test_the_logits_are_those_of_the_source(generation: str, tmp_path: Path) -> None:
    spec, ids = replace(WIDE[generation], vocab_size=256), [3, 1, 4, 1, 5]
    weights = random_weights(spec)
    torch.save(official(weights), tmp_path / "m.pth")
    source, _ = load_model(tmp_path / "m.pth", threads=1).forward(ids)
    errors = {}
    for kind in (Kind.F32, Kind.F16, Kind.Q8_0, Kind.Q4_0):
        path = write_gguf(tmp_path / f"{kind.name}.gguf", weights, spec, kind)
        logits, _ = load_model(path, threads=1).forward(ids)
        errors[kind] = float(np.abs(logits - source).max() / source.std())
    assert errors[Kind.F32] == 0
    assert 0 < errors[Kind.F16] < errors[Kind.Q8_0] < errors[Kind.Q4_0]
    assert errors[Kind.F16] < 0.01
    assert errors[Kind.Q8_0] < 0.1


@pytest.mark.filterwarnings("ignore:overflow")
def test_infinite_scales_are_refused(tmp_path: Path) -> None:
    spec = WIDE["7"]
    weights = random_weights(spec)
    weights["head.weight"][0, 0] = 1e9
    path = write_gguf(tmp_path / "m.gguf", weights, spec, Kind.Q8_0)
    with pytest.raises(CheckpointError, match=r"head\.weight holds a value that is not finite"):
        open_model(path, "f32")


def with_tokens(
    folder: Path, tokens: Sequence[bytes], rows: int = 300, generation: str = "7"
) -> Path:
    spec = replace(SPECS[generation], vocab_size=rows)
    return write_gguf(folder / "m.gguf", random_weights(spec), spec, tokens=tokens)


def test_the_world_vocabulary_is_recognised(tmp_path: Path) -> None:
    path = with_tokens(tmp_path, world_tokens()[1:], rows=65536)
    assert (checkpoints.open(path).tokenizer, checkpoints.open(path).template) == ("world", "chat")
    model = load_model(path, threads=1)
    assert model.tokenizer.fingerprint == Vocabulary("world", world_tokens()).fingerprint
    assert model.tokenizer.encode("User: x\n\nAssistant:")[0] == 24281


OWN = [
    *BYTES,
    b" the",
    b"it's",
    b'"',
    b"\\x41",
    b"a\n\t\r\\ b",
    "你好".encode(),
    b"\xe4\xbd",
    b"\x00\x80",
]
OWN = list(dict.fromkeys(OWN))


def test_another_vocabulary_travels_with_the_model(tmp_path: Path) -> None:
    path = with_tokens(tmp_path, OWN)
    assert checkpoints.open(path).tokenizer == "inside"
    model = load_model(path, threads=1)
    assert model.tokenizer.token_bytes == (b"", *OWN, *[b""] * (299 - len(OWN)))
    text = "it's 你好 the \\x41 end\n"
    assert model.tokenizer.decode(model.tokenizer.encode(text)) == text
    given = Path(shutil.copy(open_model(path, "f32").path, tmp_path / "given.safetensors"))
    again = load_model(given, threads=1)
    assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert again.fingerprint == model.fingerprint
    narrow = load_model(given, "bf16", threads=1)
    assert narrow.tokenizer.fingerprint == model.tokenizer.fingerprint


def test_a_vocabulary_of_bytes_is_recognised(tmp_path: Path) -> None:
    spec = replace(SPECS["7"], vocab_size=256)
    assert (
        checkpoints.open(write_gguf(tmp_path / "m.gguf", random_weights(spec), spec)).tokenizer
        == "bytes"
    )
    assert checkpoints.open(with_tokens(tmp_path, BYTES, rows=257)).tokenizer == "inside"


def test_a_vocabulary_that_cannot_write_all_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"inside .*m\.gguf has no token for 1 single bytes"):
        load_model(with_tokens(tmp_path, BYTES[1:]), threads=1)


def edited(path: Path, change: Callable[[gguf.GGUFWriter], None], arch: str = "rwkv7") -> Path:
    """A file of no tensors with the values that `change` adds."""
    writer = gguf.GGUFWriter(path, arch)
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("token", [rb"\q00", rb"\x0g", b"000\\", rb"\N{}", rb"\101", rb"\u00"])
def test_tokens_that_are_not_escaped_as_they_should_be_are_refused(
    token: bytes, tmp_path: Path
) -> None:
    path = with_tokens(tmp_path, BYTES)
    path.write_bytes(path.read_bytes().replace(rb"\x00", token, 1))
    with pytest.raises(NotAModelError, match="a token of its vocabulary is not escaped"):
        read_source(path)


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="has 257 tokens, and an embedding of 200 rows"):
        read_source(with_tokens(tmp_path, BYTES, rows=200))


def test_a_vocabulary_too_long_to_keep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="is longer than 4 MiB"):
        read_source(with_tokens(tmp_path, [*BYTES, b"x" * (4 << 20)]))


def test_the_vocabulary_of_another_kind_of_tokenizer_is_not_used(tmp_path: Path) -> None:
    path = with_tokens(tmp_path, BYTES)
    key = b"tokenizer.ggml.model" + struct.pack("<IQ", 8, 4)
    path.write_bytes(path.read_bytes().replace(key + b"rwkv", key + b"gpt2"))
    assert checkpoints.open(path).tokenizer == "unknown"
    with pytest.raises(TokenizerError, match=r"beside it, as vocab\.txt"):
        load_model(path, threads=1)


@pytest.mark.parametrize("arch", ["llama", "rwkv6qwen2", "arwkv7", "\x1b[31m", "x" * 5000])
def test_other_architectures_are_refused_by_name(arch: str, tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"of the architecture .*RWKV-6 or RWKV-7"
    ) as caught:
        read_source(edited(tmp_path / "m.gguf", lambda writer: None, arch))
    assert str(caught.value).isprintable()
    assert arch[:5] in str(caught.value) or arch[0] == "\x1b"


def test_parts_of_a_model_are_refused(tmp_path: Path) -> None:
    path = edited(tmp_path / "m.gguf", lambda writer: writer.add_uint16("split.count", 3))
    with pytest.raises(UnsupportedModelError, match=r"one of 3 parts .*llama-gguf-split --merge"):
        read_source(path)


def test_a_division_that_is_not_told_is_noticed(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", random_weights(SPECS["6"]), SPECS["6"], rescale=1)
    data, key = path.read_bytes(), b"rwkv6.rescale_every_n_layers"
    for new in (key[:-1] + b"z" + struct.pack("<2I", 4, 1), key + struct.pack("<2I", 4, 2**31)):
        path.unlink()
        path.write_bytes(data.replace(key + struct.pack("<2I", 4, 1), new))
        with pytest.raises(NotAModelError, match="after how many layers its matrices were divided"):
            read_source(path)


def test_weights_that_moved_into_the_header_are_noticed(tmp_path: Path) -> None:
    data = bytearray(tensors(described(b"a", [1], 0, 0), room=32))
    data[-33] = 7
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(TruncatedError, match="does not end where its tensors begin"):
        open_checkpoint(tmp_path / "m")


def test_a_missing_layer_is_noticed(tmp_path: Path) -> None:
    spec = SPECS["7"]
    path = write_gguf(tmp_path / "m.gguf", random_weights(spec), replace(spec, n_layer=2))
    data = path.read_bytes().replace(
        b"rwkv7.block_count" + struct.pack("<2I", 4, 2),
        b"rwkv7.block_count" + struct.pack("<2I", 4, 3),
    )
    path.write_bytes(data)
    with pytest.raises(MissingTensorError, match="has 2 layers, and 3 were announced"):
        read_source(path)


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path: Path) -> None:
    spec = replace(SPECS["7"], head_size=5)
    weights = random_weights(SPECS["7"])
    with pytest.raises(ShapeError, match="heads of 5 do not divide the 32 numbers"):
        read_source(write_gguf(tmp_path / "m.gguf", weights, spec))


def test_types_without_a_reader_are_refused_by_name(tmp_path: Path) -> None:
    weights = random_weights(WIDE["7"])
    path = write_gguf(tmp_path / "m.gguf", weights, WIDE["7"], Kind.Q4_K)
    name = b"token_embd.weight" + struct.pack("<I2Q", 2, 256, 50)
    data = path.read_bytes()
    for code, what in ((19, "IQ1_S"), (24, "I8"), (99, "number 99")):
        path.write_bytes(data.replace(name + b"\x0c\0\0\0", name + struct.pack("<I", code)))
        with pytest.raises(UnsupportedModelError, match=f"token_embd.weight has the type {what}, "):
            read_source(path)


def values(*pairs: bytes) -> bytes:
    return b"GGUF" + struct.pack("<I2Q", 3, 0, len(pairs)) + b"".join(pairs)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


ARCH = text(b"general.architecture") + struct.pack("<I", 8) + text(b"rwkv7")
HOSTILE = {
    "the magic alone": (b"GGUF", TruncatedError, "ends inside its header"),
    "version 1": (b"GGUF\1\0\0\0" + bytes(40), UnsupportedModelError, "version 1"),
    "big endian": (b"GGUF\0\0\0\3" + bytes(40), UnsupportedModelError, "big-endian"),
    "2**63 tensors": (
        b"GGUF" + struct.pack("<I2Q", 3, 2**63, 0),
        NotAModelError,
        "speaks of 9223372036854775808",
    ),
    "2**64 - 1 values": (b"GGUF" + struct.pack("<I2Q", 3, 0, 2**64 - 1), NotAModelError, "values"),
    "values that are not there": (
        b"GGUF" + struct.pack("<I2Q", 3, 0, 9),
        TruncatedError,
        "ends inside",
    ),
    "an endless key": (values(struct.pack("<Q", 2**62)), NotAModelError, "a name of"),
    "a key of no text": (values(text(b"\xff\xfe")), NotAModelError, "no text"),
    "an unknown type": (values(text(b"x") + struct.pack("<I", 77)), NotAModelError, "type 77"),
    "an array of arrays": (
        values(text(b"x") + struct.pack("<2IQ", 9, 9, 5)),
        NotAModelError,
        "type 9",
    ),
    "an endless array": (
        values(text(b"x") + struct.pack("<2IQ", 9, 4, 2**61)),
        NotAModelError,
        "parts",
    ),
    "an array that is not there": (
        values(text(b"x") + struct.pack("<2IQ", 9, 12, 2**20)),
        TruncatedError,
        "ends inside",
    ),
    "an endless text": (
        values(text(b"x") + struct.pack("<IQ", 8, 2**63)),
        TruncatedError,
        "ends inside",
    ),
    "a value twice": (values(ARCH, ARCH), NotAModelError, "'general.architecture' twice"),
    "an alignment of 3": (
        values(text(b"general.alignment") + struct.pack("<2I", 4, 3)),
        NotAModelError,
        "alignment",
    ),
    "an alignment of 2**31": (
        values(text(b"general.alignment") + struct.pack("<2I", 4, 2**31)),
        NotAModelError,
        "alignment",
    ),
    "an array for a number": (
        values(text(b"general.alignment") + struct.pack("<2IQ2I", 9, 4, 2, 32, 32)),
        NotAModelError,
        "its value general.alignment is an array",
    ),
    "no architecture": (values(), UnsupportedModelError, "architecture ''"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused(case: str, tmp_path: Path) -> None:
    data, error, reason = HOSTILE[case]
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(error, match=reason):
        open_checkpoint(tmp_path / "m")


def tensors(*parts: bytes, room: int = 1000) -> bytes:
    head = b"GGUF" + struct.pack("<I2Q", 3, len(parts), 1) + ARCH + b"".join(parts)
    return head + bytes(-len(head) % 32 + room)


def described(name: bytes, shape: Sequence[int], code: int, offset: int) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", code, offset)


IMPOSSIBLE = {
    "beyond the end": (tensors(described(b"a", [251], 0, 0)), TruncatedError, "ends inside the"),
    "far beyond": (tensors(described(b"a", [1], 0, 2**63)), TruncatedError, "ends inside the"),
    "overflowing": (
        tensors(described(b"a", [2**30] * 4, 0, 0)),
        TruncatedError,
        "ends inside the tensor a",
    ),
    "of size 0": (tensors(described(b"a", [4, 0], 0, 0)), ShapeError, "impossible shape"),
    "of size 2**63": (tensors(described(b"a", [2**63], 0, 0)), ShapeError, "impossible shape"),
    "of no dimensions": (tensors(described(b"a", [], 0, 0)), ShapeError, "impossible shape"),
    "of 5 dimensions": (tensors(described(b"a", [1] * 5, 0, 0)), NotAModelError, "5 dimensions"),
    "of broken blocks": (tensors(described(b"a", [33], 8, 0)), ShapeError, "no whole blocks of Q8"),
    "named by nothing": (tensors(described(b"", [1], 0, 0)), NotAModelError, "forbidden name"),
    "named by codes": (tensors(described(b"\x1b[2J", [1], 0, 0)), NotAModelError, "forbidden"),
    "there twice": (
        tensors(described(b"a", [1], 0, 0), described(b"a", [1], 0, 32)),
        NotAModelError,
        "a twice",
    ),
    "on another": (
        tensors(described(b"a", [9], 0, 0), described(b"b", [1], 0, 32)),
        TruncatedError,
        "overlaps",
    ),
    "with a hole before it": (
        tensors(described(b"a", [1], 0, 0), described(b"b", [1], 0, 64)),
        TruncatedError,
        "b does not follow",
    ),
    "in another order": (
        tensors(described(b"a", [1], 0, 32), described(b"b", [1], 0, 0)),
        TruncatedError,
        "a does not follow",
    ),
    "with something after it": (
        tensors(described(b"a", [1], 0, 0), room=33),
        TruncatedError,
        "1 bytes follow its last tensor",
    ),
    "the same officially": (
        tensors(
            described(b"blk.1.attn_norm.bias", [1], 0, 0),
            described(b"blk.01.attn_norm.bias", [1], 0, 32),
            room=64,
        ),
        NotAModelError,
        "blocks.1.ln1.bias twice",
    ),
    "six in one": (
        tensors(described(b"blk.0.time_mix_lerp_fused.weight", [7], 0, 0), room=28),
        ShapeError,
        "is not 6 vectors",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_tensors_are_refused(case: str, tmp_path: Path) -> None:
    data, error, reason = IMPOSSIBLE[case]
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(error, match=reason) as caught:
        open_checkpoint(tmp_path / "m")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("end", [b"rwkv7.block_count", b"tokenizer.ggml.tokens"])
def test_only_values_of_use_are_kept(end: bytes, tmp_path: Path) -> None:
    numbers = struct.pack("<2IQ", 9, 4, 2**18) + np.arange(2**18, dtype="<u4").tobytes()
    data = values(*(text(b"%d.%s" % (at, end)) + numbers for at in range(30)))
    assert 30 << 20 < len(data) < 32 << 20
    (tmp_path / "m").write_bytes(data)
    mapped = map_file(tmp_path / "m")
    assert mapped.sum() > 0  # its pages are in memory and do not count below
    reset_peak_memory()
    before = peak_memory()
    header = read_header(tmp_path / "m", mapped)
    assert peak_memory() - before < 20_000_000
    assert header.values == {}
