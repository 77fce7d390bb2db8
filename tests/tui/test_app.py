"""Every action, on a fake session."""

import asyncio
import itertools
from pathlib import Path

import pytest
from textual import events as input_events
from textual.widgets import Input, OptionList

from rwkv_chat.chat import events
from rwkv_chat.chat.tree import Finish, Role
from rwkv_chat.errors import SettingsError, StoreFullError
from rwkv_chat.tui.actions import ACTIONS
from rwkv_chat.tui.app import ChatApp
from rwkv_chat.tui.screens.help import HelpScreen
from rwkv_chat.tui.screens.settings import SettingsScreen
from rwkv_chat.tui.widgets.composer import Composer
from rwkv_chat.tui.widgets.sidebar import Sidebar
from rwkv_chat.tui.widgets.transcript import Transcript
from tests.tui.fake_session import FakeSession
from tests.tui.helpers import asynchronous, running, screen_text, settled


def one_exchange(session: FakeSession | None = None) -> FakeSession:
    """A session with one conversation of two turns."""
    session = session or FakeSession()
    chat = session.create(title="First")
    session.fill(chat.id, [(Role.USER, "question"), (Role.ASSISTANT, "answer")])
    return session


def path(app: ChatApp) -> list[str]:
    assert app.conversation is not None
    return [turn.text for turn in app.conversation.path()]


@asynchronous
async def test_the_first_screen_says_what_to_do() -> None:
    async with running(FakeSession()) as (app, _):
        text = screen_text(app)
        assert "rwkv-chat" in text
        assert "Enter" in text
        assert "F1" in text
        assert app.focused is app.composer


@asynchronous
async def test_enter_sends_and_the_answer_streams_in() -> None:
    async with running(FakeSession()) as (app, pilot):
        await pilot.press(*"hello", "enter")
        await settled(app, pilot)
        assert path(app) == ["hello", "You said: hello"]
        assert "You said: hello" in screen_text(app)
        assert app.composer.text == ""


@asynchronous
async def test_new_lines_do_not_send_and_pasting_never_does() -> None:
    session = FakeSession()
    async with running(session) as (app, pilot):
        await pilot.press("a", "ctrl+j", "b", "alt+enter", "c")
        assert app.composer.text == "a\nb\nc"
        app.composer.post_message(input_events.Paste("x\r\ny\rz\x1b[31m"))
        await pilot.pause()
        assert app.composer.text == "a\nb\ncx\ny\nz\u241b[31m"
        assert session.conversations() == []


@asynchronous
async def test_the_composer_grows_but_not_over_everything() -> None:
    async with running(FakeSession()) as (app, pilot):
        small = app.composer.size.height
        app.composer.put("\n" * 3)
        await pilot.pause()
        assert app.composer.size.height == small + 3
        app.composer.put("\n" * 30)
        await pilot.pause()
        assert app.composer.size.height == 8


@asynchronous
async def test_escape_stops_and_ctrl_t_continues_where_it_stopped() -> None:
    session = FakeSession(lambda text: [f"{n} " for n in range(20)])
    session.held = True
    async with running(session) as (app, pilot):
        await pilot.press("x", "enter")
        await asyncio.sleep(0.05)
        await pilot.pause()
        assert app.busy
        await pilot.press("escape")
        await settled(app, pilot)
        assert app.conversation is not None
        assert app.conversation.path()[-1].finish is Finish.CANCELLED
        kept = path(app)[-1]
        assert kept.startswith("0 ")
        assert len(kept) < 40
        assert "stopped — Ctrl+T continues" in screen_text(app)
        session.held = False
        await pilot.press("ctrl+t")
        await settled(app, pilot)
        assert path(app)[-1] == "".join(f"{n} " for n in range(20))


@asynchronous
async def test_regenerate_makes_a_sibling_and_keys_step_between_them() -> None:
    answers = (f"answer {n}" for n in itertools.count(1))
    session = FakeSession(lambda text: [next(answers)])
    async with running(session) as (app, pilot):
        await pilot.press("q", "enter")
        await settled(app, pilot)
        await pilot.press("ctrl+r")
        await settled(app, pilot)
        assert path(app) == ["q", "answer 2"]
        assert "‹ 2/2 ›" in screen_text(app)
        await pilot.press("alt+left")
        await pilot.pause()
        assert path(app) == ["q", "answer 1"]
        assert "‹ 1/2 ›" in screen_text(app)
        await pilot.press("shift+tab", "right")
        await pilot.pause()
        assert path(app) == ["q", "answer 2"]


