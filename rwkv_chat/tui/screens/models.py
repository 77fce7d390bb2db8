"""A dialog that chooses a model."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from rwkv_chat.chat.ports import ModelChoice
from rwkv_chat.text.display import one_line

__all__ = ["ModelsScreen"]


class ModelsScreen(ModalScreen[str | None]):
    """Returns the name of the chosen model, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Cancel", id="dialog.cancel")
    ]

    def __init__(self, models: Sequence[ModelChoice], current: str | None) -> None:
        super().__init__()
        self._models = models
        self._current = current

    def compose(self) -> ComposeResult:
        """The list, or what to do when it is empty."""
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = "Model"
            dialog.border_subtitle = "Enter opens, Esc cancels"
            if not self._models:
                yield Static("There are no models on this machine yet.", markup=False)
                return
            yield OptionList(*(Option(self._prompt(model)) for model in self._models), markup=False)

    def _prompt(self, model: ModelChoice) -> Content:
        mark = "▸ " if model.name == self._current else "  "
        name = one_line(model.name, 60)
        return Content.assemble(
            (mark, "$primary"),
            (name, "bold"),
            (f"\n  {one_line(model.description, 120)}", "$foreground 60%"),
        )

    def on_mount(self) -> None:
        """Begin at the model in use."""
        names = [model.name for model in self._models]
        if self._current in names:
            self.query_one(OptionList).highlighted = names.index(self._current)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Done; a second Enter may have come before the dialog was gone."""
        if self.is_current:
            self.dismiss(self._models[event.option_index].name)
