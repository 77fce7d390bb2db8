"""The pictures of the README, taken from a real conversation: `python -m tests.tui.pictures`."""

import asyncio
import os
import tempfile
from pathlib import Path

from textual.pilot import Pilot

from rwkv_chat.chat.options import Options
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.checkpoints.catalog import EMBEDDED
from rwkv_chat.commands.compose import open_session
from rwkv_chat.settings import Settings
from rwkv_chat.tui.app import ChatApp

FOLDER = Path(__file__).parents[2] / "docs"


async def say(pilot: Pilot[None], app: ChatApp, text: str) -> None:
    app.composer.put(text)
    await pilot.press("enter")
    await rest(pilot, app)


async def rest(pilot: Pilot[None], app: ChatApp) -> None:
    await pilot.pause(0.3)
    while app.busy:
        await pilot.pause(0.1)
    await pilot.pause(0.3)


async def take(size: tuple[int, int], name: str) -> None:
    options = Options(Sampling(top_p=0.4, seed=1))
    with open_session(Settings(), options) as session:
        app = ChatApp(session, fresh=True, on_painted=lambda: session.open_model(EMBEDDED))
        async with app.run_test(size=size) as pilot:
            while session.model(EMBEDDED) is None:
                await pilot.pause(0.1)
            await say(pilot, app, "Hi! Who are you?")
            await say(pilot, app, "Tell me a story about a cat.")
            await pilot.press("ctrl+r")
            await rest(pilot, app)
            await say(pilot, app, "What is a branch?")
            await pilot.pause(8)
            (FOLDER / name).write_text(app.export_screenshot(title="rwkv-chat"))


def main() -> None:
    os.environ["RWKV_CHAT_HOME"] = tempfile.mkdtemp()
    os.environ["COLORTERM"] = "truecolor"
    FOLDER.mkdir(exist_ok=True)
    asyncio.run(take((120, 40), "chat.svg"))
    asyncio.run(take((40, 12), "small.svg"))


if __name__ == "__main__":
    main()
