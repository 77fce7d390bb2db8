"""One of a few named values, on one line of a form."""

from collections.abc import Mapping
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from rwkv_chat.text.display import one_line

__all__ = ["Choice"]


class Choice(Widget, can_focus=True):
    """Shows the title of `value`; left and right go through the others.

    `Changed` tells what a person chooses, and not what the program sets.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "step(-1)", "Previous choice", id="choice.previous"),
        Binding("right,space", "step(1)", "Next choice", id="choice.next"),
    ]

    value: reactive[str] = reactive("")

    class Changed(Message):
        """Another value was chosen."""

        def __init__(self, choice: "Choice") -> None:
            super().__init__()
            self.choice = choice

        @property
        def control(self) -> "Choice":
            """Which one."""
            return self.choice

    def __init__(self, titles: Mapping[str, str], value: str, name: str) -> None:
        super().__init__(id=name)
        self._titles = dict(titles)
        self.set_reactive(Choice.value, value)

    def render(self) -> Content:
        """The title between arrows."""
        title = one_line(self._titles.get(self.value, self.value), 60)
        return Content.assemble(("◂ ", "$foreground 50%"), title, (" ▸", "$foreground 50%"))

    def on_click(self) -> None:
        """The next one, too."""
        self.action_step(1)

    def action_step(self, by: int) -> None:
        """Choose the next one, around the end."""
        values = list(self._titles)
        self.value = values[(values.index(self.value) + by) % len(values)]
        self.post_message(self.Changed(self))
