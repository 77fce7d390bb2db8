"""Whatever comes in, nothing that commands a terminal goes out."""

import os
import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_chat.text.display import clean, one_line, scrub

SCOTLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
SNIPPETS = [
    "\x1b]52;c;aGk=\x07",
    "\x1b[31m",
    "\x9b31m",
    "\x9d0;title\x9c",
    "\x1bP1$r\x1b\\",
    "\r\n",
    "\r",
    "\u2028",
    "\x85",
    "\ud800",
    "\udc00",
    "\ud83d\ude00",
    SCOTLAND,
    "\U0001f3f4",
    "\U000e0041",
    "\U000e007f",
    "你好",
    "👩\u200d👩\u200d👧",
    "\n\t",
    *BIDI,
]
ANY_CHARACTER = st.characters(min_codepoint=0, max_codepoint=0x10FFFF, categories=None)
HOSTILE = st.lists(
    st.one_of(st.sampled_from(SNIPPETS), st.text(ANY_CHARACTER, max_size=8)), max_size=8
).map("".join)


slow = pytest.mark.skipif(not os.environ.get("RWKV_CHAT_SLOW"), reason="RWKV_CHAT_SLOW is not set")


def is_safe(text: str) -> bool:
    without_flags = text.replace(SCOTLAND, "")
    return not any(
        (unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t")
        or c in BIDI
        or 0xE0000 <= ord(c) <= 0xE007F
        for c in without_flags
    )


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain, 你好 👩\u200d👧 é\n\tok", "plain, 你好 👩\u200d👧 é\n\tok"),
        ("\x1b[31mred", "␛[31mred"),
        ("a\x00b\x7fc", "a␀b␡c"),
        ("a\x9b1m", "a\ufffd1m"),
        ("one\r\ntwo\rthree", "one\ntwo␍three"),
        ("one\u2028two\u2029", "one\ntwo\n"),
        ("\u202eevil\u2069", "⟨U+202E⟩evil⟨U+2069⟩"),
        ("\ud800x", "\ufffdx"),
        (f"flag {SCOTLAND}", f"flag {SCOTLAND}"),
        ("hid\U000e0068\U000e0069den", "hidden"),
        ("\U0001f3f4\U000e0067\U000e0062", "\U0001f3f4"),
        ("\U0001f3f4" + "\U000e0061" * 40 + "\U000e007f", "\U0001f3f4"),
    ],
)
def test_clean_shows_what_was_dangerous(raw: str, shown: str) -> None:
    assert clean(raw) == shown


def test_clean_returns_safe_text_itself() -> None:
    text = "word " * 1000
    assert clean(text) is text


def test_every_control_character_becomes_visible() -> None:
    for code in [*range(0x20), *range(0x7F, 0xA0)]:
        if chr(code) in "\n\t":
            continue
        mark = clean(chr(code))
        assert len(mark) == 1
        assert mark.isprintable()


@given(HOSTILE)
def test_clean_leaves_nothing_unsafe_and_is_idempotent(text: str) -> None:
    cleaned = clean(text)
    assert is_safe(cleaned)
    assert clean(cleaned) == cleaned
    assert cleaned.encode("utf-8").decode("utf-8") == cleaned
    assert len(cleaned.splitlines()) <= cleaned.count("\n") + 1


@given(HOSTILE, HOSTILE)
def test_a_sequence_cut_in_two_is_as_harmless(first: str, second: str) -> None:
    assert is_safe(clean(first) + clean(second))
    assert is_safe(clean(clean(first) + clean(second)))


@given(HOSTILE)
def test_scrubbed_text_can_be_stored(text: str) -> None:
    scrubbed = scrub(text)
    assert scrubbed.encode("utf-8").decode("utf-8") == scrubbed
    assert "\0" not in scrubbed
    assert scrub(scrubbed) == scrubbed


def test_scrub_changes_nothing_else() -> None:
    text = "\x1b[0m\r\n\u202e 你好 \U0001f600"
    assert scrub(text) is text
    assert scrub("\ud83d\ude00 \ud83d \0") == "😀 \ufffd \ufffd"


@given(HOSTILE, st.integers(min_value=-1, max_value=30))
def test_one_line_is_one_safe_line_that_fits(text: str, width: int) -> None:
    line = one_line(text, width)
    assert len(line) <= max(width, 0)
    assert is_safe(line)
    assert "\n" not in line
    assert "\t" not in line
    assert clean(line) == line


def test_one_line_joins_and_cuts() -> None:
    assert one_line("  Hello\n\n\tthere  ", 40) == "Hello there"
    assert one_line("Hello there", 11) == "Hello there"
    assert one_line("Hello there", 8) == "Hello t…"
    assert one_line("Hello there", 7) == "Hello…"
    assert one_line(f"ab{SCOTLAND}", 6) == "ab\U0001f3f4…"
    assert one_line("x" * 10_000_000, 5) == "xxxx…"


@pytest.mark.slow
@slow
def test_a_million_strings_leave_nothing_unsafe() -> None:
    rng = random.Random(1)
    for _ in range(1_000_000):
        text = "".join(rng.choices(SNIPPETS, k=4)) + chr(rng.randrange(0x110000))
        cleaned = clean(text)
        assert is_safe(cleaned), ascii(text)
        assert clean(cleaned) == cleaned, ascii(text)
