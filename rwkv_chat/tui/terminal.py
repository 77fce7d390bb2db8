"""The terminal itself: signals, a terminal that vanishes, control codes, the clipboard."""

import asyncio
import base64
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from typing import cast

from rich.segment import Segment
from rich.style import Style
from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual.color import Color
from textual.filter import LineFilter

from rwkv_chat.errors import UsageError
from rwkv_chat.text.display import scrub

__all__ = [
    "COPY_LIMIT",
    "ControlFilter",
    "catch_signals",
    "clipboard_sequence",
    "copy_with_tool",
    "exit_hard_after",
    "know_alt_enter",
    "terminal_is_there",
]

COPY_LIMIT = 100_000
"""The most bytes that are sent to the clipboard at once."""

# Mouse reports, pasting, focus reports and kitty keys off; main screen, cursor, plain style.
_RESET = (
    b"\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1015l\x1b[?2004l\x1b[?1004l\x1b[<u"
    b"\x1b[?1049l\x1b[?25h\x1b[0m"
)

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@lru_cache(1024)
def _without_link(style: Style) -> Style:
    return style.update_link(None)


class ControlFilter(LineFilter):
    """The second wall: no control code and no link in any text reaches the terminal."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Replace each control character by a mark of the same width, and drop links."""
        if all(
            (style is None or style.link is None) and _CONTROLS.search(text) is None
            for text, style, _ in segments
        ):
            return segments
        return [
            Segment(
                _CONTROLS.sub("\ufffd", text),
                _without_link(style) if style is not None and style.link else style,
            )
            for text, style, _ in segments
        ]


def catch_signals(loop: asyncio.AbstractEventLoop, end: Callable[[int], None]) -> None:
    """Call `end` with 128 + number when the process is asked to go."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        loop.add_signal_handler(number, end, 128 + number)


class _MoreKeys(Enum):
    ALT_ENTER = "alt+enter"


def know_alt_enter() -> None:
    """Tell Textual what Alt+Enter looks like in terminals without the kitty protocol.

    Textual takes it for Enter there, and a message would be sent. There is no public way.
    """
    known = cast(dict[str, tuple[Enum, ...]], ANSI_SEQUENCES_KEYS)
    for sequence in ("\x1b\r", "\x1b\n"):
        known.setdefault(sequence, (_MoreKeys.ALT_ENTER,))


def terminal_is_there() -> bool:
    """Whether the terminal still answers; true where there never was one."""
    stream = sys.__stdin__
    if stream is None:
        return True
    try:
        termios.tcgetattr(stream.fileno())
    except termios.error as error:
        return bool(error.args) and error.args[0] not in (5, 6, 9)  # EIO, ENXIO, EBADF
    except (OSError, ValueError):
        return True
    return True


def exit_hard_after(seconds: float, code: int) -> None:
    """End the process with `code` if it is still there after `seconds`, terminal restored."""
    try:
        before = termios.tcgetattr(0)
    except termios.error:
        before = None

    def end() -> None:
        try:
            os.write(1, _RESET)
            if before is not None:
                before[3] |= termios.ECHO | termios.ICANON | termios.ISIG
                termios.tcsetattr(0, termios.TCSANOW, before)
        except (OSError, termios.error):
            pass
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def clipboard_sequence(text: str, environ: Mapping[str, str] | None = None) -> str:
    """The control sequence (OSC 52) that puts `text` into the clipboard of the terminal.

    Inside tmux it is wrapped so that tmux hands it on.

    Raises:
        UsageError: the text is larger than terminals take.
    """
    environ = os.environ if environ is None else environ
    data = scrub(text).encode("utf-8", "replace")
    if len(data) > COPY_LIMIT:
        raise UsageError(
            f"This text has {len(data):,} bytes; the clipboard of a terminal takes "
            f"{COPY_LIMIT:,}. Copy a part of it."
        )
    sequence = f"\x1b]52;c;{base64.b64encode(data).decode('ascii')}\x07"
    if environ.get("TMUX"):
        sequence = "\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    return sequence


def _tool(environ: Mapping[str, str]) -> Sequence[str] | None:
    if environ.get("SSH_CONNECTION") or environ.get("SSH_TTY"):
        return None
    tools: list[Sequence[str]] = []
    if environ.get("WAYLAND_DISPLAY"):
        tools.append(("wl-copy",))
    if environ.get("DISPLAY"):
        tools += [("xclip", "-selection", "clipboard"), ("xsel", "--clipboard", "--input")]
    if sys.platform == "darwin":
        tools.append(("pbcopy",))
    return next((tool for tool in tools if shutil.which(tool[0])), None)


def copy_with_tool(text: str, environ: Mapping[str, str] | None = None) -> None:
    """Give `text` to a clipboard program of this machine, where there is one; takes up to 2 s.

    Raises:
        UsageError: the program failed.
    """
    tool = _tool(os.environ if environ is None else environ)
    if tool is None:
        return
    try:
        subprocess.run(  # noqa: S603
            tool,
            input=scrub(text).encode("utf-8", "replace"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=2,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(
            f"{tool[0]} could not copy the text ({type(error).__name__}); "
            "the terminal may have taken it."
        ) from error