@asynchronous
async def test_editing_makes_a_branch_and_the_other_one_is_marked() -> None:
    session = one_exchange()
    async with running(session) as (app, pilot):
        await pilot.press(*"draft", "alt+e")
        assert app.composer.text == "question"
        await pilot.press("s", "enter")
        await settled(app, pilot)
        assert path(app) == ["questions", "You said: questions"]
        assert app.composer.text == "draft"
        assert "2 turns in other branches" in screen_text(app)
        assert app.conversation is not None
        assert len(app.conversation.turns) == 4


@asynchronous
async def test_escape_leaves_editing_and_gives_the_draft_back() -> None:
    async with running(one_exchange()) as (app, pilot):
        await pilot.press(*"draft", "alt+e", "x", "escape")
        assert app.composer.text == "draft"
        assert app.pane.editing is None
        assert path(app) == ["question", "answer"]


@asynchronous
async def test_an_answer_can_be_edited_too() -> None:
    async with running(one_exchange()) as (app, pilot):
        await pilot.press("up", "alt+e")
        assert app.composer.text == "answer"
        await pilot.press("!", "enter")
        await pilot.pause()
        assert path(app) == ["question", "answer!"]


@asynchronous
async def test_fork_from_a_turn() -> None:
    session = one_exchange()
    async with running(session) as (app, pilot):
        await pilot.press("up", "up", "alt+f")
        await pilot.pause()
        assert path(app) == ["question"]
        assert len(session.conversations()) == 2


@asynchronous
async def test_rename_delete_and_undo() -> None:
    session = one_exchange()
    async with running(session) as (app, pilot):
        await pilot.press("f2")
        await pilot.pause()
        app.screen.query_one(Input).value = "[b]New[/b] title"
        await pilot.press("enter")
        await pilot.pause()
        assert session.conversations()[0].title == "[b]New[/b] title"
        assert "[b]New[/b] title" in screen_text(app)
        await pilot.press("f8")
        await pilot.pause()
        assert session.conversations() == []
        assert app.conversation is None
        assert any("F9 brings it back" in str(n.message) for n in app._notifications)
        await pilot.press("f9")
        await pilot.pause()
        assert path(app) == ["question", "answer"]


@asynchronous
async def test_labels_are_shown() -> None:
    async with running(one_exchange()) as (app, pilot):
        await pilot.press("alt+l")
        await pilot.pause()
        await pilot.press(*"good", "enter")
        await pilot.pause()
        assert "⚑ good" in screen_text(app)


@asynchronous
async def test_a_new_chat_keeps_what_was_typed_in_the_old_one() -> None:
    session = one_exchange()
    async with running(session) as (app, pilot):
        await pilot.press(*"unsent", "ctrl+n")
        await pilot.pause()
        assert app.conversation is None
        assert app.composer.text == ""
        await pilot.press("ctrl+o", "enter")
        await pilot.pause()
        assert path(app) == ["question", "answer"]
        assert app.composer.text == "unsent"


@asynchronous
async def test_a_model_is_chosen_from_a_list() -> None:
    session = FakeSession()
    async with running(session) as (app, pilot):
        await pilot.press("ctrl+l")
        await pilot.pause()
        assert app.screen.query_one(OptionList).highlighted == 0
        await pilot.press("down", "enter")
        await pilot.pause()
        assert session.opened == ["fake-1.5b"]
        assert "fake-1.5b" in screen_text(app)
        assert app.status_line.status.state_bytes == 2_400_000


