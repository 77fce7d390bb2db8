"""The text format of vocabularies, and what is refused of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_chat.errors import TokenizerError
from rwkv_chat.tokenizer.parse import pack, parse, unpack


def literal(token: bytes) -> str:
    try:
        return repr(token.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(token)


def write(tokens: list[bytes]) -> bytes:
    """Tokens from id 1, in the text format."""
    lines = [f"{i} {literal(t)} {len(t)}\n" for i, t in enumerate(tokens, start=1)]
    return "".join(lines).encode("utf-8")


BYTES = [bytes([i]) for i in range(256)]
EXTRA = [b"\n\n", b"User", " Chinese 你好".encode(), b"\xe4\xbd", b"it's", b'"', b'it\'s "q" \\']


def test_reads_what_python_writes() -> None:
    extra = [token for token in EXTRA if token not in BYTES]
    assert parse(write(BYTES + extra), "x") == [b"", *BYTES, *extra]


def test_windows_line_ends_change_nothing() -> None:
    data = write(BYTES)
    assert parse(data.replace(b"\n", b"\r\n"), "x") == parse(data, "x")


@pytest.mark.parametrize(
    "line",
    [
        b"258 'ab' 2",
        b"256 'ab' 2",
        b"257 'ab' 3",
        b"257 ab 2",
        b"257 'ab'",
        b"257  'ab' 2",
        b"257 'a' 'b' 2",
        b"257 'a'+'b' 2",
        b"257 f'ab' 2",
        b"257 __import__('os') 2",
        b"257 '\\ud800' 3",
        b"257 '\\U00110000' 3",
        b"257 '\\q' 2",
        b"257 '\\N{DIGIT ONE}' 1",
        "257 b'é' 2".encode(),
        b"257 '' 0",
        b"257 'a' 1",
        b"257 '" + b"y" * 2000 + b"' 2000",
        b"",
        b"257 'ab' 2 ",
        b"257 '\x00\\n' 2",
        b"257 '\xff' 1",
        b"257 " + b"(" * 5000 + b"'ab' 2",
    ],
)
def test_refuses_a_broken_line(line: bytes) -> None:
    with pytest.raises(TokenizerError, match=r"vocab\.txt"):
        parse(write(BYTES) + line + b"\n", "vocab.txt")


def test_refuses_a_vocabulary_that_cannot_write_every_byte() -> None:
    with pytest.raises(TokenizerError, match="1 single bytes, 0x07"):
        parse(write(BYTES[:7] + BYTES[8:]), "x")


@pytest.mark.parametrize("data", [b"", b"\n", b"\x00" * 100, b"PK\x03\x04"])
def test_refuses_what_is_no_vocabulary(data: bytes) -> None:
    with pytest.raises(TokenizerError, match="Line 1 "):
        parse(data, "x")


@given(st.binary(max_size=200))
def test_any_tail_is_parsed_or_refused(tail: bytes) -> None:
    try:
        tokens = parse(write(BYTES) + tail, "x")
    except TokenizerError:
        return
    assert tokens[:257] == [b"", *BYTES]


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_the_compact_form_gives_the_tokens_back(tokens: list[bytes]) -> None:
    assert unpack(pack(tokens)) == tokens
