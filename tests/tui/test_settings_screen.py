"""The dialog of settings: templates by name, and those that people write."""

from dataclasses import fields, replace

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from rwkv_chat.chat import templates
from rwkv_chat.chat.own import Own, named
from rwkv_chat.chat.tree import Role
from rwkv_chat.tui.app import ChatApp
from rwkv_chat.tui.screens.settings import SettingsScreen
from rwkv_chat.tui.widgets.choice import Choice
from tests.tui.fake_session import FakeSession
from tests.tui.helpers import asynchronous, running, screen_text


def one_exchange() -> FakeSession:
    session = FakeSession()
    chat = session.create(title="First")
    session.fill(chat.id, [(Role.USER, "question"), (Role.ASSISTANT, "answer")])
    return session


async def _open_settings(app: ChatApp, pilot: Pilot[None]) -> SettingsScreen:
    await pilot.press("ctrl+g")
    await pilot.pause()
    assert isinstance(app.screen, SettingsScreen)
    return app.screen


def _parts(screen: SettingsScreen) -> list[str]:
    names = ("user", "assistant", "separator", "system")
    return [screen.query_one(f"#own-{name}", Input).value for name in names]


@pytest.mark.parametrize("size", [(120, 40), (40, 12)])
@asynchronous
async def test_a_template_is_chosen_by_name(size: tuple[int, int]) -> None:
    session = one_exchange()
    async with running(session, size) as (app, pilot):
        screen = await _open_settings(app, pilot)
        assert screen.query_one("#template", Choice).value == ""
        assert _parts(screen) == ["User:", "Assistant:", "\\n\\n", "System:"]
        await pilot.press(*["up"] * 8)
        await pilot.pause()
        assert "fits: g1" in screen_text(app)
        await pilot.press("right", "right", "space")
        await pilot.pause()
        assert "◂ question ▸" in screen_text(app)
        assert "Question:" in screen_text(app)
        await pilot.press("left", "up", *["right"] * 3, "enter")
        await pilot.pause()
        options = session.options(app.current)
        assert (options.template, options.think) == ("g1", "a bit")
        assert options.own == Own()
        screen = await _open_settings(app, pilot)
        await pilot.press("enter")
        await pilot.pause()
        assert session.options(app.current) == options


@asynchronous
async def test_a_changed_part_makes_the_template_the_persons_own() -> None:
    session = one_exchange()
    async with running(session) as (app, pilot):
        screen = await _open_settings(app, pilot)
        template = screen.query_one("#template", Choice)
        template.focus()
        await pilot.press("left", "left")
        await pilot.pause()
        assert template.value == "raw"
        assert _parts(screen) == ["", "", "", ""]
        await pilot.press("left")
        await pilot.pause()
        assert template.value == "raven-instruction"
        screen.query_one("#own-assistant", Input).value = "Bot\\\\nick:\\n"
        await pilot.pause()
        assert template.value == "own"
        template.focus()
        await pilot.press("left", "right", "enter")
        await pilot.pause()
        options = session.options(app.current)
        assert options.template == "own"
        raven = Own.like(templates.get("raven-instruction"))
        assert options.own == replace(raven, assistant="Bot\\nick:\n")
        screen = await _open_settings(app, pilot)
        assert _parts(screen)[:2] == ["# Instruction:\\n", "Bot\\\\nick:\\n"]
        screen.query_one("#own-separator", Input).value = ""
        await pilot.press("enter")
        await pilot.pause()
        assert "separator of your template is empty" in " ".join(screen_text(app).split())
        await pilot.press("escape")
        await pilot.pause()
        assert session.options(app.current) == options


@asynchronous
async def test_a_label_of_a_thinking_template_is_all_that_changes() -> None:
    session = one_exchange()
    async with running(session) as (app, pilot):
        screen = await _open_settings(app, pilot)
        assert screen.query_one("#template", Choice).value == ""  # fits: g1
        screen.query_one("#own-user", Input).value = "Me:"
        await pilot.pause()
        screen.query_one("#own-system", Input).value = "Rules:"
        await pilot.press("enter")
        await pilot.pause()
        options = session.options(app.current)
        assert (options.template, options.own.base) == ("own", "g1")
        g1 = templates.get("g1")
        assert options.written_as("chat") == replace(g1, name="own", user="Me:", system="Rules:")
        screen = await _open_settings(app, pilot)
        screen.query_one("#own-user", Input).value = "I:"
        await pilot.press("enter")
        await pilot.pause()
        assert session.options(app.current).own == replace(options.own, user="I:")


@pytest.mark.parametrize("size", [(120, 40), (40, 12)])
@asynchronous
async def test_every_part_of_a_template_is_reached_and_changed(size: tuple[int, int]) -> None:
    session = one_exchange()
    async with running(session, size) as (app, pilot):
        screen = await _open_settings(app, pilot)
        screen.query_one("#template", Choice).focus()
        await pilot.press("left", "left", "left")
        await pilot.pause()
        names = [field.name for field in fields(Own) if field.name != "base"]
        seen = set()
        for _ in names:
            await pilot.press("down")
            await pilot.pause()
            assert isinstance(app.focused, Input)
            assert app.focused.id is not None
            assert screen.region.contains_region(app.focused.region)
            part = app.focused.id.removeprefix("own-")
            raven = templates.get("raven-instruction")
            assert app.focused.value == getattr(raven, part).replace("\n", "\\n")
            seen.add(part)
            await pilot.press("end", "!")
        assert seen == set(names)
        await pilot.press("enter")
        await pilot.pause()
        own = session.options(app.current).own
        written = named("own", own)
        for name in names:
            assert getattr(written, name) == getattr(raven, name) + "!"
