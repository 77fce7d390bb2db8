"""Small helpers of the interface's tests."""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from textual.pilot import Pilot

from rwkv_chat.tui.app import ChatApp
from tests.tui.fake_session import FakeSession

__all__ = ["asynchronous", "running", "screen_text", "settled", "until"]


def asynchronous(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a coroutine as a test."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return run


@asynccontextmanager
async def running(
    session: FakeSession, size: tuple[int, int] = (120, 40), **options: Any
) -> AsyncIterator[tuple[ChatApp, Pilot[None]]]:
    """The application on a session, ready for keys."""
    app = ChatApp(session, **options)  # type: ignore[arg-type]
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.pause()
        try:
            yield app, pilot
        finally:
            session.close()


async def settled(app: ChatApp, pilot: Pilot[None]) -> None:
    """Wait until no answer runs and everything is on screen."""
    await until(pilot, lambda: not app.busy and not app.progress.live)
    await pilot.pause()


async def until(pilot: Pilot[None], holds: Callable[[], bool]) -> None:
    """Wait, on a slow machine for long, until something holds; fails when it never does."""
    for _ in range(500):
        await pilot.pause()
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("what was waited for never came")


def screen_text(app: ChatApp) -> str:
    """All characters on screen, line by line."""
    width, height = app.size
    strips = app.screen._compositor.render_strips()
    return "\n".join(strip.text[:width].rstrip() for strip in strips[:height])
