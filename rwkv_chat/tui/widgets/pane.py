"""One conversation beside others: a title, and the transcript of one of its branches."""

from dataclasses import dataclass, replace
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.strip import Strip
from textual.widget import Widget

from rwkv_chat.chat.tree import Conversation
from rwkv_chat.text.display import one_line
from rwkv_chat.tui.looks import blend
from rwkv_chat.tui.markdown.lines import Span, fit
from rwkv_chat.tui.widgets.transcript import Transcript
from rwkv_chat.tui.widgets.welcome import Welcome

__all__ = ["Pane", "PaneTitle", "Title"]

_TITLE = 80


@dataclass(frozen=True, slots=True)
class Title:
    """What the line above a pane says. `place`, such as "2/3", is there where only one fits.

    `running` tells of an answer in this pane, `elsewhere` of one in a pane that is not on screen.
    """

    text: str = ""
    model: str = ""
    focused: bool = False
    running: bool = False
    place: str = ""
    elsewhere: bool = False


class PaneTitle(Widget):
    """Shows a Title in one line. The focused pane is known by its mark, without colours too."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"pane-title--{name}" for name in ("mark", "name", "quiet", "busy")
    }

    def __init__(self) -> None:
        super().__init__()
        self.title = Title()

    def show(self, title: Title) -> None:
        """Show another title."""
        if title != self.title:
            self.title = title
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """The line."""
        width, title = self.size.width, self.title
        left: list[Span] = [("▶ " if title.focused else "  ", "mark")]
        if title.running:
            left.append(("● ", "busy"))
        left.append((one_line(title.text, _TITLE), "name" if title.focused else "quiet"))
        end = f" {title.place}{' ●' if title.elsewhere else ''}" if title.place else ""
        model = f" {one_line(title.model, 40)}" if title.model else ""
        room = width - 1 - cell_len(end)
        if model and room - cell_len(model) < min(20, cell_len(title.text) + 4):
            model = ""
        shown = fit(left, max(1, room - cell_len(model)))
        gap = width - 1 - sum(cell_len(text) for text, _ in shown) - cell_len(model + end)
        spans = [*shown, (" " * max(0, gap), "quiet"), (model, "quiet"), (end, "mark")]
        segments = [Segment(text, blend(self, [f"pane-title--{name}"])) for text, name in spans]
        return Strip(segments).adjust_cell_length(width, self.rich_style)


class Pane(Vertical):
    """Bound to the end of a path in a conversation, or (None) to a conversation not yet begun.

    `conversation` has that end as its head, whatever other panes show of it. `model` is the name
    of the model of a conversation not yet begun, "" for that of all new ones. `draft` is what the
    composer held when another pane took it over, and `before_edit` what it held before `editing`
    (a turn id) began.
    """

    def __init__(self, continue_key: str = "") -> None:
        super().__init__(classes="-empty")
        self.conversation: Conversation | None = None
        self.model = ""
        self.editing: str | None = None
        self.draft = ""
        self.before_edit = ""
        self.kept = False
        self.title = PaneTitle()
        self.transcript = Transcript(continue_key)

    def compose(self) -> ComposeResult:
        """The title, and the first screen or the transcript."""
        yield self.title
        yield Welcome()
        yield self.transcript

    @property
    def current(self) -> str | None:
        """The id of the conversation."""
        return self.conversation.id if self.conversation is not None else None

    @property
    def leaf(self) -> str | None:
        """The turn at which the path ends."""
        return self.conversation.head if self.conversation is not None else None

    def bind(self, conversation: Conversation | None, leaf: str | None = None) -> None:
        """Show a conversation up to `leaf`; up to its head where that is not given or not there."""
        if conversation is not None and leaf in conversation.turns:
            conversation = replace(conversation, head=leaf)
        self.conversation = conversation
        self.set_class(conversation is None or conversation.head is None, "-empty")