@asynchronous
async def test_settings_are_checked_before_they_are_kept() -> None:
    session = one_exchange()
    async with running(session) as (app, pilot):
        await pilot.press("ctrl+g")
        await pilot.pause()
        for value, message in (
            ("warm", "Temperature must be a number"),
            ("11", "temperature must lie between"),
            ("nan", "temperature must be a number"),
        ):
            app.screen.query_one("#temperature", Input).value = value
            await pilot.press("enter")
            await pilot.pause()
            assert isinstance(app.screen, SettingsScreen)
            assert message in screen_text(app)
        app.screen.query_one("#temperature", Input).value = "0,7"
        app.screen.query_one("#start", Input).value = "no/such/state.pth"
        await pilot.press("enter")
        await pilot.pause()
        assert "Start state must be a file" in screen_text(app)
        app.screen.query_one("#start", Input).value = __file__
        app.screen.query_one("#seed", Input).value = "42"
        app.screen.query_one("#system", Input).value = "Be brief.\\nBe kind."
        await pilot.press("enter")
        await pilot.pause()
        options = session.options(app.current)
        assert options.sampling.temperature == 0.7
        assert options.sampling.seed == 42
        assert options.system == "Be brief.\nBe kind."
        assert options.start == str(Path(__file__).absolute())
        assert session.options(None).sampling.temperature == 1.0


@asynchronous
async def test_choices_of_new_conversations_are_remembered() -> None:
    session, told = FakeSession(), []
    one_exchange(session)
    async with running(session, remember=lambda **choices: told.append(choices)) as (app, pilot):
        for longest in ("300", "700"):
            await pilot.press("ctrl+g")
            await pilot.pause()
            app.screen.query_one("#max_tokens", Input).value = longest
            await pilot.press("enter")
            await pilot.pause()
            await pilot.press("ctrl+n")
            await pilot.pause()
    assert told == [{"max_tokens": 700}]


@asynchronous
async def test_a_model_is_remembered_once_it_is_ready() -> None:
    session, told = FakeSession(), []
    open_model = session.open_model
    session.open_model = lambda name, conversation: session.opened.append(name)  # type: ignore[method-assign, misc]
    async with running(session, remember=lambda **choices: told.append(choices)) as (app, pilot):

        async def choose() -> None:
            await pilot.press("ctrl+l")
            await pilot.pause()
            await pilot.press("down", "enter")
            await pilot.pause()

        await choose()
        assert session.opened == ["fake-1.5b"]
        session.emit(events.ModelFailed("fake-1.5b", "It is damaged."))
        await settled(app, pilot)
        session.emit(events.ModelReady("fake-0.1b", "fake", 1))
        await settled(app, pilot)
        assert told == []
        session.open_model = open_model  # type: ignore[method-assign]
        await choose()
        await settled(app, pilot)
    assert told == [{"model": "fake-1.5b"}]


@asynchronous
async def test_a_theme_is_remembered_and_a_failure_to_do_so_is_told() -> None:
    told: list[dict[str, object]] = []

    def remember(**choices: object) -> None:
        told.append(choices)
        raise SettingsError("Cannot write the settings file.")

    async with running(FakeSession(), theme="rwkv-light", remember=remember) as (app, pilot):
        await settled(app, pilot)
        assert told == []
        app.theme = "nord"
        await settled(app, pilot)
        assert told == [{"theme": "nord"}]
        assert [note.message for note in app._notifications] == ["Cannot write the settings file."]


@asynchronous
async def test_help_lists_every_key_and_the_palette_every_action() -> None:
    async with running(FakeSession(), keymap={"chat.new": "f12"}) as (app, pilot):
        await pilot.press("f1")
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen)
        shown = {what for _, rows in app.screen._groups for _, what in rows}
        assert shown >= {action.title for action in ACTIONS if action.keys}
        assert ("F12", "New conversation") in dict(app.screen._groups)["Conversations"]
        await pilot.press("escape")
        offered = {command.title for command in app.get_system_commands(app.screen)}
        assert offered == {action.title for action in ACTIONS if action.palette}


@asynchronous
async def test_keys_can_be_remapped() -> None:
    keymap = {"chat.new": "f12", "composer.send": "ctrl+s", "composer.newline": "enter"}
    async with running(one_exchange(), keymap=keymap) as (app, pilot):
        await pilot.press("f12")
        await pilot.pause()
        assert app.conversation is None
        await pilot.press("a", "enter", "b")
        assert app.composer.text == "a\nb"
        await pilot.press("ctrl+s")
        await settled(app, pilot)
        assert path(app)[0] == "a\nb"


