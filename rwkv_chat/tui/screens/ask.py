"""A dialog that asks for one line of text."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input

from rwkv_chat.text.display import one_line

__all__ = ["AskScreen"]


class AskScreen(ModalScreen[str | None]):
    """Returns the text, or None when the person thought better of it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Cancel", id="dialog.cancel")
    ]

    def __init__(self, title: str, value: str, placeholder: str = "") -> None:
        super().__init__()
        self._title = title
        self._value = one_line(value, 400)
        self._placeholder = placeholder

    def compose(self) -> ComposeResult:
        """The dialog."""
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = self._title
            dialog.border_subtitle = "Enter keeps, Esc cancels"
            yield Input(self._value, placeholder=self._placeholder, select_on_focus=True)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Done; a second Enter may have come before the dialog was gone."""
        if self.is_current:
            self.dismiss(event.value)
