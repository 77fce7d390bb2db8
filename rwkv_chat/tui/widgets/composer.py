"""Where messages are written."""

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.widgets import TextArea

from rwkv_chat.text.display import clean
from rwkv_chat.tui.messages import LeaveComposer, Submitted

__all__ = ["Composer"]

_PLACEHOLDER = "Write a message"


class Composer(TextArea):
    """A text area that grows with its text. It never empties itself: the application does, after
    the text is on disk."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Send", id="composer.send", priority=True),
        Binding(
            "ctrl+j,alt+enter,shift+enter", "newline", "New line", id="composer.newline", priority=True
        ),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(
            id=id, soft_wrap=True, highlight_cursor_line=False, placeholder=_PLACEHOLDER, compact=True
        )
        self.cursor_blink = False

    def put(self, text: str) -> None:
        """Replace everything by `text`, the cursor at its end."""
        self.load_text(text)
        self.move_cursor(self.document.end)

    def action_submit(self) -> None:
        """Ask the application to send."""
        self.post_message(Submitted(self.text))

    def action_newline(self) -> None:
        """Insert a line break."""
        self._insert("\n")

    def action_cursor_up(self, select: bool = False) -> None:
        """Move up, out of the composer when it is empty."""
        if not self.text and not select:
            self.post_message(LeaveComposer())
        else:
            super().action_cursor_up(select)

    def on_paste(self, event: events.Paste) -> None:
        """Insert pasted text without control characters; line breaks in it never send."""
        event.prevent_default()
        event.stop()
        self._insert(clean(event.text.replace("\r\n", "\n").replace("\r", "\n")))

    def _insert(self, text: str) -> None:
        result = self.replace(text, *self.selection, maintain_selection_offset=False)
        self.move_cursor(result.end_location)
