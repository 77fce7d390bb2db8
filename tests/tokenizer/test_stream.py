"""However bytes are cut, the text is the same and never shows half a character."""

import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_chat.tokenizer.stream import Utf8Stream

PIECES = st.lists(
    st.one_of(
        st.binary(max_size=6),
        st.text(max_size=4).map(str.encode),
        st.sampled_from(
            [b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xe4"]
        ),
    ),
    max_size=12,
)


@given(PIECES)
def test_any_chunking_gives_the_text_of_the_whole(pieces: list[bytes]) -> None:
    stream = Utf8Stream()
    text = "".join(map(stream.feed, pieces)) + stream.flush()
    assert text == b"".join(pieces).decode("utf-8", "replace")
    assert stream.pending == b""


@given(PIECES)
def test_pending_bytes_carry_a_stream_over(pieces: list[bytes]) -> None:
    text, pending = "", b""
    for piece in pieces:
        stream = Utf8Stream(pending)
        text += stream.feed(piece)
        pending = stream.pending
        assert len(pending) <= 3
    assert text + Utf8Stream(pending).flush() == b"".join(pieces).decode("utf-8", "replace")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_valid_text_fed_byte_by_byte_never_shows_a_replacement(text: str) -> None:
    stream = Utf8Stream()
    seen = ""
    for byte in text.encode():
        seen += stream.feed(bytes([byte]))
        assert text.startswith(seen)
    assert seen == text


def test_impossible_sequences_show_at_once() -> None:
    stream = Utf8Stream()
    assert stream.feed(b"\xff") == "\ufffd"
    assert stream.feed(b"\xe4\xbd") == ""
    assert stream.pending == b"\xe4\xbd"
    assert stream.feed(b"a") == "\ufffda"
    assert stream.feed(b"\xf0\x9f\x98") == ""
    assert stream.flush() == "\ufffd"
    assert stream.feed(b"b") == "b"


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("RWKV_CHAT_SLOW"), reason="RWKV_CHAT_SLOW is not set")
def test_a_million_byte_strings_in_random_chunks() -> None:
    rng = random.Random(2)
    leads = bytes([0x41, 0x80, 0xBF, 0xC2, 0xE0, 0xE4, 0xED, 0xF0, 0xF4, 0xFF, 0x9F, 0xA0, 0x90])
    for _ in range(1_000_000):
        data = bytes(rng.choices(leads, k=8))
        cuts = sorted(rng.choices(range(9), k=3))
        stream = Utf8Stream()
        text = "".join(stream.feed(data[a:b]) for a, b in zip([0, *cuts], [*cuts, 8], strict=True))
        assert text + stream.flush() == data.decode("utf-8", "replace"), data
