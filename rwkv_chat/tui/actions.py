"""Everything a person can do, in one table: keys, the palette and the help are made from it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from textual.binding import Binding, BindingType

__all__ = ["ACTIONS", "Action", "bindings", "help_groups", "key_text"]


@dataclass(frozen=True, slots=True)
class Action:
    """One action of the application. `name` is the part after `action_`, with its arguments."""

    id: str
    keys: str
    name: str
    title: str
    group: str
    priority: bool = False
    palette: bool = True


ACTIONS = (
    Action("answer.stop", "escape", "leave", "Stop the answer, leave editing", "Answers"),
    Action("answer.continue", "ctrl+t", "continue", "Continue a stopped answer", "Answers"),
    Action("answer.regenerate", "ctrl+r", "regenerate", "Another answer beside it", "Answers"),
    Action("turn.edit", "alt+e", "edit", "Edit this turn, as a new branch", "Turns"),
    Action("turn.previous", "alt+left", "sibling(-1)", "Previous alternative", "Turns"),
    Action("turn.next", "alt+right", "sibling(1)", "Next alternative", "Turns"),
    Action("turn.up", "alt+up", "step(-1)", "Select the turn before", "Turns"),
    Action("turn.down", "alt+down", "step(1)", "Select the turn after", "Turns"),
    Action("turn.fork", "alt+f", "fork", "Fork: a new conversation up to this turn", "Turns"),
    Action("turn.label", "alt+l", "label", "Label this turn", "Turns"),
    Action("turn.fold", "alt+t", "fold", "Fold or unfold the thoughts", "Turns"),
    Action("turn.copy", "alt+y", "copy", "Copy this turn", "Turns"),
    Action("turn.copy_code", "alt+c", "copy_code", "Copy the last code block", "Turns"),
    Action("chat.new", "ctrl+n", "new_chat", "New conversation", "Conversations"),
    Action("chat.list", "ctrl+o", "sidebar", "Show or hide the list", "Conversations"),
    Action("chat.rename", "f2", "rename", "Rename this conversation", "Conversations"),
    Action("chat.delete", "f8", "delete", "Delete this conversation", "Conversations"),
    Action("chat.undelete", "f9", "undelete", "Bring back the last deleted", "Conversations"),
    Action("pane.open", "alt+n", "open_pane", "Open a pane beside this one", "Panes"),
    Action("pane.next", "f4,alt+o", "next_pane(1)", "Next pane", "Panes"),
    Action("pane.previous", "f3", "next_pane(-1)", "Previous pane", "Panes"),
    Action("pane.close", "alt+w", "close_pane", "Close this pane; its conversation stays", "Panes"),
    Action("pane.1", "alt+1", "pane(0)", "Go to the first pane", "Panes", palette=False),
    Action("pane.2", "alt+2", "pane(1)", "Go to the second pane", "Panes", palette=False),
    Action("pane.3", "alt+3", "pane(2)", "Go to the third pane", "Panes", palette=False),
    Action("pane.4", "alt+4", "pane(3)", "Go to the fourth pane", "Panes", palette=False),
    Action("chat.settings", "ctrl+g", "settings", "Settings of this conversation", "Model"),
    Action("model.choose", "ctrl+l", "models", "Choose a model", "Model"),
    Action("app.theme", "", "change_theme", "Choose a theme", "Application"),
    Action("app.help", "f1", "help", "All keys", "Application"),
    Action("app.palette", "ctrl+p", "command_palette", "All actions", "Application", palette=False),
    Action("app.interrupt", "ctrl+c", "interrupt", "Copy what is marked, or stop the answer",
           "Application", palette=False),
    Action("app.quit", "ctrl+q", "quit", "Quit; everything is kept", "Application", True),
)  # fmt: skip


def bindings() -> list[BindingType]:
    """The bindings of the application."""
    return [
        Binding(
            action.keys,
            action.name,
            action.title,
            show=False,
            id=action.id,
            priority=action.priority,
        )
        for action in ACTIONS
        if action.keys
    ]


_NAMES = {
    "escape": "Esc", "enter": "Enter", "space": "Space", "up": "↑", "down": "↓", "left": "←",
    "right": "→", "pageup": "PgUp", "pagedown": "PgDn", "home": "Home", "end": "End",
    "delete": "Del", "ctrl": "Ctrl", "alt": "Alt", "shift": "Shift",
}  # fmt: skip


def key_text(keys: str) -> str:
    """Keys for people: `ctrl+t` is `Ctrl+T`; of several, the first two."""
    shown = []
    for key in keys.split(",")[:2]:
        parts = key.strip().split("+")
        last = len(parts) - 1
        shown.append(
            "+".join(
                _NAMES.get(part, part.upper() if last or len(part) > 1 else part) for part in parts
            )
        )
    return " ".join(shown)


def help_groups(
    local: Iterable[tuple[str, BindingType]], keymap: Mapping[str, str]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Keys and what they do, in groups.

    Args:
        local: Bindings of widgets, each with the title of its group.
        keymap: The person's own keys by binding id.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for title, bound in local:
        if isinstance(bound, Binding):
            keys = keymap.get(bound.id or "", bound.key)
            groups.setdefault(title, []).append((key_text(keys), bound.description))
    for action in ACTIONS:
        if keys := keymap.get(action.id, action.keys):
            groups.setdefault(action.group, []).append((key_text(keys), action.title))
    return list(groups.items())
