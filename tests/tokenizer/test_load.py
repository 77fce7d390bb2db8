"""The tokenizer that a model names, and what does not fit it."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_chat import paths
from rwkv_chat.errors import TokenizerError
from rwkv_chat.tokenizer.load import load
from rwkv_chat.tokenizer.vocabulary import Vocabulary

SUBSET = [*(bytes([i]) for i in range(256)), b"\n\n", b"User", "。\n".encode()]


def write_subset(folder: Path) -> Path:
    lines = [f"{i} {token!r} {len(token)}\n" for i, token in enumerate(SUBSET, start=1)]
    path = folder / "vocab.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_bytes_are_their_own_ids() -> None:
    tokenizer = load("bytes", 256, None)
    data = bytes(range(256))
    assert tokenizer.encode(data) == list(data)
    assert tokenizer.decode_bytes(list(data)) == data
    assert tokenizer.token_bytes[0] == b"\0"
    assert tokenizer.exempt == (9, 32, *range(48, 58))


def test_a_subset_beside_the_model(tmp_path: Path) -> None:
    write_subset(tmp_path)
    tokenizer = load("bundled", 512, tmp_path)
    assert tokenizer.vocab_size == len(tokenizer) == 512
    assert tokenizer.encode("User。\n\n\n") == [258, 259, 257]
    assert tokenizer.encode("U") == [ord("U") + 1]
    assert tokenizer.decode_bytes([0, 258, 511]) == b"User"
    assert tokenizer.decode([0xE4 + 1]) == "\ufffd"


def test_the_bundled_vocabulary_is_the_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "package"
    inside.mkdir()
    path = write_subset(inside)
    monkeypatch.setattr(paths, "bundled", lambda name: inside / name)
    expected = load("bundled", 260, inside).fingerprint
    assert load("bundled", 260, None).fingerprint == expected
    assert load("bundled", 260, tmp_path).fingerprint == expected
    path.unlink()
    with pytest.raises(TokenizerError, match=r"Cannot read the vocabulary .*vocab\.txt"):
        load("bundled", 260, None)


def test_the_fingerprint_is_of_the_tokens_not_of_the_rows(tmp_path: Path) -> None:
    write_subset(tmp_path)
    one, two = load("bundled", 260, tmp_path), load("bundled", 9000, tmp_path)
    assert one.fingerprint == two.fingerprint != load("bytes", 256, None).fingerprint
    assert len(one.fingerprint) == 64


def test_refuses_a_model_with_too_few_rows(tmp_path: Path) -> None:
    write_subset(tmp_path)
    for kind, rows in [("bytes", 255), ("bundled", 259)]:
        with pytest.raises(TokenizerError, match=f"only {rows} rows"):
            load(kind, rows, tmp_path)


def test_refuses_an_unknown_kind() -> None:
    with pytest.raises(TokenizerError, match="no tokenizer named 'gpt2'"):
        load("gpt2", 256, None)


def test_refuses_a_pipe_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "vocab.txt")
    with pytest.raises(TokenizerError, match="not a regular file"):
        load("bundled", 512, tmp_path)


@pytest.mark.parametrize("ids", [[256], [-1], [2**40], [1.5], ["a"], [None]])
def test_refuses_foreign_ids(ids: list[int]) -> None:
    with pytest.raises(TokenizerError, match="do not belong to the bytes vocabulary"):
        load("bytes", 256, None).decode_bytes(ids)


def test_surrogates_are_joined_or_replaced() -> None:
    tokenizer = load("bytes", 256, None)
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00\ud800")) == "😀\ufffd"


@given(
    st.lists(st.binary(min_size=2, max_size=5), unique=True, max_size=20), st.binary(max_size=80)
)
def test_encoding_takes_the_longest_token_at_each_place(extra: list[bytes], data: bytes) -> None:
    tokenizer = Vocabulary("test", [b"", *(bytes([i]) for i in range(256)), *extra])
    ids = tokenizer.encode(data)
    assert tokenizer.decode_bytes(ids) == data
    at = 0
    for token in (tokenizer.token_bytes[i] for i in ids):
        assert not any(len(t) > len(token) and data.startswith(t, at) for t in extra)
        at += len(token)
