"""The transcript: one widget that builds only the lines on screen."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from rwkv_chat.chat.tree import Conversation, Turn
from rwkv_chat.tui.column import Anchor, Column
from rwkv_chat.tui.entry import GAP, Entry, Live
from rwkv_chat.tui.looks import blend
from rwkv_chat.tui.markdown.lines import Line
from rwkv_chat.tui.marking import marked_text, with_mark
from rwkv_chat.tui.messages import Descend, StepSibling, Typed
from rwkv_chat.tui.timeline import timeline

__all__ = ["Transcript"]

_WIDEST = 110
_GUTTER = 2
_MARGIN = 2

_STYLES = """
name user assistant system text label siblings dim fold thought mark h1 h2 h3 em strong strike code
link rule bullet quote edge fence keyword string comment number call block cursor
"""


class Transcript(ScrollView, can_focus=True):
    """The turns from the root to the head.

    It follows the end while the end is on screen. With the focus here one turn is selected.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"transcript--{name}" for name in _STYLES.split()}

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "step(-1)", "Previous turn", id="transcript.up"),
        Binding("down", "step(1)", "Next turn", id="transcript.down"),
        Binding("left", "sibling(-1)", "Previous alternative", id="transcript.left"),
        Binding("right", "sibling(1)", "Next alternative", id="transcript.right"),
        Binding("space", "fold", "Fold or unfold thoughts", id="transcript.fold"),
        Binding("home", "scroll_home", "To the beginning", id="transcript.home"),
        Binding("end", "scroll_end", "To the end", id="transcript.end"),
        Binding("pageup", "page_up", "Page up", id="transcript.page_up"),
        Binding("pagedown", "page_down", "Page down", id="transcript.page_down"),
    ]

    def __init__(self, continue_key: str = "") -> None:
        super().__init__()
        self.following = True
        self._continue_key = continue_key
        self._column = Column()
        self._entries: dict[str, Entry] = {}
        self._order: list[Entry] = []
        self._cursor: str | None = None
        self._width = 0
        self._placing = False
        self._scrolled_from: int | None = None
        self._frame: list[tuple[int, Line]] | None = None
        self._looks: dict[str, Style] = {}

    # -- content -------------------------------------------------------------------------------

    def show(
        self,
        conversation: Conversation | None,
        live: Mapping[str, Live],
        failures: Mapping[str, str],
    ) -> None:
        """Show a conversation; turns that were on screen before keep what was built for them.

        Args:
            conversation: What to show, or nothing.
            live: Running answers by turn id.
            failures: Why answers failed, by turn id.
        """
        anchor = self._anchor()
        rows = timeline(conversation) if conversation is not None else []
        entries: dict[str, Entry] = {}
        first_changed: int | None = None
        column = self._column
        for at, row in enumerate(rows):
            turn = row.turn
            entry = self._entries.get(turn.id)
            if entry is None or entry.row.turn.role is not turn.role:
                entry = Entry(row, self._continue_key)
            changed = entry.update(row, live.get(turn.id), failures.get(turn.id, ""))
            moved = at >= len(column.items) or column.items[at] is not entry
            if first_changed is None and (changed or moved):
                first_changed = at
            entries[turn.id] = entry
        if not set(entries) & set(self._entries):
            self.following = True
        self._entries = entries
        self._order = list(entries.values())
        column.items = list(self._order)
        column.touch(len(rows) if first_changed is None else first_changed)
        if self._cursor not in entries:
            self._cursor = None
            if self.has_focus and rows:
                self._cursor = rows[-1].turn.id
        self._settle(anchor)

    def grow(self, turn_id: str, live: Live) -> None:
        """Show more of a running answer."""
        entry = self._entries.get(turn_id)
        if entry is None:
            return
        anchor = self._anchor()
        if entry.update(entry.row, live, entry.failure):
            self._column.touch(self._order.index(entry))
            self._settle(anchor)

    @property
    def target(self) -> Turn | None:
        """The turn that actions apply to: the selected one with the focus here, else the last."""
        entry = None
        if self._cursor is not None and self.screen.focused is self:
            entry = self._entries.get(self._cursor)
        elif self._entries:
            entry = self._order[-1]
        return entry.row.turn if entry is not None else None

    def text_of(self, turn_id: str) -> str:
        """The raw text of a turn as it is now, a running answer included."""
        entry = self._entries.get(turn_id)
        return entry.text if entry is not None else ""

    # -- keys ----------------------------------------------------------------------------------

    def action_step(self, by: int) -> None:
        """Select the turn before or after; through a tall one in pages."""
        ids = list(self._entries)
        if not ids:
            return
        at = ids.index(self._cursor) if self._cursor in self._entries else len(ids) - 1
        top, rows = self.scroll_offset.y, self._rows
        column = self._column
        begin, end = column.top(at, self._width), column.top(at + 1, self._width)
        page = max(1, rows - 2)
        if by > 0 and end > top + rows and begin <= top:
            self._scroll(min(top + page, end - rows))
        elif by < 0 and begin < top:
            self._scroll(max(top - page, begin))
        elif by > 0 and self._order[at].row.below:
            self.post_message(Descend())
        else:
            self.select(ids[max(0, min(len(ids) - 1, at + by))])

    def select(self, turn_id: str) -> None:
        """Select a turn and scroll until it can be seen."""
        self._cursor = turn_id
        at = list(self._entries).index(turn_id)
        column, width = self._column, self._width
        column.anchor(column.top(at, width), 1, width)  # opens it: the height is better known
        begin, end = column.top(at, width), column.top(at + 1, width)
        top, rows = self.scroll_offset.y, self._rows
        if begin < top or end - begin >= rows:
            self._scroll(begin)
        elif end > top + rows:
            self._scroll(end - rows)
        self._repaint()

    def action_sibling(self, by: int) -> None:
        """Ask for another alternative of the selected turn."""
        turn = self.target
        if turn is not None:
            self.post_message(StepSibling(by))

    def on_key(self, event: events.Key) -> None:
        """Letters go where letters belong."""
        letter = event.is_printable and event.key != "space" and not event.key.startswith("alt+")
        if letter and event.character:
            event.stop()
            self.post_message(Typed(event.character))

    def action_fold(self) -> None:
        """Fold or unfold the thoughts of the selected turn."""
        turn = self.target
        entry = self._entries.get(turn.id) if turn is not None else None
        if entry is None or not entry.has_thought:
            return
        anchor = self._anchor()
        entry.unfolded = not entry.thought_open
        entry.refresh()
        self._column.touch(self._order.index(entry))
        self._settle(anchor)

    def on_focus(self) -> None:
        if self._cursor is None and self._entries:
            self._cursor = self._order[-1].row.turn.id
        self._repaint()

    def on_blur(self) -> None:
        self._repaint()

    def on_click(self, event: events.Click) -> None:
        frame = self._lines_on_screen()
        row = event.y
        if 0 <= row < len(frame):
            self._cursor = self._order[frame[row][0]].row.turn.id
            self._repaint()

    # -- geometry ------------------------------------------------------------------------------

    @property
    def _rows(self) -> int:
        return self.scrollable_content_region.height

    def _anchor(self) -> Anchor | None:
        if self.following or not self._width:
            return None
        now = self.scroll_offset.y
        before = now if self._scrolled_from is None else self._scrolled_from
        return self._column.scrolled(before, now, self._rows, self._width)

    def _settle(self, anchor: Anchor | None) -> None:
        """Build what can be seen, and put `anchor` (or the end) where it belongs."""
        if not self._width or self._rows <= 0:
            return
        self._frame = None
        self._scrolled_from = None
        top = self._column.settle(anchor, self._rows, self._width)
        self._placing = True
        try:
            height = self._column.height(self._width)
            size = Size(self.scrollable_content_region.width, height)
            if size != self.virtual_size:
                self.virtual_size = size
            if top != self.scroll_offset.y:
                self.scroll_to(y=top, animate=False, force=True)
        finally:
            self._placing = False
        self.refresh()

    def _scroll(self, y: int) -> None:
        self.scroll_to(y=y, animate=False, force=True)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if self._placing or not self._width:
            return
        self._frame = None
        self.following = new_value >= self.max_scroll_y
        if self._scrolled_from is None:
            self._scrolled_from = round(old_value)
            # Not now: Textual may be in the middle of its own scrolling.
            self.call_next(self._after_scroll)

    def _after_scroll(self) -> None:
        if self._scrolled_from is not None:
            self._settle(self._anchor())

    def on_resize(self, event: events.Resize) -> None:
        anchor = self._anchor()
        region = self.scrollable_content_region
        self._width = max(8, min(_WIDEST, region.width - _GUTTER - _MARGIN))
        self._settle(anchor)

    # -- painting ------------------------------------------------------------------------------

    def _repaint(self) -> None:
        self._frame = None
        self.refresh()

    def notify_style_update(self) -> None:
        """Called by Textual when styles change, as with another theme."""
        super().notify_style_update()
        self._looks.clear()

    def _lines_on_screen(self) -> list[tuple[int, Line]]:
        if self._frame is None:
            self._frame = (
                self._column.lines(self.scroll_offset.y, self._rows, self._width)
                if self._width
                else []
            )
        return self._frame

    def render_line(self, y: int) -> Strip:
        """One line of what is on screen."""
        frame = self._lines_on_screen()
        width = self.scrollable_content_region.width
        if y >= len(frame):
            return Strip.blank(width, self.rich_style)
        at, line = frame[y]
        entry = self._order[at]
        chosen = self.has_focus and entry.row.turn.id == self._cursor and line is not GAP
        said = entry.row.turn.role.value in ("user", "text") and line is not GAP
        ground = "block" if said else ""
        strip = self._strip(line, width, ground, chosen)
        number = self.scroll_offset.y + y
        selection = self.text_selection
        span = selection.get_span(number) if selection is not None else None
        if span is not None:
            style = self.screen.get_component_rich_style("screen--selection")
            strip = Strip(with_mark(list(strip), *span, style), width)
        return strip.apply_offsets(0, number)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The text that is marked with the mouse."""
        height = self._column.height(self._width)
        top = selection.start.y if selection.start is not None else 0
        bottom = selection.end.y if selection.end is not None else height
        lines = self._column.lines(top, bottom - top + 1, self._width)
        text = marked_text([line.text for _, line in lines], top, selection, _GUTTER)
        return text, "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        """Paint the marks."""
        self.refresh()

    def _strip(self, line: Line, width: int, ground: str, chosen: bool) -> Strip:
        look = partial(self._look, ground)
        segments = [
            Segment("▌", look("cursor")) if chosen else Segment(" ", look("")),
            Segment(" ", look("")),
        ]
        used = 2
        for text, style in line.spans:
            segments.append(Segment(text, look(style)))
            used += cell_len(text)
        body = self._width + _GUTTER
        if line.fill and used < body:
            segments.append(Segment(" " * (body - used), look(line.fill)))
            used = body
        if used < width:
            segments.append(Segment(" " * (width - used), look("")))
        return Strip(segments, max(used, width)).crop(0, width)

    def _look(self, ground: str, names: str) -> Style:
        key = f"{ground}/{names}"
        style = self._looks.get(key)
        if style is None:
            components = [f"transcript--{name}" for name in (ground, *names.split("+")) if name]
            style = self._looks[key] = blend(self, components)
        return style
