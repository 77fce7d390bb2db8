"""Thousands of damaged files: a typed sentence or the very same model, never anything else.

What is damaged is what describes the weights. In weights themselves only formats with checksums
(torch files, converted ones) can show damage.
"""

import os
import random
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from rwkv_chat.checkpoints.archive import list_entries
from rwkv_chat.checkpoints.converted import open_model
from rwkv_chat.checkpoints.files import map_file
from rwkv_chat.checkpoints.gguf_header import read_header
from rwkv_chat.checkpoints.rwkvcpp import open_rwkvcpp
from rwkv_chat.checkpoints.source import Source, read_source
from rwkv_chat.commands.memory import peak_memory, reset_peak_memory
from rwkv_chat.errors import CheckpointError
from tests.checkpoints.test_modules import SPEC as MODULE
from tests.checkpoints.test_modules import as_module, classes
from tests.checkpoints.writers import (
    as_fla6,
    as_fla7,
    as_rwkvpip,
    as_transformers,
    as_webrwkv,
    write_folder,
)
from tests.ggml_files import Kind, write_gguf, write_rwkvcpp
from tests.seeded import official, random_weights, small_spec, spec_of

SPEC = small_spec(n_layer=2, n_embd=16, head_size=8, vocab_size=20, ranks=(2, 3, 2, 4))
IS_CAMPAIGN = bool(os.environ.get("RWKV_CHAT_SLOW"))
COUNT = 20_000 if IS_CAMPAIGN else 2_000
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, *b'"{}[],:0129.-\\\x1b/')


OLDER = ("4", "5.1", "6")
OTHERS = ("fla 7", "fla 6", "transformers 5.2", "web-rwkv 6")


GGML = ("gguf", "gguf of 6", "rwkv.cpp", "rwkv.cpp of 4", "rwkv.cpp of 5.2", "rwkv.cpp of 6")


MORE = ("rwkv package", "module", "pytorch_model.bin", "prefixes", "K-quants")
"""Variants of the others, mutated less often but in the campaign."""


