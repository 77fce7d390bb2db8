"""The line at the bottom: what is going on, the model, its speed and its state."""

from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from textual.strip import Strip
from textual.widget import Widget

from rwkv_chat.tui.looks import blend
from rwkv_chat.tui.markdown.lines import Span, fit

__all__ = ["Status", "StatusLine", "bytes_text"]


@dataclass(frozen=True, slots=True)
class Status:
    """What the line says; empty parts are left out. `mood` is "", "busy", "warn" or "bad"."""

    doing: str = ""
    mood: str = ""
    model: str = ""
    weights: str = ""
    speed: float = 0.0
    tokens: int = 0
    state_bytes: int = 0
    kept: bool = False
    hint: str = ""


def bytes_text(count: int) -> str:
    """A size for people, such as `2.4 MB`."""
    if count < 1000:
        return f"{count} B"
    size = count / 1000
    for unit in ("kB", "MB"):
        if size < 999.5:
            return f"{size:.1f} {unit}" if size < 99.5 else f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


class StatusLine(Widget):
    """Shows a Status in one line; what does not fit is left out, the least important first."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"status--{name}" for name in ("busy", "warn", "bad", "quiet")
    }

    def __init__(self) -> None:
        super().__init__()
        self.status = Status()

    def show(self, status: Status) -> None:
        """Show another status."""
        if status != self.status:
            self.status = status
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """The line."""
        width = self.size.width
        status = self.status
        facts = []
        if status.model:
            facts.append((4, status.model))
        if status.weights:
            facts.append((1, status.weights))
        if status.speed >= 0.05:
            facts.append((3, f"{status.speed:.{0 if status.speed >= 20 else 1}f} tok/s"))
        if status.tokens:
            facts.append((2, f"{status.tokens:,} tokens"))
        if status.state_bytes:
            saved = " ◆ saved" if status.kept else ""
            facts.append((2, f"state {bytes_text(status.state_bytes)}{saved}"))
        if status.hint:
            facts.append((0, status.hint))
        left = cell_len(status.doing)
        while facts and left + sum(cell_len(fact) + 3 for _, fact in facts) + 2 > width:
            facts.remove(min(reversed(facts), key=lambda fact: fact[0]))
        right = " · ".join(fact for _, fact in facts)
        mood = status.mood or "quiet"
        mark = "● " if status.mood == "busy" else ""
        doing: list[Span] = [(f" {mark}{status.doing}", mood)]
        room = width - cell_len(right) - 2 if right else width
        shown = fit(doing, max(1, room))
        gap = width - sum(cell_len(text) for text, _ in shown) - cell_len(right) - 1
        base = self.rich_style
        segments = [Segment(text, blend(self, [f"status--{name}"])) for text, name in shown]
        quiet = blend(self, ["status--quiet"])
        segments.append(Segment(" " * max(0, gap), base))
        segments.append(Segment(right, quiet))
        return Strip(segments).adjust_cell_length(width, base)