def test_no_key_is_bound_twice_or_forbidden() -> None:
    forbidden = {"ctrl+i", "ctrl+m", "ctrl+h", "ctrl+[", "ctrl+left_square_bracket"}
    forbidden |= {"ctrl+a", "ctrl+b"}
    keys = [key for action in ACTIONS for key in action.keys.split(",") if key]
    assert len(keys) == len(set(keys))
    ids = [action.id for action in ACTIONS]
    for widget in (Composer, Transcript, Sidebar):
        for binding in widget.BINDINGS:
            keys += binding.key.split(",")
            ids.append(binding.id)
    assert not forbidden & set(keys)
    assert len(ids) == len(set(ids))
    assert all(ids)


@asynchronous
async def test_quit_keeps_a_running_answer_and_asks_once_about_a_draft() -> None:
    session = FakeSession(lambda text: ["one ", "two "])
    session.held = True
    async with running(session) as (app, pilot):
        await pilot.press("x", "enter")
        await asyncio.sleep(0.05)
        await pilot.press("d", "ctrl+q")
        await pilot.pause()
        assert app.is_running
        assert app.composer.text == "d"
        conversation = app.current
        assert conversation is not None
        await pilot.press("ctrl+q")
        await pilot.pause()
    assert app.return_code == 0
    assert session.load(conversation).path()[-1].finish is Finish.CANCELLED
    assert session.load(conversation).path()[-1].text.startswith("one ")


@asynchronous
async def test_a_failure_is_a_sentence_and_the_text_stays() -> None:
    session = FakeSession()

    def full(*_: object, **__: object) -> None:
        raise StoreFullError("The disk is full; free some space. [bold]\x1b[1m")

    session.send = full  # type: ignore[method-assign, assignment]
    async with running(session) as (app, pilot):
        await pilot.press(*"precious", "enter")
        await pilot.pause(0.3)
        assert app.composer.text == "precious"
        text = screen_text(app)
        assert "The disk is full" in text
        assert "[bold]" in text
        assert "\x1b" not in text


@asynchronous
async def test_sending_waits_for_the_model_and_keys_work_meanwhile() -> None:
    session = FakeSession(model=None)
    session.default = "big"
    session._stream = lambda *_: None  # type: ignore[method-assign]
    async with running(session) as (app, pilot):
        session.emit(events.ModelLoading("big", "reading tensors", 0.42))
        await pilot.pause()
        assert "opening big: reading tensors 42%" in screen_text(app)
        await pilot.press(*"hello", "enter")
        await pilot.pause()
        assert path(app)[0] == "hello"
        session.finish_loading("big", 1)
        await pilot.press(*"more")
        await pilot.pause()
        assert app.composer.text == "more"
        assert "big · f32" in screen_text(app)


@asynchronous
async def test_what_happens_before_the_first_paint_is_not_missed() -> None:
    session = FakeSession(model=None)
    session.default = "early"
    app = ChatApp(session)  # type: ignore[arg-type]
    session.finish_loading("early", 203_000)
    async with app.run_test(size=(100, 20)) as pilot:
        await pilot.pause()
        assert "early · f32 · state 203 kB" in screen_text(app)


@asynchronous
async def test_letters_typed_in_the_transcript_begin_a_message() -> None:
    async with running(one_exchange()) as (app, pilot):
        await pilot.press("up")
        assert app.focused is app.transcript
        await pilot.press("h", "i")
        assert app.composer.text == "hi"
        assert app.focused is app.composer


@asynchronous
async def test_a_failed_answer_says_why_and_can_be_continued() -> None:
    session = one_exchange()
    chat = session.conversations()[0].id
    turn = session.add(chat, Role.ASSISTANT, "half", finish=Finish.ERROR)
    async with running(session) as (app, pilot):
        session.emit(events.AnswerFailed(chat, turn.id, "The model produced NaN."))
        await pilot.pause()
        text = screen_text(app)
        assert "■ failed: The model produced NaN. — Ctrl+T continues" in text
        assert "half" in text


