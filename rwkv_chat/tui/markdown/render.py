"""Chunks of Markdown become styled lines."""

import re
from collections.abc import Sequence

from rich.cells import cell_len, chop_cells

from rwkv_chat.tui.markdown.code import highlight
from rwkv_chat.tui.markdown.document import Chunk, Fence, fence_after
from rwkv_chat.tui.markdown.inline import parse_inline
from rwkv_chat.tui.markdown.lines import Line, Span, wrap
from rwkv_chat.tui.markdown.table import is_table, render_table

__all__ = ["render_chunk", "render_plain"]

_HEADING = re.compile(r"^ {0,3}(#{1,6})\s+(.*?)(?:\s+#+)?\s*$")
_RULE = re.compile(r"^ {0,3}(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$")
_ITEM = re.compile(r"^(\s*)([-*+•]|\d{1,9}[.)])\s+(.*)$")
_TASK = re.compile(r"^\[([ xX])\]\s+(.*)$")
_QUOTE = re.compile(r"^\s{0,3}((?:>\s?)+)(.*)$")


def render_chunk(chunk: Chunk, width: int, base: str = "") -> list[Line]:
    """The lines of `chunk` at `width` cells.

    Args:
        chunk: Some lines of Markdown.
        width: Cells.
        base: A style under everything, such as that of thoughts.
    """
    out: list[Line] = []
    fence = chunk.fence
    lines = chunk.lines
    at = 0
    while at < len(lines):
        line = lines[at]
        after = fence_after(line, fence)
        if fence is not None or after is not None:
            out.extend(_code(line, fence, after, width))
            fence = after
            at += 1
        elif is_table(lines, at):
            end = at + 2
            while end < len(lines) and "|" in lines[end]:
                end += 1
            drawn = render_table(lines[at:end], width)
            out.extend(drawn or [row for raw in lines[at:end] for row in wrap([(raw, "")], width)])
            at = end
        else:
            out.extend(_prose(line, width, base))
            at += 1
    return out


def render_plain(chunk: Chunk, width: int, base: str = "") -> list[Line]:
    """The lines of `chunk` as they were typed, wrapped and nothing else."""
    return [row for line in chunk.lines for row in wrap([(line, base)] if line else [], width)]


def _code(line: str, fence: Fence | None, after: Fence | None, width: int) -> list[Line]:
    if fence is None and after is not None:
        name = chop_cells(after.language, max(1, width - 2))[:1]
        return [Line((("╭ ", "fence+edge"), ("".join(name), "fence+dim")), "fence")]
    if fence is None or after is None:
        return [Line((("╰", "fence+edge"),), "fence")]
    indent = min(fence.indent, len(line) - len(line.lstrip(" ")))
    spans, _ = highlight(line[indent:], fence.language, fence.state)
    edge: Sequence[Span] = (("│ ", "fence+edge"),)
    return wrap(spans, width, first=edge, rest=edge, fill="fence")


def _prose(line: str, width: int, base: str) -> list[Line]:
    if not line.strip():
        return [Line()]
    if match := _HEADING.match(line):
        level = "h1" if len(match[1]) == 1 else "h2" if len(match[1]) == 2 else "h3"
        return wrap(parse_inline(match[2], level), width)
    if _RULE.match(line):
        return [Line((("─" * min(width, 40), "rule"),))]
    if match := _ITEM.match(line):
        return _item(match, width, base)
    if match := _QUOTE.match(line):
        bars: Sequence[Span] = (("▎ " * match[1].count(">"), "edge"),)
        return wrap(parse_inline(match[2], "quote"), width, first=bars, rest=bars)
    text = line.lstrip(" ")
    lead = " " * min(len(line) - len(text), width // 2)
    return wrap(parse_inline(text, base), width, first=((lead, ""),) if lead else ())


def _item(match: re.Match[str], width: int, base: str) -> list[Line]:
    lead = " " * min(len(match[1]), width // 2)
    mark = match[2] if match[2][0].isdigit() else "•"
    text = match[3]
    if task := _TASK.match(text):
        mark = "☑" if task[1] in "xX" else "☐"
        text = task[2]
    first: Sequence[Span] = ((lead, ""), (f"{mark} ", "bullet"))
    rest: Sequence[Span] = ((" " * (len(lead) + cell_len(mark) + 1), ""),)
    return wrap(parse_inline(text, base), width, first=first, rest=rest)
