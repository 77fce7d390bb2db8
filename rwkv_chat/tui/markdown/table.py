"""Tables: columns as wide as they need to be, or as the width allows."""

import re
from collections.abc import Sequence

from rich.cells import cell_len

from rwkv_chat.tui.markdown.inline import parse_inline
from rwkv_chat.tui.markdown.lines import Line, Span, wrap

__all__ = ["is_table", "render_table"]

_RULE = re.compile(r"^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$")
_SPLIT = re.compile(r"(?<!\\)\|")
_NARROWEST = 4


def is_table(lines: Sequence[str], at: int) -> bool:
    """Whether a table begins at line `at`: a row, and a rule below it."""
    if at + 1 >= len(lines) or "|" not in lines[at] or "|" not in lines[at + 1]:
        return False
    return bool(_RULE.match(lines[at + 1])) and len(_cells(lines[at])) == len(_cells(lines[at + 1]))


def _cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|")
    if inner.endswith("|") and not inner.endswith("\\|"):
        inner = inner[:-1]
    return [cell.strip().replace("\\|", "|") for cell in _SPLIT.split(inner)]


def render_table(lines: Sequence[str], width: int) -> list[Line] | None:
    """Draw the table whose first two lines are its head and its rule.

    Returns:
        The lines, or None when the columns cannot fit into `width` cells.
    """
    head = _cells(lines[0])
    columns = len(head)
    rights = [mark.endswith(":") and not mark.startswith(":") for mark in _cells(lines[1])]
    rows = [
        [parse_inline(cell) for cell in (_cells(line) + [""] * columns)[:columns]]
        for line in lines[2:]
    ]
    table = [[parse_inline(cell, "strong") for cell in head], *rows]
    widths = [max(_width(row[column]) for row in table) for column in range(columns)]
    room = width - 3 * (columns - 1)
    if room < _NARROWEST * columns:
        return None
    while sum(widths) > room:
        widest = max(widths)
        second = max((size for size in widths if size < widest), default=0)
        count = widths.count(widest)
        excess = sum(widths) - room
        step = max(1, min(widest - second, -(-excess // count)))
        for column, size in enumerate(widths):
            if size == widest and excess > 0:
                cut = min(step, excess)
                widths[column] -= cut
                excess -= cut
    out: list[Line] = []
    for number, row in enumerate(table):
        out.extend(_draw_row(row, widths, rights))
        if number == 0:
            out.append(Line((("─┼─".join("─" * size for size in widths), "rule"),)))
    return out


def _width(spans: Sequence[Span]) -> int:
    return max(1, sum(cell_len(text) for text, _ in spans))


def _draw_row(
    row: Sequence[Sequence[Span]], widths: Sequence[int], rights: Sequence[bool]
) -> list[Line]:
    cells = [wrap(spans, size) for spans, size in zip(row, widths, strict=True)]
    lines: list[Line] = []
    for number in range(max(len(cell) for cell in cells)):
        spans: list[Span] = []
        for column, cell in enumerate(cells):
            if column:
                spans.append((" │ ", "rule"))
            part = cell[number].spans if number < len(cell) else ()
            pad = " " * max(0, widths[column] - sum(cell_len(text) for text, _ in part))
            spans.extend(((pad, ""), *part) if rights[column] else (*part, (pad, "")))
        lines.append(Line(tuple(spans)))
    return lines
