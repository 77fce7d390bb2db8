"""All keys, as they are bound now."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

__all__ = ["HelpScreen"]


class HelpScreen(ModalScreen[None]):
    """A list of keys in groups.

    Args:
        groups: For each group its title, and pairs of keys and what they do.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f1,q", "dismiss(None)", "Close", id="dialog.close")
    ]

    def __init__(self, groups: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> None:
        super().__init__()
        self._groups = groups

    def compose(self) -> ComposeResult:
        """The list."""
        widest = max(len(keys) for _, rows in self._groups for keys, _ in rows)
        parts: list[str | tuple[str, str]] = []
        for title, rows in self._groups:
            parts += [(f"{title}\n", "bold $primary")]
            for keys, what in rows:
                parts += [(f"  {keys:<{widest}}  ", "bold"), f"{what}\n"]
            parts.append("\n")
        with VerticalScroll(classes="dialog") as dialog:
            dialog.border_title = "Keys"
            dialog.border_subtitle = "Esc closes"
            yield Static(Content.assemble(*parts).rstrip(), markup=False)
