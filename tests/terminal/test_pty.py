"""The application in a real pseudo-terminal: what reaches it, and in what state it is left."""

import contextlib
import os
import pty
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pyte
import pytest

from rwkv_chat.tui.terminal import terminal_is_there

ROOT = Path(__file__).parents[2]
RESTORED = ("\x1b[?1049l", "\x1b[?1000l", "\x1b[?1003l", "\x1b[?1006l", "\x1b[?2004l", "\x1b[?25h")
PROGRAM = """
import sys
from tests.tui.fake_session import FakeSession
from rwkv_chat.tui.app import ChatApp
hostile = "\\x1b]52;c;aGk=\\x07\\x9d0;t\\x9c\\u202e[red]x[/red] "
words = [f"word{n} " for n in range(400)]
session = FakeSession(lambda text: [hostile if text == "hostile" else "", *words], step=0.02)
app = ChatApp(session)
app.run()
for conversation in session.conversations():
    for turn in session.load(conversation.id).path():
        print("KEPT", turn.role.value, turn.finish.value, len(turn.text))
sys.exit(app.return_code)
"""


class Terminal:
    """The application in a pty."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TERM": "xterm-256color",
            "LC_ALL": "C.UTF-8",
        }
        for name in ("TMUX", "NO_COLOR"):
            environment.pop(name, None)
        self.child = pexpect.spawn(
            sys.executable,
            ["-c", PROGRAM],
            env=environment,
            dimensions=(24, 80),
            encoding="utf-8",
            timeout=20,
        )
        self.seen = ""
        self.gone = False
        self.wait_for("F1 help")

    def wait_for(self, text: str, seconds: float = 15) -> None:
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} never came: {self.seen[-2000:]!r}"
            self.read()

    def read(self) -> None:
        with contextlib.suppress(pexpect.TIMEOUT):
            self.seen += self.child.read_nonblocking(65536, timeout=0.1)

    def screen(self) -> list[str]:
        """What a terminal shows of all that came so far."""
        screen = pyte.Screen(80, 24)
        # pyte takes kitty's keyboard switches for text attributes
        pyte.Stream(screen).feed(re.sub(r"\x1b\[[<>=][0-9;]*[a-zA-Z]", "", self.seen))
        return list(screen.display)

    def finish(self) -> int:
        """Read to the end; returns the exit code."""
        end = time.monotonic() + 15
        while time.monotonic() < end:
            try:
                self.seen += self.child.read_nonblocking(65536, timeout=0.1)
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                break
        self.child.close()
        return self.child.exitstatus if self.child.exitstatus is not None else -1


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    it = Terminal()
    yield it
    if not it.gone:
        it.child.close(force=True)


@pytest.mark.parametrize("answering", [False, True], ids=["idle", "answering"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_restores_the_terminal_and_keeps_the_answer(
    terminal: Terminal, number: signal.Signals, answering: bool
) -> None:
    if answering:
        terminal.child.send("hello\r")
        terminal.wait_for("word3")
    terminal.child.kill(number)
    code = terminal.finish()
    assert code == 128 + number
    tail = terminal.seen[terminal.seen.rindex("\x1b[?1049h") :]
    assert [sequence for sequence in RESTORED if sequence not in tail] == []
    if answering:
        assert "KEPT assistant cancelled" in terminal.seen


def test_a_vanished_terminal_ends_the_process(terminal: Terminal) -> None:
    process, copy = terminal.child.pid, os.dup(terminal.child.child_fd)
    terminal.child.ptyproc.fileobj.close()
    terminal.gone = True
    os.close(copy)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if os.waitpid(process, os.WNOHANG)[0]:
            return
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    pytest.fail("the process outlived its terminal")


def test_a_terminal_that_is_gone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r") as stream:
        monkeypatch.setattr(sys, "__stdin__", stream)
        assert terminal_is_there()
        os.close(ours)
        assert not terminal_is_there()


def test_alt_enter_makes_a_line_and_enter_right_after_letters_sends(terminal: Terminal) -> None:
    terminal.child.send("one\x1b\r")
    terminal.child.send("two\r")
    terminal.wait_for("word3")
    screen = terminal.screen()
    assert any("one" in line for line in screen)
    assert any("two" in line for line in screen)
    assert not any("onetwo" in line for line in screen)
    assert any("You" in line for line in screen)


def test_alt_and_a_letter_is_an_action_and_no_text(terminal: Terminal) -> None:
    terminal.child.send("hello\r")
    terminal.wait_for("word3")
    terminal.child.send("\x03")
    terminal.wait_for("continues")
    terminal.child.send("\x1be")
    terminal.wait_for("Editing a message")
    assert not any("helloe" in line for line in terminal.screen())


def test_ctrl_c_stops_and_loses_nothing(terminal: Terminal) -> None:
    terminal.child.send("hello\r")
    terminal.wait_for("word3")
    terminal.child.send("a draft\x03")
    terminal.wait_for("continues")
    for _ in range(20):
        terminal.child.send("\x03")
    terminal.child.send(" of mine")
    terminal.wait_for("mine")
    assert any("a draft of mine" in line for line in terminal.screen())
    terminal.child.send("\x11\x11")
    assert terminal.finish() == 0


def test_hostile_text_sends_no_control_codes(terminal: Terminal) -> None:
    before = len(terminal.seen)
    terminal.child.send("hostile\r")
    terminal.wait_for("word3")
    out = terminal.seen[before:]
    assert "]52;" not in out.replace("\u241b]52;", "")
    assert "\x1b]" not in out
    assert "\x9d" not in out
    assert "\u202e" not in out
    assert "[red]x[/red]" in out
    assert "\u241b]52;" in out
