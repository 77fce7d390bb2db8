"""`rwkv-chat`: the interface, or one answer where there is no terminal."""

import argparse
import sys
from dataclasses import replace
from typing import Any

from rwkv_chat.checkpoints.catalog import EMBEDDED
from rwkv_chat.commands import compose
from rwkv_chat.commands.signals import raise_interrupted
from rwkv_chat.errors import UsageError
from rwkv_chat.settings import Settings
from rwkv_chat.text.display import one_line

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Open the interface; without a terminal, answer what stdin says (or a plain hello)."""
    settings = compose.choose(options)
    start = compose.start_in(options)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        from rwkv_chat.commands import ask

        text = sys.stdin.read().strip() or "Hello"
        shown = one_line(text, 40)
        print(f'rwkv-chat: no terminal here, so this answers "{shown}"', file=sys.stderr)
        return ask.answer(
            text, settings, lambda base: replace(base, start=start), None, as_json=False
        )

    if not sys.stderr.isatty():
        raise UsageError("The interface is drawn on stderr, which is redirected; leave it alone.")

    from rwkv_chat.commands import layout
    from rwkv_chat.tui.app import ChatApp

    chosen = replace(compose.defaults(settings), start=start)
    with compose.open_session(settings, chosen) as session:
        model = settings.model or EMBEDDED
        session.prefer(model)
        app = ChatApp(
            session,
            theme=settings.theme,
            layout=layout.load(),
            wanted=model if options.model else "",
            on_painted=lambda: session.warm(app.model_name(app.pane)),
            remember=_remember,
            remember_layout=layout.save,
        )
        app.run()
        raise_interrupted()  # the interface had its own handlers, which went with its loop
        return app.return_code or 0


def _remember(**choices: Any) -> None:
    """Write choices into the settings file, and leave what it says of other things."""
    settings = Settings.load()
    if choices.get("model", settings.model) != settings.model:
        choices["tokenizer"] = ""  # it belongs to the model before
    replace(settings, **choices).save()
