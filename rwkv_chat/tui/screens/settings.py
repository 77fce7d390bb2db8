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

from rwkv_chat.chat.options import Options
from rwkv_chat.chat.own import OWN, Own, choices, named
from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.chat.templates import Template, Think
from rwkv_chat.errors import UsageError
from rwkv_chat.text.display import clean, one_line
from rwkv_chat.tui.widgets.choice import Choice

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
_PARTS = {
    "user": ("User label", "before what you say"),
    "assistant": ("Answer label", "before an answer"),
    "separator": ("Separator", "\\n stands for a new line"),
    "system": ("System label", "before the system text"),
    "material": ("Input label", "after a blank line"),
    "lead": ("Lead", "before everything"),
    "intro": ("Introduction", ""),
}
_THOUGHTS = {
    Think.OFF: "as it likes",
    Think.FAST: "fast: none",
    Think.ON: "think",
    Think.BIT: "think a bit",
    Think.LOT: "think a lot",
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
    start = values["start"].strip()
    if start and not _is_file(start):
        raise UsageError(f"Start state must be a file, and there is no {start!r}.")
    own = before.own
    if values["template"] == OWN:
        parts = {part: _lines(values[f"own-{part}"]) for part in _PARTS}
        own = Own(**parts, base=values["own-base"])
    return replace(
        before,
        sampling=Sampling(**numbers),  # type: ignore[arg-type]
        system=_lines(values["system"]),
        think=values["think"],
        template=values["template"],
        max_tokens=longest,
        start=str(Path(start).expanduser().absolute()) if start else "",
        own=own,
    )


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long, or nobody's home
        return False


class _Form(VerticalScroll, can_focus=False, inherit_bindings=False):
    """Scrolls with the focus: up and down are for the fields."""


class SettingsScreen(ModalScreen[Options | None]):
    """Returns the changed options, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Cancel", id="dialog.cancel"),
        Binding("enter", "keep", "Keep", id="dialog.keep"),
        Binding("up", "app.focus_previous", "Previous field", id="dialog.up"),
        Binding("down", "app.focus_next", "Next field", id="dialog.down"),
    ]

    def __init__(self, options: Options, whose: str, fitting: str | None) -> None:
        """`whose` choices they are, for the title; `fitting` names the model's own template."""
        super().__init__()
        self._options = options
        self._whose = whose
        self._fitting = fitting
        self._own = self._texts(OWN)
        self._base = options.own.base

    def compose(self) -> ComposeResult:
        """The form."""
        options = self._options
        with _Form(classes="dialog") as dialog:
            dialog.border_title = f"Settings of {self._whose}"
            dialog.border_subtitle = "Enter keeps, Esc cancels"
            yield Static("", classes="form-error", markup=False)
            for name, (title, note, _) in _SAMPLING.items():
                yield from _row(
                    title, note, Input(_number(getattr(options.sampling, name)), id=name)
                )
            yield from self._rows()

    def _rows(self) -> ComposeResult:
        """What is not sampling."""
        options = self._options
        longest = Input(str(options.max_tokens), id="max_tokens")
        yield from _row("Longest", "tokens in one answer", longest)
        told = "told to the model first; \\n is a new line"
        system = Input(_one_line(options.system), id="system", placeholder=told)
        yield from _row("System", "", system)
        start = Input(clean(options.start), id="start")
        yield from _row("Start state", "a saved or tuned one, its file", start)
        thoughts = Choice(
            {m.value: title for m, title in _THOUGHTS.items()}, options.think, "think"
        )
        yield from _row("Thoughts", "of a model that has some", thoughts)
        fits = f"fits: {self._fitting}" if self._fitting else "fits the model"
        known = {"": fits, **{name: name for name in choices()}}
        template = Choice(known, options.template, "template")
        yield from _row("Template", "← → choose", template)
        texts = self._texts(options.template)
        for part, (title, note) in _PARTS.items():
            field = Input(texts[part], id=f"own-{part}", classes="form-part")
            yield from _row(title, note, field)

    def on_choice_changed(self, event: Choice.Changed) -> None:
        """Show the parts of the template."""
        if event.choice.id == "template":
            chosen = event.choice.value
            texts = self._own if chosen == OWN else self._texts(chosen)
            for part, text in texts.items():
                self.query_one(f"#own-{part}", Input).value = text

    def on_input_changed(self, event: Input.Changed) -> None:
        """A changed part makes the template the person's own."""
        if not (event.input.id or "").startswith("own-"):
            return
        template = self.query_one("#template", Choice)
        texts = {part: self.query_one(f"#own-{part}", Input).value for part in _PARTS}
        if template.value != OWN:
            if texts == self._texts(template.value):
                return
            self._base = Own.like(self._template(template.value)).base
            template.value = OWN
        self._own = texts

    def on_input_submitted(self) -> None:
        """Enter in a field."""
        self.action_keep()

    def action_keep(self) -> None:
        """Check everything, and close when all of it can be used."""
        values = {field.id or "": field.value for field in self.query(Input)}
        values |= {choice.id or "": choice.value for choice in self.query(Choice)}
        values["own-base"] = self._base
        try:
            options = parse_form(values, self._options)
        except UsageError as error:
            message = self.query_one(".form-error", Static)
            message.update(one_line(str(error), 300))
            message.add_class("-shown")
            message.scroll_visible()
            return
        if self.is_current:  # a second Enter may have come before the dialog was gone
            self.dismiss(options)

    def _texts(self, choice: str) -> dict[str, str]:
        """The parts of a template as the form shows them."""
        template = self._template(choice)
        return {part: _one_line(getattr(template, part)) for part in _PARTS}

    def _template(self, choice: str) -> Template:
        return named(choice or self._fitting or "chat", self._options.own)


def _row(title: str, note: str, field: Input | Choice) -> ComposeResult:
    with Horizontal(classes="form-row"):
        yield Static(title, classes="form-name", markup=False)
        yield field
        if note:
            yield Static(note, classes="form-note", markup=False)


def _number(value: float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _one_line(text: str) -> str:
    """Text for a field of one line, which `_lines` reads."""
    return clean(text.replace("\\", "\\\\").replace("\n", "\\n"))


def _lines(text: str) -> str:
    return "\\".join(part.replace("\\n", "\n") for part in text.split("\\\\"))
