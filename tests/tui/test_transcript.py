"""The transcript: only what one sees is built, nothing is lost, nothing jumps."""

import random

import pytest
from rich.segment import Segment
from rich.style import Style
from textual.pilot import Pilot

from rwkv_chat.chat import events
from rwkv_chat.chat.tree import Finish, Role
from rwkv_chat.tui import entry
from rwkv_chat.tui.app import ChatApp
from rwkv_chat.tui.marking import with_mark
from rwkv_chat.tui.widgets.transcript import Transcript
from tests.tui.fake_session import FakeSession
from tests.tui.helpers import asynchronous, running, screen_text, settled


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of source lines of every chunk that was built, in order."""
    counts: list[int] = []
    for name in ("render_chunk", "render_plain"):
        original = getattr(entry, name)

        def counting(chunk, width, *rest, original=original):  # type: ignore[no-untyped-def]
            counts.append(len(chunk.lines))
            return original(chunk, width, *rest)

        monkeypatch.setattr(entry, name, counting)
    return counts


def long_session(turns: int, lines: int) -> FakeSession:
    session = FakeSession()
    chat = session.create(title="long")
    session.fill(
        chat.id,
        [
            (
                Role.ASSISTANT if n % 2 else Role.USER,
                "\n".join(f"turn {n} line {m}" for m in range(lines)),
            )
            for n in range(turns)
        ],
    )
    return session


@asynchronous
async def test_a_hundred_thousand_lines_build_only_what_is_on_screen(built: list[int]) -> None:
    async with running(long_session(1000, 100)) as (app, pilot):
        await pilot.pause()
        assert "turn 999 line 99" in screen_text(app)
        assert sum(built) <= 3 * 40 + 64
        for key in ("home", "pagedown", "pageup", "end", "pageup"):
            built.clear()
            await pilot.press("shift+tab" if app.focused is app.composer else key)
            await pilot.press(key)
            await pilot.pause()
            assert sum(built) <= 3 * 40 + 64
        assert app.transcript.virtual_size.height > 90_000


@asynchronous
async def test_one_turn_of_a_hundred_thousand_lines_streams_at_the_cost_of_its_tail(
    built: list[int],
) -> None:
    session = FakeSession()
    chat = session.create(title="long")
    session.fill(chat.id, [(Role.USER, "go")])
    turn = session.add(chat.id, Role.ASSISTANT, "", finish=Finish.PARTIAL)
    session._cancel[chat.id] = __import__("threading").Event()
    async with running(session) as (app, pilot):
        text = "".join(f"line {n}\n" for n in range(100_000))
        session.emit(events.AnswerGrew(chat.id, turn.id, text, 1, 1.0))
        await pilot.pause()
        assert "line 99999" in screen_text(app)
        for n in range(20):
            built.clear()
            text += f"word{n} "
            session.emit(events.AnswerGrew(chat.id, turn.id, text, 1, 1.0))
            await pilot.pause()
            assert f"word{n}" in screen_text(app)
            assert sum(built) <= 64
        session._cancel.clear()


@asynchronous
async def test_what_one_reads_does_not_move_while_the_answer_grows() -> None:
    session = FakeSession(lambda text: [f"new line {n}\n\n" for n in range(100)], step=0.002)
    chat = session.create(title="x")
    session.fill(chat.id, [(Role.USER, "q"), (Role.ASSISTANT, "\n".join(map(str, range(300))))])
    async with running(session) as (app, pilot):
        await pilot.press("x", "enter")
        app.transcript.focus()
        await pilot.press("pageup", "pageup")
        await pilot.pause()
        before = screen_text(app).splitlines()[5:20]
        await settled(app, pilot)
        assert screen_text(app).splitlines()[5:20] == before
        await pilot.press("end")
        await pilot.pause()
        assert "new line 99" in screen_text(app)
        assert app.transcript.following


@asynchronous
@pytest.mark.parametrize("seed", [1, 2])
async def test_resizing_keeps_the_place_and_never_fails(seed: int) -> None:
    rng = random.Random(seed)
    async with running(long_session(40, 30), size=(100, 30)) as (app, pilot):
        app.transcript.focus()
        await pilot.press("home", "pagedown", "pagedown", "pagedown")
        await pilot.pause()
        for _ in range(6):
            await pilot.resize_terminal(rng.randrange(1, 140), rng.randrange(1, 50))
            await pilot.pause()
        await pilot.resize_terminal(100, 30)
        await pilot.pause()
        transcript = app.transcript
        assert 0 <= transcript.scroll_offset.y <= transcript.max_scroll_y
        assert "turn" in screen_text(app)


@asynchronous
async def test_everything_fits_into_40_by_12() -> None:
    session = FakeSession(lambda text: ["A rather long answer that has to wrap more than once. "])
    async with running(session, size=(40, 12)) as (app, pilot):
        assert "Ctrl+P" in screen_text(app)
        await pilot.press("x", "enter")
        await settled(app, pilot)
        lines = screen_text(app).splitlines()
        assert len(lines) <= 12
        assert any("wrap more than once." in line or "once." in line for line in lines)
        assert lines[-1].strip()
        assert not app.sidebar.display
        for key in ("ctrl+o", "escape", "f1", "escape", "ctrl+g", "escape", "ctrl+l", "escape"):
            await pilot.press(key)
            await pilot.pause()
        await pilot.press("ctrl+o")
        await pilot.pause()
        assert app.sidebar.display


@asynchronous
async def test_streaming_loses_no_text() -> None:
    rng = random.Random(1)
    parts = [
        "word ",
        "\n",
        "```py\n",
        "`",
        "**",
        "漢",
        "\n\n",
        "| a | b |\n",
        "- item\n",
        "👩‍🚀",
        "\t",
        "# ",
    ]
    pieces = [rng.choice(parts) for _ in range(600)]
    session = FakeSession(lambda text: pieces)
    async with running(session) as (app, pilot):
        await pilot.press("x", "enter")
        await settled(app, pilot)
        assert app.conversation is not None
        head = app.conversation.path()[-1]
        assert head.text == "".join(pieces)
        assert app.transcript.text_of(head.id) == head.text


def _header(app: ChatApp, name: str) -> int:
    return next(n for n, line in enumerate(screen_text(app).splitlines()) if name in line)


async def _thinking(app: ChatApp, pilot: Pilot[None]) -> None:
    await pilot.press("x", "enter")
    await settled(app, pilot)


@asynchronous
async def test_thoughts_are_folded_when_they_are_over_and_open_on_a_key() -> None:
    session = FakeSession(lambda text: ["<think>secret\nplan", "</think>\nThe answer."])
    async with running(session) as (app, pilot):
        await _thinking(app, pilot)
        text = screen_text(app)
        assert "▸ thoughts · 2 lines" in text
        assert "secret" not in text
        assert "The answer." in text
        await pilot.press("alt+t")
        await pilot.pause()
        assert "secret" in screen_text(app)
        assert "▾ thoughts" in screen_text(app)
        await pilot.press("alt+up", "space")
        await pilot.pause()
        assert "secret" not in screen_text(app)


@asynchronous
async def test_thoughts_are_open_while_they_grow() -> None:
    session = FakeSession(lambda text: ["<think>secret plan", " and more"])
    session.held = True
    async with running(session) as (app, pilot):
        await pilot.press("x", "enter")
        for _ in range(100):
            await pilot.pause(0.01)
            if "secret plan" in screen_text(app):
                break
        assert "▾ thinking…" in screen_text(app)
        assert "secret plan" in screen_text(app)


@asynchronous
async def test_copying_uses_one_sequence_and_only_for_a_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = FakeSession()
    chat = session.create(title="x")
    session.fill(
        chat.id, [(Role.ASSISTANT, "Try\n\n```sh\nls -l\n```\nand\n```py\nx = 1\ny = 2\n```\nbye")]
    )
    sent: list[str] = []
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.setattr(ChatApp, "send_to_terminal", lambda self, text: sent.append(text))
    async with running(session) as (_, pilot):
        await pilot.pause()
        assert sent == []
        await pilot.press("alt+c", "alt+y")
        await pilot.pause()
        assert sent[0] == "\x1b]52;c;eCA9IDEKeSA9IDI=\x07"
        assert len(sent) == 2


@asynchronous
async def test_text_marked_with_the_mouse_is_copied_by_ctrl_c(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = FakeSession()
    chat = session.create(title="x")
    session.fill(chat.id, [(Role.USER, "漢字 first line\nsecond line\nthird line")])
    sent: list[str] = []
    monkeypatch.setattr(ChatApp, "copy_text", lambda self, text, what: sent.append(text))
    async with running(session, size=(80, 20)) as (app, pilot):
        lines = screen_text(app).splitlines()
        row = next(n for n, line in enumerate(lines) if "first" in line)
        top = app.transcript.region.y
        column = lines[row].index("first") + 2  # two wide characters before it
        await pilot.mouse_down(Transcript, offset=(column, row - top))
        await pilot.hover(Transcript, offset=(8, row + 2 - top))
        await pilot.mouse_up(Transcript, offset=(8, row + 2 - top))
        await pilot.pause()
        await pilot.press("ctrl+c")
        await pilot.pause()
        assert sent == ["first line\nsecond line\nthird l"]


def test_marks_cut_segments_by_characters() -> None:
    plain, marked = Style(), Style(reverse=True)
    segments = [Segment("ab", plain), Segment("漢字", plain)]
    assert with_mark(segments, 1, 3, marked) == [
        Segment("a", plain),
        Segment("b", marked),
        Segment("漢", marked),
        Segment("字", plain),
    ]
    assert "".join(s.text for s in with_mark(segments, 3, -1, marked)) == "ab漢字"
