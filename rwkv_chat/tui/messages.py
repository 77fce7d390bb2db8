"""What widgets tell the application, one class each."""

from dataclasses import dataclass

from textual.message import Message

__all__ = [
    "Descend",
    "LeaveComposer",
    "Opened",
    "PaneWanted",
    "PanesResized",
    "SessionSpoke",
    "StepSibling",
    "Submitted",
    "Typed",
]


@dataclass
class SessionSpoke(Message):
    """Events of the session wait to be drained."""


@dataclass
class Submitted(Message):
    """The person wants to send `text`."""

    text: str


@dataclass
class LeaveComposer(Message):
    """The person moved up out of the empty composer."""


@dataclass
class StepSibling(Message):
    """Show the alternative `by` places further on, for the selected turn."""

    by: int


@dataclass
class Descend(Message):
    """Show what follows the end of the path."""


@dataclass
class PaneWanted(Message):
    """The person turned to the pane `number`, counted from 0."""

    number: int


@dataclass
class PanesResized(Message):
    """There is another amount of room for panes."""


@dataclass
class Typed(Message):
    """The person typed `text` where nothing can be written."""

    text: str


@dataclass
class Opened(Message):
    """Show this conversation."""

    conversation: str
