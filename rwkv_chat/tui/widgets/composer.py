"""Where messages are written."""

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.strip import Strip
from textual.widgets import TextArea

from rwkv_chat.text.display import clean
from rwkv_chat.tui.actions import key_text
from rwkv_chat.tui.messages import LeaveComposer, Submitted

__all__ = ["Composer"]

_PLACEHOLDER = "Write a message"


class Composer(TextArea):
    """A text area that grows with its text. It never empties itself: the application does, after
    the text is on disk."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Send", id="composer.send"),
        Binding("ctrl+j,alt+enter,shift+enter", "newline", "New line", id="composer.newline"),
    ]

    def __init__(self) -> None:
        super().__init__(
            soft_wrap=True,
            highlight_cursor_line=False,
            placeholder=_PLACEHOLDER,
            compact=True,
        )
        self.cursor_blink = False

    def on_resize(self) -> None:
        """Keep the real cursor, where input methods open their windows, at the drawn one."""
        self.call_after_refresh(self._place_cursor)

    def _place_cursor(self) -> None:
        if self.has_focus:
            self.app.cursor_position = self.cursor_screen_offset

    def on_key(self, event: events.Key) -> None:
        """Send and break lines in the order of the keys.

        Textual would insert a line break at Enter; and a binding with priority would run before
        the letters that were typed, or arrived, just before it.
        """
        if event.key.startswith("alt+"):
            event.prevent_default()  # Textual would insert the letter
        for binding in self.BINDINGS:
            if isinstance(binding, Binding) and event.key in self._keys(binding):
                event.prevent_default()
                event.stop()
                if binding.action == "submit":
                    self.action_submit()
                else:
                    self.action_newline()
                return

    def _keys(self, binding: Binding) -> list[str]:
        keymap = getattr(self.app, "keymap", {})
        return str(keymap.get(binding.id, binding.key)).split(",")

    def render_line(self, y: int) -> Strip:
        """One line; Textual cannot wrap the placeholder to a width of nothing."""
        if self.content_size.width < 1:
            return Strip.blank(self.size.width)
        return super().render_line(y)

    @property
    def hint(self) -> str:
        """The keys that send and break lines."""
        send, line = (
            key_text(self._keys(binding)[0])
            for binding in self.BINDINGS
            if isinstance(binding, Binding)
        )
        return f"{send} sends · {line} new line"

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