@asynchronous
async def test_events_of_other_conversations_do_not_disturb() -> None:
    session = one_exchange()
    other = session.create(title="Other")
    session.fill(other.id, [(Role.USER, "there")])
    async with running(session) as (app, pilot):
        app.open_conversation(session.conversations()[-1].id)
        await pilot.pause()
        before = path(app)
        session.emit(events.AnswerGrew(other.id, "t99", "secret", 1, 1.0))
        await pilot.pause()
        assert path(app) == before
        assert "secret" not in screen_text(app)


@asynchronous
@pytest.mark.parametrize(
    "title", ["[red]x[/red]", "[@click=app.quit]x[/]", "a\x1b]52;c;x\x07b", "\u202eabc"]
)
async def test_hostile_titles_and_turns_are_shown_literally(title: str) -> None:
    session = FakeSession()
    chat = session.create(title=title)
    session.fill(chat.id, [(Role.USER, title), (Role.ASSISTANT, f"{title}\n```\n{title}\n```")])
    session.label(chat.id, session.load(chat.id).head or "", title)
    async with running(session) as (app, pilot):
        for key in (None, "f2", "escape", "f8"):
            if key:
                await pilot.press(key)
                await pilot.pause(0.3)
            text = screen_text(app)
            assert not any(ord(c) < 32 and c != "\n" for c in text)
            assert "\u202e" not in text
        if title.startswith("["):
            assert text.count(title) >= 1
        assert app.is_running


@asynchronous
async def test_every_theme_can_be_worn() -> None:
    async with running(one_exchange(), size=(60, 16), theme="no such theme") as (app, pilot):
        assert app.theme in ("rwkv-dark", "rwkv-light")
        for name in app.available_themes:
            app.theme = name
            await pilot.pause()
            assert "answer" in screen_text(app)


@asynchronous
async def test_scrolling_with_the_wheel_lets_go_of_the_end_and_finds_it_again() -> None:
    session = FakeSession()
    chat = session.create(title="x")
    session.fill(chat.id, [(Role.ASSISTANT, "\n".join(f"line {n}" for n in range(200)))])
    async with running(session, size=(80, 20)) as (app, pilot):
        await pilot.pause()
        assert app.transcript.following
        for _ in range(5):
            app.transcript._on_mouse_scroll_up(
                input_events.MouseScrollUp(app.transcript, 1, 1, 0, -1, 0, False, False, False)
            )
            await pilot.pause()
        assert not app.transcript.following
        assert "line 199" not in screen_text(app)
        for _ in range(12):
            app.transcript._on_mouse_scroll_down(
                input_events.MouseScrollDown(app.transcript, 1, 1, 0, 1, 0, False, False, False)
            )
            await pilot.pause()
        assert app.transcript.following
        assert "line 199" in screen_text(app)


@asynchronous
async def test_slow_beginnings_wait_for_the_window() -> None:
    session = FakeSession()
    begun: list[str] = []
    async with running(session, on_painted=lambda: begun.append("now")) as (app, pilot):
        await settled(app, pilot)
        assert begun == ["now"]


@asynchronous
async def test_a_notice_is_shown() -> None:
    session = FakeSession()
    async with running(session) as (app, pilot):
        session.emit(events.Notice("The store was repaired."))
        await settled(app, pilot)
        assert "The store was repaired." in [note.message for note in app._notifications]


@asynchronous
async def test_the_list_leaves_when_the_window_shrinks_and_comes_back() -> None:
    async with running(one_exchange(), (120, 40)) as (app, pilot):
        sidebar = app.query_one(Sidebar)
        assert sidebar.display
        await pilot.resize_terminal(40, 12)
        await settled(app, pilot)
        assert not sidebar.display
        await pilot.resize_terminal(120, 40)
        await settled(app, pilot)
        assert sidebar.display


@asynchronous
@pytest.mark.parametrize("key", ["f2", "ctrl+l", "ctrl+g"])
async def test_enter_twice_in_a_dialog_is_enter_once(key: str) -> None:
    async with running(one_exchange()) as (app, pilot):
        await pilot.press(key)
        await pilot.pause()
        field = app.screen.query(Input).first() if key != "ctrl+l" else None
        for _ in range(2):
            if field is not None:
                field.post_message(Input.Submitted(field, "7"))
            else:
                app.screen.query_one(OptionList).action_select()
        await pilot.pause()
        assert app.is_running
        assert len(app.screen_stack) == 1
