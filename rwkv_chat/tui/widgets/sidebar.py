"""The list of conversations."""

from collections.abc import Collection, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from rwkv_chat.chat.tree import Summary
from rwkv_chat.text.display import one_line
from rwkv_chat.tui.messages import Opened

__all__ = ["WIDTH", "Sidebar"]

WIDTH = 32
"""Columns that it takes beside the panes; the style sheet gives them."""

_TITLE = 80


class Sidebar(OptionList):
    """Conversations, the last changed first. Titles are text, never markup."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "app.new_chat", "New conversation", id="sidebar.new"),
        Binding("r", "app.rename", "Rename", id="sidebar.rename"),
        Binding("d,delete", "app.delete", "Delete", id="sidebar.delete"),
        Binding("p", "app.open_pane", "Open in a pane beside", id="sidebar.pane"),
        Binding("u", "app.undelete", "Bring back the last deleted", id="sidebar.undelete"),
    ]

    def __init__(self) -> None:
        super().__init__(markup=False, compact=True)
        self.border_title = "Conversations"
        self._shown: list[tuple[str, str, bool, bool, bool]] = []

    def show(
        self,
        conversations: Sequence[Summary],
        current: str | None,
        running: Collection[str],
        beside: Collection[str | None],
    ) -> None:
        """Show these conversations; the highlight stays on the one it was on.

        `current` is in the focused pane, `beside` are those in any pane.
        """
        shown = [
            (
                summary.id,
                one_line(summary.title, _TITLE) or "New conversation",
                summary.id == current,
                summary.id in running,
                summary.id in beside,
            )
            for summary in conversations
        ]
        if shown == self._shown:
            return
        before = self.selected
        moved = [entry[2] for entry in shown] != [entry[2] for entry in self._shown]
        self._shown = shown
        self.clear_options()
        self.add_options(Option(_prompt(*entry), id=entry[0]) for entry in shown)
        wanted = current if moved or not self.has_focus else before
        ids = [entry[0] for entry in shown]
        if ids:
            self.highlighted = ids.index(wanted) if wanted in ids else 0

    @property
    def selected(self) -> str | None:
        """The highlighted conversation."""
        if self.highlighted is None or self.highlighted >= len(self._shown):
            return None
        return self._shown[self.highlighted][0]

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Open what was chosen."""
        event.stop()
        if event.option_id is not None:
            self.post_message(Opened(event.option_id))


def _prompt(_id: str, title: str, current: bool, running: bool, beside: bool) -> Content:
    mark = "● " if running else "▸ " if current else "▹ " if beside else "  "
    return Content.assemble((mark, "$primary"), (title, "bold" if current else ""))
