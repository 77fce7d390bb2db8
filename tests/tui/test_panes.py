"""Panes side by side, on a fake session."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.pilot import Pilot

from rwkv_chat.chat import events
from rwkv_chat.chat.tree import Finish, Role
from rwkv_chat.tui.app import ChatApp
from rwkv_chat.tui.layout import Layout, Place
from rwkv_chat.tui.widgets.pane import Pane
from tests.tui.fake_session import FakeSession
from tests.tui.helpers import asynchronous, running, screen_text, settled, until

WIDE = (170, 40)


def two_chats(model: str = "fake-0.1b") -> FakeSession:
    """Two conversations; the second one was changed last."""
    session = FakeSession(model=model)
    for title in ("First", "Second"):
        chat = session.create(title=title)
        turns = [(Role.USER, f"{title} question"), (Role.ASSISTANT, f"{title} answer")]
        session.fill(chat.id, turns)
    return session


def shown(pane: Pane) -> list[str]:
    return [turn.text for turn in pane.conversation.path()] if pane.conversation else []


def titles(app: ChatApp) -> list[str]:
    """The lines above the panes, as far as they are on screen."""
    lines = screen_text(app).split("\n")
    regions = [p.title.region for p in app.panes.panes if p.display and p.title.display]
    return [lines[region.y][region.x : region.right].rstrip() for region in regions]


async def press(pilot: Pilot[None], *keys: str) -> None:
    await pilot.press(*keys)
    await pilot.pause()


async def beside(app: ChatApp, pilot: Pilot[None]) -> None:
    """Second on the left; First, from the list, on the right and focused."""
    await press(pilot, "ctrl+o", "down", "alt+n")
    await until(pilot, lambda: "First answer" in screen_text(app))
    assert [shown(pane)[0] for pane in app.panes.panes] == ["Second question", "First question"]


@asynchronous
async def test_one_pane_has_no_title_and_says_that_it_is_the_only_one() -> None:
    async with running(two_chats()) as (app, pilot):
        assert titles(app) == []
        await press(pilot, "f4", "alt+w", "alt+3")
        said = " ".join(str(note.message) for note in app._notifications)
        assert "Alt+N opens another" in said
        assert "only pane, and stays" in said
        assert "no pane 3" in said
        assert len(app.panes.panes) == 1


@asynchronous
async def test_a_pane_opens_with_a_new_conversation_and_the_other_one_stays() -> None:
    session = two_chats()
    async with running(session, WIDE) as (app, pilot):
        await press(pilot, *"draft", "alt+n")
        assert app.conversation is None
        assert app.composer.text == ""
        assert app.focused is app.composer
        await press(pilot, *"hello", "enter")
        await settled(app, pilot)
        left, right = app.panes.panes
        assert shown(left) == ["Second question", "Second answer"]
        assert shown(right) == ["hello", "You said: hello"]
        assert session.shown == {left.current, right.current}
        text = screen_text(app)
        assert "Second answer" in text
        assert "You said: hello" in text
        words = [title.split() for title in titles(app)]
        assert words == [["Second", "fake-0.1b"], ["▶", "hello", "fake-0.1b"]]
        await press(pilot, "f3")
        assert app.composer.text == "draft"
        assert [title[:1] for title in titles(app)] == ["▶", " "]


@asynchronous
async def test_the_list_opens_a_conversation_beside_or_in_the_focused_pane() -> None:
    async with running(two_chats(), WIDE) as (app, pilot):
        await beside(app, pilot)
        await press(pilot, "ctrl+o", "enter")
        assert shown(app.panes.panes[1])[0] == "First question"
        await press(pilot, "ctrl+o", "up", "enter")
        assert [shown(pane)[0] for pane in app.panes.panes] == ["Second question"] * 2
        await press(pilot, "ctrl+o", "down", "p")
        assert len(app.panes.panes) == 3
        assert shown(app.pane)[0] == "First question"


@asynchronous
async def test_the_transcript_opens_the_same_conversation_up_to_the_selected_turn() -> None:
    session = two_chats()
    chat = session.conversations()[0].id
    session.fill(chat, [(Role.USER, "more"), (Role.ASSISTANT, "much more")])
    async with running(session, WIDE) as (app, pilot):
        await press(pilot, "up", "up", "up")
        assert app.transcript.target is not None
        assert app.transcript.target.text == "Second answer"
        await press(pilot, "alt+n")
        left, right = app.panes.panes
        assert len(shown(left)) == 4
        assert shown(right) == ["Second question", "Second answer"]
        assert "▾ 2 turns follow here" in screen_text(app)
        await press(pilot, *"other", "enter")
        await settled(app, pilot)
        assert shown(right)[2:] == ["other", "You said: other"]
        assert shown(left)[2:] == ["more", "much more"]
        assert screen_text(app).count("‹ 1/2 ›") == 1
        assert screen_text(app).count("‹ 2/2 ›") == 1


@asynchronous
async def test_down_at_the_end_of_a_path_shows_what_follows() -> None:
    session = two_chats()
    async with running(session, WIDE) as (app, pilot):
        await press(pilot, "up", "up", "alt+n")
        assert shown(app.pane) == ["Second question", "Second answer"]
        chat = session.load(app.current or "")
        app.open_conversation(chat.id, chat.path()[0].id)
        await pilot.pause()
        assert "▾ 1 turn follows here" in screen_text(app)
        await press(pilot, "up", "down")
        assert shown(app.pane) == ["Second question", "Second answer"]
        assert "follow" not in screen_text(app)


@asynchronous
async def test_alternatives_are_compared_side_by_side() -> None:
    session = two_chats()
    async with running(session, WIDE) as (app, pilot):
        await press(pilot, "ctrl+r")
        await settled(app, pilot)
        await press(pilot, "up", "alt+n", "alt+left")
        left, right = app.panes.panes
        assert shown(left)[-1] == "You said: Second question"
        assert shown(right)[-1] == "Second answer"
        text = screen_text(app)
        assert "‹ 1/2 ›" in text
        assert "‹ 2/2 ›" in text


@asynchronous
async def test_answers_stream_in_panes_without_the_focus_and_escape_stops_only_its_own() -> None:
    session = two_chats()
    session.held = True
    session.script = lambda text: [f"{text} one ", f"{text} two "]
    async with running(session, WIDE) as (app, pilot):
        await beside(app, pilot)
        for text in ("right", "left"):
            await press(pilot, *text, "enter", "f4")
        left, right = app.panes.panes
        assert app.pane is right
        for _ in range(100):
            await pilot.pause()
            if "left one" in screen_text(app) and "right one" in screen_text(app):
                break
            await asyncio.sleep(0.01)
        assert [title.split()[-2] for title in titles(app)] == ["Second", "First"]
        assert all("●" in title for title in titles(app))
        await press(pilot, "escape")
        for _ in range(100):
            await pilot.pause()
            if not app.busy:
                break
            await asyncio.sleep(0.01)
        assert not session.busy(right.current or "")
        assert session.busy(left.current or "")
        await press(pilot, "f4")
        assert "Esc stops" in screen_text(app)
        session.release.set()
        await settled(app, pilot)
        await pilot.pause()
        assert right.conversation is not None
        assert right.conversation.path()[-1].finish is Finish.CANCELLED
        assert shown(left)[-1] == "left one left two "


@asynchronous
async def test_two_branches_of_one_conversation_are_answered_at_once() -> None:
    session = two_chats()
    session.held = True
    session.script = lambda text: [f"{text}! ", f"{text}!!"]
    async with running(session, WIDE) as (app, pilot):
        await press(pilot, "up", "alt+n", *"bb", "enter", "f3", *"aa", "enter")
        left, right = app.panes.panes
        assert left.current == right.current
        assert len(session.running(left.current or "")) == 2
        session.release.set()
        await settled(app, pilot)
        assert shown(left)[-1] == "aa! aa!!"
        assert shown(right)[-1] == "bb! bb!!"


@asynchronous
async def test_what_would_hide_a_running_answer_waits() -> None:
    session = two_chats()
    session.held = True
    async with running(session, WIDE) as (app, pilot):
        await press(pilot, "x", "enter")
        before = len(session.load(app.current or "").turns)
        await press(pilot, "ctrl+r")
        await press(pilot, "alt+left")
        await press(pilot, "alt+e", *"y", "enter")
        assert len(session.load(app.current or "").turns) == before
        assert app.composer.text == "xy"
        said = [str(note.message) for note in app._notifications]
        assert "An answer is still running here; Esc stops it." in said


@asynchronous
async def test_the_status_line_and_the_choice_of_a_model_are_those_of_the_focused_pane() -> None:
    session = two_chats()
    async with running(session, WIDE) as (app, pilot):
        await beside(app, pilot)
        await press(pilot, "ctrl+l")
        await press(pilot, "down", "enter")
        left, right = app.panes.panes
        assert app.status_line.status.model == "fake-1.5b"
        assert app.status_line.status.state_bytes == 2_400_000
        assert [title.split()[-1] for title in titles(app)] == ["fake-0.1b", "fake-1.5b"]
        await press(pilot, "f4")
        assert app.status_line.status.model == "fake-0.1b"
        assert app.status_line.status.state_bytes == 1000
        for pane in (left, right):
            app.focus_pane(pane)
            await press(pilot, *"go", "enter")
            await settled(app, pilot)
        models = [pane.conversation.path()[-1].model for pane in (left, right) if pane.conversation]
        assert models == ["fake-0.1b", "fake-1.5b"]


@asynchronous
async def test_new_conversations_beside_each_other_have_models_of_their_own() -> None:
    session = FakeSession()
    async with running(session, WIDE) as (app, pilot):
        await press(pilot, "alt+n", "ctrl+l")
        await press(pilot, "down", "enter")
        await settled(app, pilot)
        assert [title.split()[-1] for title in titles(app)] == ["fake-0.1b", "fake-1.5b"]
        for _ in range(2):
            await press(pilot, "x", "enter", "f4")
            await settled(app, pilot)
        models = [p.conversation.path()[-1].model for p in app.panes.panes if p.conversation]
        assert models == ["fake-0.1b", "fake-1.5b"]


@asynchronous
async def test_the_snapshot_of_the_focused_pane_is_marked() -> None:
    session = two_chats()
    async with running(session, WIDE) as (app, pilot):
        assert "saved" not in screen_text(app)
        await beside(app, pilot)
        session.snapshots.add(app.pane.leaf or "")
        session.emit(events.ConversationChanged(app.current or ""))
        await pilot.pause()
        assert "state 1.0 kB ◆ saved" in screen_text(app)
        await press(pilot, "f4")
        assert "saved" not in screen_text(app)


@asynchronous
async def test_editing_goes_on_when_one_comes_back() -> None:
    session = two_chats()
    async with running(session, WIDE) as (app, pilot):
        await beside(app, pilot)
        await press(pilot, *"mine", "alt+e", "!", "f4")
        assert app.composer.text == ""
        assert not app.composer.has_class("-editing")
        await press(pilot, "f4")
        assert app.composer.text == "First question!"
        assert app.composer.has_class("-editing")
        await press(pilot, "enter")
        await settled(app, pilot)
        assert shown(app.pane) == ["First question!", "You said: First question!"]
        assert app.composer.text == "mine"


@asynchronous
async def test_closing_a_pane_keeps_its_conversation_and_what_was_typed() -> None:
    session = two_chats()
    async with running(session, WIDE) as (app, pilot):
        await beside(app, pilot)
        await press(pilot, *"later", "alt+w")
        assert [shown(pane)[0] for pane in app.panes.panes] == ["Second question"]
        assert titles(app) == []
        assert app.composer.text == ""
        assert len(session.conversations()) == 2
        await press(pilot, "ctrl+o", "down", "enter")
        assert shown(app.pane)[0] == "First question"
        assert app.composer.text == "later"


@asynchronous
async def test_there_is_room_for_four() -> None:
    async with running(two_chats(), (240, 40)) as (app, pilot):
        await press(pilot, "alt+n", "alt+n", "alt+n", "alt+n")
        assert len(app.panes.panes) == 4
        assert any("room for 4 panes" in str(note.message) for note in app._notifications)
        for number in (2, 4, 1, 3):
            await press(pilot, f"alt+{number}")
            assert app.panes.number == number - 1
            assert [title[:1] for title in titles(app)].index("▶") == number - 1


@asynchronous
async def test_a_click_turns_to_a_pane_and_tab_stays_in_the_focused_one() -> None:
    async with running(two_chats(), WIDE) as (app, pilot):
        await beside(app, pilot)
        left, right = app.panes.panes
        await pilot.click(left, offset=(10, 4))
        await pilot.pause()
        assert app.pane is left
        await press(pilot, "shift+tab")
        assert app.focused is left.transcript
        await pilot.click(right.title, offset=(5, 0))
        await pilot.pause()
        assert app.pane is right
        await press(pilot, *"to the right")
        assert app.composer.text.endswith("right")


@asynchronous
@pytest.mark.parametrize("size", [(40, 12), (80, 24), (99, 30)])
async def test_where_not_all_fit_the_focused_one_shows_and_tells_its_place(
    size: tuple[int, int],
) -> None:
    session = two_chats()
    async with running(session, size) as (app, pilot):
        await beside(app, pilot)
        assert [title.split()[-1] for title in titles(app)] == ["2/2"]
        assert "First answer" in screen_text(app)
        assert "Second answer" not in screen_text(app)
        session.held = True
        await press(pilot, *"x", "enter", "f4")
        assert [title.split()[-2:] for title in titles(app)] == [["1/2", "●"]]
        assert "Second answer" in screen_text(app)
        assert not app.sidebar.display
        session.release.set()
        await pilot.resize_terminal(*WIDE)
        await settled(app, pilot)
        assert len(titles(app)) == 2
        assert "x" in shown(app.panes.panes[1])


@asynchronous
async def test_panes_take_the_room_of_the_list_until_it_is_asked_for() -> None:
    async with running(two_chats(), (120, 40)) as (app, pilot):
        assert app.sidebar.display
        await beside(app, pilot)
        assert not app.sidebar.display
        assert [pane.size.width >= 50 for pane in app.panes.panes] == [True, True]
        await press(pilot, "ctrl+o")
        assert app.sidebar.has_class("-over")
        assert len(titles(app)) == 2


@asynchronous
async def test_a_failure_in_one_pane_does_not_touch_the_other() -> None:
    session = two_chats()
    async with running(session, WIDE) as (app, pilot):
        await beside(app, pilot)
        left, right = app.panes.panes
        turn = session.add(left.current or "", Role.ASSISTANT, "half", finish=Finish.ERROR)
        left.bind(session.load(left.current or ""))
        await press(pilot, *"typing")
        session.emit(events.AnswerFailed(left.current or "", turn.id, "It broke."))
        await pilot.pause()
        assert "failed: It broke." in screen_text(app)
        assert app.pane is right
        assert app.composer.text == "typing"
        assert shown(right) == ["First question", "First answer"]


@asynchronous
async def test_deleting_a_conversation_closes_the_other_panes_that_show_it() -> None:
    session = two_chats()
    async with running(session, WIDE) as (app, pilot):
        await press(pilot, "up", "alt+n", "f8")
        assert len(app.panes.panes) == 1
        assert app.conversation is None
        await press(pilot, "f9")
        assert shown(app.pane) == ["Second question", "Second answer"]
        await beside(app, pilot)
        await press(pilot, "ctrl+o", "up", "d")
        assert [shown(pane) for pane in app.panes.panes] == [["First question", "First answer"]]
        assert session.shown == {app.current}


@asynchronous
async def test_quitting_asks_about_what_was_typed_in_any_pane() -> None:
    async with running(two_chats(), WIDE) as (app, pilot):
        await press(pilot, *"draft", "alt+n", "ctrl+q")
        assert app.is_running
        assert any("not sent" in str(note.message) for note in app._notifications)


@asynchronous
async def test_panes_come_back_at_the_next_start() -> None:
    session, kept = two_chats(), []
    async with running(session, WIDE, remember_layout=kept.append) as (app, pilot):
        await beside(app, pilot)
        await press(pilot, *"more", "enter")
        await settled(app, pilot)
        await press(pilot, "ctrl+r")
        await settled(app, pilot)
        await press(pilot, "f3", "alt+n", "f4")
        places = [(pane.current, pane.leaf) for pane in app.panes.panes]
    assert len(places) == 3
    layout = Layout.from_json(kept[-1].to_json())
    async with running(session, WIDE, layout=layout) as (app, pilot):
        found = [(pane.current, pane.leaf) for pane in app.panes.panes]
        assert found == [place for place in places if place[0]]
        assert app.panes.number == 1
        assert app.focused is app.composer


@asynchronous
async def test_a_layout_of_what_is_gone_falls_back_to_the_last_conversation() -> None:
    session = two_chats()
    chat = session.conversations()[1]
    gone = Layout((Place("nowhere", "t1"), Place(chat.id, "no such turn")), 0)
    async with running(session, WIDE, layout=gone) as (app, _):
        assert [shown(pane)[0] for pane in app.panes.panes] == ["First question"]
    async with running(session, layout=Layout((Place("nowhere", "t1"),), 0)) as (app, _):
        assert shown(app.pane)[0] == "Second question"


@asynchronous
async def test_a_model_that_was_asked_for_begins_a_new_conversation() -> None:
    for wanted, expected in (("fake-0.1b", "Second question"), ("other", None)):
        session = two_chats()
        session.default = wanted
        async with running(session, wanted=wanted) as (app, _):
            assert (shown(app.pane) or [None])[0] == expected


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=6)
            | st.dictionaries(
                st.sampled_from(["places", "focused", "conversation", "leaf"]), inner, max_size=4
            )
        ),
    )
)
def test_no_file_of_panes_is_more_than_can_be_shown(data: object) -> None:
    layout = Layout.from_json(data)
    assert len(layout.places) <= 4
    assert layout.focused == 0 or layout.focused < len(layout.places)
    assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout
