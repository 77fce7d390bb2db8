"""Control codes, the clipboard and early events, without a terminal."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.segment import Segment
from rich.style import Style
from textual.color import Color

from rwkv_chat.chat.events import AnswerGrew, ConversationChanged, Prefilling
from rwkv_chat.errors import UsageError
from rwkv_chat.tui.inbox import Inbox
from rwkv_chat.tui.terminal import COPY_LIMIT, ControlFilter, clipboard_sequence

BLACK = Color(0, 0, 0)


@given(st.lists(st.text(max_size=30), max_size=5))
def test_the_filter_lets_no_control_code_and_no_link_through(texts: list[str]) -> None:
    segments = [Segment(text, Style(link="file:///etc/passwd", bold=True)) for text in texts]
    for segment in ControlFilter().apply(segments, BLACK):
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in segment.text)
        assert not any(c in "\u202e\u2066\u2028" for c in segment.text)
        assert segment.style is not None
        assert segment.style.link is None
        assert segment.style.bold


def test_the_filter_returns_clean_lines_as_they_are() -> None:
    segments = [Segment("plain 漢字 👩\u200d🚀", Style(bold=True)), Segment(" ", None)]
    assert ControlFilter().apply(segments, BLACK) is segments


def test_the_clipboard_sequence_and_its_tmux_wrap() -> None:
    plain = clipboard_sequence("héllo\ud800", {})
    assert plain.startswith("\x1b]52;c;")
    assert base64.b64decode(plain[7:-1]).decode() == "héllo\ufffd"
    wrapped = clipboard_sequence("x", {"TMUX": "/tmp/tmux,1,0"})
    assert wrapped == "\x1bPtmux;\x1b\x1b]52;c;eA==\x07\x1b\\"


def test_too_much_for_a_clipboard_is_refused_with_figures() -> None:
    clipboard_sequence("x" * COPY_LIMIT, {})
    with pytest.raises(UsageError, match="100,001 bytes"):
        clipboard_sequence("x" * (COPY_LIMIT + 1), {})


def test_the_inbox_keeps_order_and_only_the_newest_growth() -> None:
    woken: list[int] = []
    inbox = Inbox(lambda: woken.append(1))
    inbox.put(Prefilling("c", "t", 1, 9))
    inbox.put(Prefilling("c", "t", 9, 9))
    for n in range(1000):
        inbox.put(AnswerGrew("c", "t", "x" * n, n, 1.0))
    inbox.put(ConversationChanged("c"))
    inbox.put(AnswerGrew("c", "t", "y", 1, 1.0))
    assert woken == [1]
    assert inbox.drain() == [
        Prefilling("c", "t", 9, 9),
        AnswerGrew("c", "t", "x" * 999, 999, 1.0),
        ConversationChanged("c"),
        AnswerGrew("c", "t", "y", 1, 1.0),
    ]
    assert inbox.drain() == []
    inbox.put(ConversationChanged("d"))
    assert woken == [1, 1]