@pytest.fixture(
    params=["pth", "safetensors", "converted", "q8", "q4", *OLDER, *OTHERS, *GGML, *MORE]
)
def sample(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "module":
        script = classes()
        monkeypatch.setitem(sys.modules, "training_script", script)
        torch.save(as_module(random_weights(MODULE), script), tmp_path / "m.pth")
        return tmp_path / "m.pth"
    if request.param in MORE:
        return variant(request.param, tmp_path)
    if request.param in GGML:
        return ggml_sample(request.param, tmp_path)
    if request.param in OTHERS:
        safetensors.torch.save_file(in_form(request.param), tmp_path / "m.safetensors")
        return tmp_path / "m.safetensors"
    if request.param in OLDER:
        spec = spec_of(request.param, n_embd=16, head_size=8, vocab_size=20, n_ffn=24)
        torch.save(official(random_weights(spec)), tmp_path / "m.pth")
        found = tmp_path / "m.pth"
        return open_model(found, "f32").path if request.param == "4" else found
    weights = random_weights(SPEC)
    if request.param == "pth":
        torch.save(official(weights), tmp_path / "m.pth")
        return tmp_path / "m.pth"
    safetensors.torch.save_file(weights, tmp_path / "m.safetensors", {"format": "pt"})
    if request.param in ("converted", "q8", "q4"):
        weights_type = "f32" if request.param == "converted" else request.param
        return open_model(tmp_path / "m.safetensors", weights_type).path
    return tmp_path / "m.safetensors"


def variant(what: str, folder: Path) -> Path:
    if what == "K-quants":
        spec = small_spec(n_layer=1, n_embd=256, head_size=64, vocab_size=8, n_ffn=256)
        return write_gguf(folder / "m.gguf", official(random_weights(spec)), spec, Kind.Q4_K)
    weights = official(random_weights(SPEC))
    if what == "prefixes":
        weights = {f"_forward_module.{name}": tensor for name, tensor in weights.items()}
    if what == "rwkv package":
        spec = spec_of("5.2+normed", n_embd=16, head_size=8, vocab_size=20, n_ffn=24)
        torch.save(as_rwkvpip(random_weights(spec), every=1), folder / "m.pth")
        return folder / "m.pth"
    path = folder / ("m.pth" if what == "prefixes" else what)
    torch.save(weights, path)
    return path


def in_form(text: str) -> dict[str, torch.Tensor]:
    form, generation = text.split()
    sizes = {"n_embd": 16, "head_size": 8, "vocab_size": 20, "n_ffn": 24}
    weights = random_weights(SPEC if generation == "7" else spec_of(generation, **sizes))
    if form == "fla":
        return as_fla7(weights, fused=True) if generation == "7" else as_fla6(weights)
    return as_transformers(weights) if form == "transformers" else as_webrwkv(weights)


def ggml_sample(what: str, folder: Path) -> Path:
    """Half of the matrices are quantised; the GGUF of RWKV-7 has a vocabulary inside."""
    kind, _, generation = what.partition(" of ")
    spec = spec_of(generation or "7", head_size=8, vocab_size=20)
    weights = official(random_weights(spec))
    if kind == "rwkv.cpp":
        return write_rwkvcpp(folder / "m.bin", weights, Kind.Q4_0)
    tokens = [bytes([byte]) for byte in range(5)] if not generation else None
    return write_gguf(folder / "m.gguf", weights, spec, Kind.Q8_0, tokens=tokens, rescale=1)


def structure(path: Path, data: bytes) -> list[range]:
    """Where the bytes are that are not weights."""
    if path.suffix == ".gguf":
        tensors = read_header(path, map_file(path)).tensors.values()
        # No other byte of the file tells these two numbers again.
        keys = (b"rwkv7.wkv.head_size", b"rwkv6.rescale_every_n_layers")
        ends = [data.index(key) + len(key) for key in keys if key in data]
        starts = [0, *(end + 8 for end in ends)]
        stops = [*(end - 4 for end in ends), min(tensor.start for tensor in tensors)]
        return [range(*place) for place in zip(starts, stops, strict=True)]
    is_torch = data.startswith(b"PK")
    if path.suffix == ".bin" and not is_torch:
        stored = {tensor.stored for tensor in open_rwkvcpp(path).tensors.values()}
        places = sorted((tensor.start, tensor.end) for tensor in stored)
        ends = [24, *(end for _, end in places)]
        return [range(24), *(range(e, s) for e, (s, _) in zip(ends, places, strict=False))]
    if not is_torch:
        return [range(8 + int.from_bytes(data[:8], "little"))]
    # Any entry but data/<key>: headers, the index, the directory at the end.
    start = data.index(b"data.pkl")
    first = data.index(b"data/0")
    directory = data.index(b"PK\1\2")
    return [range(0, start), range(start, first + 200), range(directory, len(data))]


def mutate(data: bytes, places: list[range], dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        place = dice.choice(places)
        where = dice.randrange(place.start, min(place.stop, len(changed)))
        room = place.stop - where  # what follows the place may be weights
        match dice.randrange(6):
            case 0:
                changed[where] ^= 1 << dice.randrange(8)
            case 1:
                changed[where] = dice.choice(INTERESTING)
            case 2:
                word = dice.choice((b"\xff" * 4, bytes(4), b"\0\0\0\x80"))[:room]
                changed[where : where + len(word)] = word
            case 3:
                del changed[where : where + min(room, dice.randrange(1, 9))]
            case 4:
                other = dice.randrange(max(0, where - 200), where + 1)
                changed[where:where] = changed[other : other + dice.randrange(1, 60)]
            case _:
                changed[where : where + 1] = str(dice.choice((0, 1, 2**31, 2**63, 2**64))).encode()
    return sealed(changed) if data[:2] == b"PK" and dice.randrange(4) else bytes(changed)


def sealed(data: bytearray) -> bytes:
    """A torch file with the right checksum of its index, where it is in its place."""
    try:
        entries = list_entries(Path(), np.frombuffer(bytes(data), "u1"))
    except CheckpointError:
        return bytes(data)
    for name, entry in entries.items():
        if name.endswith("/data.pkl"):
            place = data.rfind(name.encode()) - 30
            data[place : place + 4] = zlib.crc32(data[entry.start : entry.end]).to_bytes(
                4, "little"
            )
    return bytes(data)


def test_damage_to_the_structure_is_refused_or_harmless(
    sample: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    is_variant = request.node.callspec.params["sample"] in MORE
    count = COUNT // 10 if is_variant and not IS_CAMPAIGN else COUNT
    data = sample.read_bytes()
    good = read_source(sample)
    weights = arrays(good)
    places, dice = structure(sample, data), random.Random(1)
    path = tmp_path / f"bad{sample.suffix}"
    reset_peak_memory()
    before = peak_memory()
    sentences = []
    for _ in range(count):
        path.unlink(missing_ok=True)
        path.write_bytes(mutate(data, places, dice))
        try:
            found = read_source(path)
            again = arrays(found)
        except CheckpointError as error:
            sentences.append(str(error))
            continue
        assert found.spec == good.spec
        assert again == weights
    assert len(sentences) > count // 3
    assert [s for s in sentences if not (s.endswith(".") and s.isprintable())] == []
    assert max(map(len, sentences)) < 600
    assert peak_memory() - before < 200_000_000


@pytest.mark.parametrize("form", ["fla 7", "fla 6"])
def test_damage_to_a_folder_is_refused_or_harmless(tmp_path: Path, form: str) -> None:
    config = {"norm_eps": 1e-5, "hidden_act": "sqrelu", "architectures": ["RWKV7ForCausalLM"]}
    folder = write_folder(tmp_path / "hf", in_form(form), config, shards=2)
    files = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    dice, weights = random.Random(1), arrays(read_source(folder))
    reset_peak_memory()
    before = peak_memory()
    sentences = []
    for _ in range(COUNT):
        path, data = dice.choice(list(files.items()))
        whole = [range(len(data))] if path.suffix == ".json" else structure(path, data)
        path.unlink()
        cut = dice.randrange(10) == 0
        path.write_bytes(data[: dice.randrange(len(data))] if cut else mutate(data, whole, dice))
        try:
            found = read_source(folder)
            again = arrays(found)
        except CheckpointError as error:
            sentences.append(str(error))
        else:
            assert again == weights
        path.unlink()
        path.write_bytes(data)
    assert len(sentences) > COUNT // 3
    assert [s for s in sentences if not (s.endswith(".") and s.isprintable())] == []
    assert max(map(len, sentences)) < 700
    assert peak_memory() - before < 200_000_000


def arrays(source: Source) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of every weight that a model has, which does not tell [D] from [1, 1, D]."""
    read = source.checkpoint.array
    return {name: (str((a := read(at)).dtype), a.tobytes()) for name, at in source.names.items()}


def test_every_cut_of_a_model_is_refused(sample: Path, tmp_path: Path) -> None:
    data = sample.read_bytes()
    path = tmp_path / f"cut{sample.suffix}"
    places = structure(sample, data)
    sizes = {p for place in places for p in range(place.start, place.stop, 13)}
    sizes |= {place.stop - 1 for place in places} | set(range(0, len(data), 997))
    for size in sorted(size for size in sizes if size < len(data)):
        path.unlink(missing_ok=True)
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            read_source(path)


def test_random_bytes_are_never_a_model(tmp_path: Path) -> None:
    dice = random.Random(2)
    path = tmp_path / "noise"
    for start in (
        b"",
        b"PK\3\4",
        b"\x80\x02",
        (50).to_bytes(8, "little") + b"{",
        b"GGUF\3\0\0\0",
        b"fmgg\x65\0\0\0",
    ):
        for size in (1, 8, 40, 300, 5000):
            path.unlink(missing_ok=True)
            path.write_bytes(start + dice.randbytes(size))
            with pytest.raises(CheckpointError):
                read_source(path)
