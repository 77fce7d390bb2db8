"""The first screen."""

from textual.content import Content
from textual.widgets import Static

__all__ = ["Welcome"]

_STEPS = (
    ("Write below and press", "Enter", "to talk with a model on this machine."),
    ("", "Ctrl+P", "shows everything you can do,"),
    ("", "F1", "all the keys,"),
    ("", "Ctrl+O", "your conversations."),
)


class Welcome(Static):
    """What this is, what to type, and three keys."""

    def __init__(self, *, id: str | None = None) -> None:
        parts: list[str | tuple[str, str]] = [("rwkv-chat", "bold $primary"), "\n"]
        parts += [("Every turn is kept. Nothing leaves this machine.", "$text-muted"), "\n\n"]
        for before, key, after in _STEPS:
            parts += [f"{before} " if before else "", (key, "bold $secondary"), f" {after}\n"]
        super().__init__(Content.assemble(*parts).rstrip(), id=id, markup=False)
