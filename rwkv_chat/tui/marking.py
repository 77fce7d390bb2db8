"""Text marked with the mouse: how it looks, and what is copied of it."""

from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from textual.selection import Selection

__all__ = ["marked_text", "with_mark"]


def with_mark(segments: Sequence[Segment], start: int, end: int, style: Style) -> list[Segment]:
    """The segments of a line with `style` on the characters from `start` to `end` (-1: all)."""
    out: list[Segment] = []
    at = 0
    for segment in segments:
        text, own, _ = segment
        size = len(text)
        left = min(max(0, start - at), size)
        right = size if end < 0 else min(max(left, end - at), size)
        for part, marked in ((text[:left], False), (text[left:right], True), (text[right:], False)):
            if part:
                out.append(Segment(part, (own or Style()) + style if marked else own))
        at += size
    return out


def marked_text(lines: Sequence[str], top: int, selection: Selection, gutter: int) -> str:
    """What is marked in `lines`, the first of which is line `top` of the widget.

    Args:
        lines: Text without the gutter.
        top: The first line's number.
        selection: In characters, the gutter counted.
        gutter: Characters before each line.
    """
    out: list[str] = []
    for number, line in enumerate(lines, top):
        span = selection.get_span(number)
        if span is not None:
            start, end = (max(0, edge - gutter) if edge >= 0 else edge for edge in span)
            out.append((line[start:] if end < 0 else line[start:end]).rstrip())
    return "\n".join(out)
