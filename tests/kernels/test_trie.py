"""The compiled vocabulary against a greedy match in plain Python."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_chat import _native

SMALL = st.binary(min_size=1, max_size=5).map(lambda b: bytes(x & 3 for x in b))
VOCABULARIES = st.lists(st.one_of(SMALL, st.just(b"")), min_size=1, max_size=60)


def encode_slowly(tokens: list[bytes], data: bytes) -> list[int] | None:
    """The longest token at every place, the lowest id of equal ones; None if a byte has none."""
    ids = []
    while data:
        fits = [t for t in tokens if t and data.startswith(t)]
        if not fits:
            return None
        best = max(fits, key=len)
        ids.append(tokens.index(best))
        data = data[len(best) :]
    return ids


@settings(max_examples=300, deadline=None)
@given(tokens=VOCABULARIES, data=st.binary(max_size=80).map(lambda b: bytes(x & 3 for x in b)))
def test_encode_is_the_greedy_match(tokens: list[bytes], data: bytes) -> None:
    vocabulary = _native.Vocabulary(tokens)
    assert len(vocabulary) == len(tokens)
    expected = encode_slowly(tokens, data)
    if expected is None:
        with pytest.raises(ValueError, match="No token covers byte"):
            vocabulary.encode(data)
    else:
        assert vocabulary.encode(data) == expected
        assert vocabulary.decode(expected) == data


@given(data=st.binary(max_size=300))
def test_all_bytes_round_trip(data: bytes) -> None:
    tokens = [b"", *(bytes([i]) for i in range(256)), b"\0\0", b"ab", b"abc", b"\xff\xfe"]
    vocabulary = _native.Vocabulary(tokens)
    assert vocabulary.decode(vocabulary.encode(data)) == data


def test_an_uncovered_byte_is_named() -> None:
    vocabulary = _native.Vocabulary([b"", b"a", b"ab", b"zz"])
    with pytest.raises(ValueError, match=r"byte 122 at position 3\."):
        vocabulary.encode(b"aabz")


def test_decode_refuses_ids_outside() -> None:
    vocabulary = _native.Vocabulary([b"", b"a"])
    assert vocabulary.decode([1, 0, 1]) == b"aa"
    for token in (-1, 2, 2**40):
        with pytest.raises(IndexError, match=str(token)):
            vocabulary.decode([1, token])


@pytest.mark.parametrize("tokens", [["text"], [b"a", None], [b"a", 7]])
def test_tokens_are_bytes(tokens: list[object]) -> None:
    with pytest.raises(TypeError, match="bytes"):
        _native.Vocabulary(tokens)  # type: ignore[arg-type]


def test_a_vocabulary_has_tokens() -> None:
    with pytest.raises(ValueError, match="between 1 and"):
        _native.Vocabulary([])


def test_a_long_token() -> None:
    long = b"x" * 100_000
    vocabulary = _native.Vocabulary([b"", b"x", long])
    assert vocabulary.encode(long + b"x" * 3) == [2, 1, 1, 1]
