"""An RWKV-4 and an RWKV-7 conversation side by side: the interface, the store and real models."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import OptionList

from rwkv_chat.chat import events
from rwkv_chat.chat.options import Options
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.chat.session import Session
from rwkv_chat.chat.tree import Finish
from rwkv_chat.commands import layout
from rwkv_chat.commands.compose import open_session
from rwkv_chat.paths import models_dir
from rwkv_chat.settings import Settings
from rwkv_chat.tui.app import ChatApp
from rwkv_chat.tui.screens.models import ModelsScreen
from rwkv_chat.tui.widgets.pane import Pane
from tests.seeded import shared_model
from tests.tui.helpers import asynchronous, screen_text, until

OLD, NEW = "tiny-rwkv-4v0-660K", "tiny-rwkv-7v0-834K"
OPTIONS = Options(Sampling(seed=1), template="chat", max_tokens=40)


@pytest.fixture
def models(home: Path) -> None:
    """Both models, known by their names."""
    files = [shared_model(f"{name}.pth") for name in (OLD, NEW)]
    models_dir().mkdir(parents=True)
    for file in files:
        (models_dir() / file.name).symlink_to(file.absolute())


class Reads:
    """How many tokens were read for each answer."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}
        self.failures: list[str] = []

    def hear(self, event: events.Event) -> None:
        if isinstance(event, events.Prefilling):
            self.of[event.turn] = event.total
        if isinstance(event, events.AnswerFailed):
            self.failures.append(event.reason)


@asynccontextmanager
async def application() -> AsyncIterator[tuple[ChatApp, Pilot[None], Session, Reads]]:
    """As `rwkv-chat` starts it."""
    reads = Reads()
    with open_session(Settings(weights="f32", threads=1), OPTIONS) as session:
        session.prefer(OLD)
        session.subscribe(reads.hear)
        app = ChatApp(session, layout=layout.load(), remember_layout=layout.save)
        async with app.run_test(size=(160, 40)) as pilot:
            await pilot.pause()
            yield app, pilot, session, reads
            app.end(0)
        assert reads.failures == []


async def rest(app: ChatApp, pilot: Pilot[None], session: Session) -> None:
    """Until nothing runs any more and what happened is on screen."""
    for _ in range(2000):
        await pilot.pause(0.01)
        if not any(session.busy(pane.current) for pane in app.panes.panes if pane.current):
            break
    await pilot.pause(0.1)


def listed(app: ChatApp) -> bool:
    """Whether the list of models is there and shows which one is used."""
    lists = app.screen.query(OptionList) if isinstance(app.screen, ModelsScreen) else ()
    return any(models.highlighted is not None for models in lists)


def tokens(pane: Pane) -> list[tuple[int, ...]]:
    assert pane.conversation is not None
    return [turn.ids for turn in pane.conversation.path()]


def answered_by(pane: Pane) -> set[str]:
    assert pane.conversation is not None
    return {turn.model for turn in pane.conversation.path() if turn.model}


@asynchronous
async def test_an_old_and_a_new_model_side_by_side_with_branches_and_snapshots(
    models: None,
) -> None:
    async with application() as (app, pilot, session, reads):
        await pilot.press("alt+n", "ctrl+l")
        await until(pilot, lambda: listed(app))
        names = [choice.name for choice in session.models()]
        await pilot.press(*["down"] * (names.index(NEW) - names.index(OLD)), "enter")
        left, right = app.panes.panes
        await until(pilot, lambda: app.model_name(right) == NEW and not listed(app))
        # Without waiting for the first answer: both answer at once.
        for text, pane in (("to the new one", right), ("to the old one", left)):
            await until(pilot, lambda pane=pane: app.pane is pane)
            app.composer.put(text)
            await pilot.press("enter", "f3")
        await rest(app, pilot, session)
        assert [answered_by(pane) for pane in (left, right)] == [{OLD}, {NEW}]
        app.focus_pane(left)
        await pilot.press("ctrl+r", "f4", "alt+e", "!", "enter")
        await rest(app, pilot, session)
        for pane in (left, right):
            app.focus_pane(pane)
            app.composer.put("and more of it, please")
            await pilot.press("enter")
        await rest(app, pilot, session)
        for pane, turns in ((left, 5), (right, 6)):
            assert pane.conversation is not None
            assert len(pane.conversation.path()) == 4
            assert len(pane.conversation.turns) == turns
            assert pane.conversation.path()[-1].finish in (Finish.LENGTH, Finish.STOP)
        before = [tokens(pane) for pane in (left, right)]
        assert session.model(OLD) is not session.model(NEW)

    async with application() as (app, pilot, session, reads):
        left, right = app.panes.panes
        assert [tokens(pane) for pane in (left, right)] == before
        assert session.model(OLD) is session.model(NEW) is None
        for pane in (right, left):
            app.focus_pane(pane)
            app.composer.put("go on")
            await pilot.press("enter")
        await rest(app, pilot, session)
        assert [answered_by(pane) for pane in (left, right)] == [{OLD}, {NEW}]
        for pane, known in zip((left, right), before, strict=True):
            path = tokens(pane)
            assert path[:4] == known
            question, answer = pane.conversation.path()[4:]  # type: ignore[union-attr]
            assert reads.of[answer.id] == len(question.ids) + answer.prefix
            assert len(answer.ids) > answer.prefix
        for pane, name in ((left, OLD), (right, NEW)):
            app.focus_pane(pane)
            await pilot.pause()
            assert app.status_line.status.model == name
            assert "◆ saved" in screen_text(app)
        app.focus_pane(left)
        await pilot.press("alt+left")
        assert len(tokens(left)) == 2
        assert tokens(left)[1] != before[0][1]
        app.composer.put("the other way")
        await pilot.press("enter")
        await rest(app, pilot, session)
        assert left.conversation is not None
        question, answer = left.conversation.path()[2:]
        assert reads.of[answer.id] == len(question.ids) + answer.prefix


@asynchronous
async def test_a_model_that_fails_to_open_leaves_the_other_pane_alone(models: None) -> None:
    async with application() as (app, pilot, session, reads):
        app.composer.put("to the old one")
        await pilot.press("enter", "alt+n")
        (models_dir() / f"{NEW}.pth").unlink()
        (models_dir() / f"{NEW}.pth").write_bytes(b"not a model")
        app.pane.model = NEW
        app.composer.put("to the new one")
        await pilot.press("enter")
        await rest(app, pilot, session)
        left, right = app.panes.panes
        assert answered_by(left) == {OLD}
        assert right.conversation is not None
        assert right.conversation.path()[0].text == "to the new one"
        assert right.conversation.path()[-1].finish is Finish.ERROR
        assert len(reads.failures) == 1
        reads.failures.clear()
