"""A dialog for the choices of a conversation: sampling, length, system prompt and so on."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from rwkv_chat.chat import templates
from rwkv_chat.chat.options import Options
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.errors import UsageError
from rwkv_chat.text.display import clean, one_line

__all__ = ["SettingsScreen", "parse_form"]

_SAMPLING: dict[str, tuple[str, str, type]] = {
    "temperature": ("Temperature", "0 always takes the most probable", float),
    "top_p": ("Top-p", "keep the best, up to this sum", float),
    "top_k": ("Top-k", "keep this many; 0 keeps all", int),
    "min_p": ("Min-p", "drop below this part of the best", float),
    "presence": ("Presence", "penalty for what was used", float),
    "frequency": ("Frequency", "penalty for each time", float),
    "decay": ("Decay", "how slowly they fade; 1 never", float),
    "seed": ("Seed", "empty: another each time", int),
}
_OTHERS = {
    "max_tokens": ("Longest", "tokens in one answer"),
    "system": ("System", "told to the model first; \\n is a new line"),
    "think": ("Thoughts", " or ".join(mode.value for mode in templates.Think)),
    "template": ("Template", "empty fits; " + ", ".join(templates.names())),
    "start": ("Start state", "a trained one, its .pth file"),
}


def parse_form(values: Mapping[str, str], before: Options) -> Options:
    """Options from the texts of the form.

    Raises:
        UsageError: a value that cannot be used, with the name of its field.
    """
    numbers: dict[str, float | int | None] = {}
    for name, (title, _, kind) in _SAMPLING.items():
        text = values[name].strip().replace(",", ".")
        if name == "seed" and not text:
            numbers[name] = None
            continue
        try:
            numbers[name] = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise UsageError(f"{title} must be {what}, not {text!r}.") from None
    try:
        longest = int(values["max_tokens"].strip())
    except ValueError:
        raise UsageError("Longest must be a whole number.") from None
    template = values["template"].strip()
    if template:
        templates.get(template)
    start = values["start"].strip()
    if start and not _is_file(start):
        raise UsageError(f"Start state must be a file, and there is no {start!r}.")
    think = values["think"].strip()
    if think not in [mode.value for mode in templates.Think]:
        raise UsageError(f"Thoughts must be {_OTHERS['think'][1]}, not {think!r}.")
    return replace(
        before,
        sampling=Sampling(**numbers),  # type: ignore[arg-type]
        system=values["system"].replace("\\n", "\n"),
        think=think,
        template=template,
        max_tokens=longest,
        start=str(Path(start).expanduser().absolute()) if start else "",
    )


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long, or nobody's home
        return False


class SettingsScreen(ModalScreen[Options | None]):
    """Returns the changed options, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Cancel", id="dialog.cancel"),
        Binding("up", "app.focus_previous", "Previous field", id="dialog.up"),
        Binding("down", "app.focus_next", "Next field", id="dialog.down"),
    ]

    def __init__(self, options: Options, whose: str) -> None:
        super().__init__()
        self._options = options
        self._whose = whose

    def compose(self) -> ComposeResult:
        """The form."""
        sampling = self._options.sampling
        with VerticalScroll(classes="dialog", can_focus=False) as dialog:
            dialog.border_title = f"Settings of {self._whose}"
            dialog.border_subtitle = "Enter keeps, Esc cancels"
            yield Static("", classes="form-error", markup=False)
            for name, (title, note, _) in _SAMPLING.items():
                value = getattr(sampling, name)
                yield from _row(
                    name,
                    title,
                    note,
                    ""
                    if value is None
                    else f"{value:g}"
                    if isinstance(value, float)
                    else str(value),
                )
            for name, (title, note) in _OTHERS.items():
                text = str(getattr(self._options, name)).replace("\n", "\\n")
                yield from _row(name, title, note, clean(text))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Check everything, and close when all of it can be used."""
        values = {field.id or "": field.value for field in self.query(Input)}
        try:
            options = parse_form(values, self._options)
        except UsageError as error:
            message = self.query_one(".form-error", Static)
            message.update(one_line(str(error), 300))
            message.add_class("-shown")
            message.scroll_visible()
            return
        self.dismiss(options)


def _row(name: str, title: str, note: str, value: str) -> ComposeResult:
    with Horizontal(classes="form-row"):
        yield Static(title, classes="form-name", markup=False)
        yield Input(value, id=name, placeholder=note if name == "system" else "")
        if name != "system":
            yield Static(note, classes="form-note", markup=False)
