"""The first screen."""

from textual.content import Content
from textual.widgets import Static

__all__ = ["Welcome"]

_KEYS = (
    ("Enter", "sends what you wrote below"),
    ("Ctrl+P", "everything you can do"),
    ("F1", "all keys"),
)


class Welcome(Static):
    """What this is, what to type, and three keys."""

    def __init__(self) -> None:
        parts: list[str | tuple[str, str]] = [("rwkv-chat", "bold $primary"), "\n"]
        parts += [("Talk with a model on this machine. Every turn is kept.", ""), "\n\n"]
        for key, what in _KEYS:
            parts += [(f"{key:<8}", "bold $secondary"), f"{what}\n"]
        super().__init__(Content.assemble(*parts).rstrip(), markup=False)
