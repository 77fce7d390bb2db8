"""Styled lines of text, and how they are wrapped to a width in terminal cells."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, split_graphemes

__all__ = ["Line", "Span", "fit", "wrap", "wrap_ranges"]

Span = tuple[str, str]
"""Text and its style: names of `transcript--` components joined by `+`, or ""."""

_WORD = re.compile(r"\S+\s*|\s+")
_NEVER_FIRST = frozenset("、。，．・：；？！）」』】》〉〕］｝’”…ー々,.!?:;)]}")


@dataclass(frozen=True, slots=True)
class Line:
    """One line on screen. `fill` styles what is left of the width."""

    spans: tuple[Span, ...] = ()
    fill: str = ""

    @property
    def text(self) -> str:
        """The characters without their styles."""
        return "".join(text for text, _ in self.spans)


def wrap_ranges(text: str, width: int) -> list[tuple[int, int]]:
    """Where to cut `text` so that no piece is wider than `width` cells.

    Cuts fall after spaces and around wide characters where possible. Spaces at a cut are dropped.

    Returns:
        Pairs of indices `(start, end)`, at least one.
    """
    width = max(1, width)
    if len(text) <= width // 2 or cell_len(text) <= width:
        return [(0, len(text))]
    return _wrap_ascii(text, width) if text.isascii() else _wrap_wide(text, width)


def _wrap_ascii(text: str, width: int) -> list[tuple[int, int]]:
    cuts: list[tuple[int, int]] = []
    start = end = 0
    for match in _WORD.finditer(text):
        word_end = match.end()
        solid_end = match.start() + len(match.group().rstrip())
        if solid_end - start > width and match.start() > start:
            cuts.append((start, end))
            start = match.start()
        while solid_end - start > width:
            cuts.append((start, start + width))
            start += width
        if solid_end > match.start():
            end = solid_end
        if word_end - start > width:
            cuts.append((start, max(end, start)))
            start = end = word_end
    if start < len(text) or not cuts:
        cuts.append((start, min(len(text), start + width)))
    return cuts


def _wrap_wide(text: str, width: int) -> list[tuple[int, int]]:
    cuts: list[tuple[int, int]] = []
    start, used = 0, 0
    chance, used_at_chance = 0, 0
    for at, after, cells in split_graphemes(text)[0]:
        glyph = text[at]
        space = text[at:after].isspace()
        if cells == 2 and at > start and glyph not in _NEVER_FIRST:
            chance, used_at_chance = at, used
        if used + cells > width and at > start:
            if space:
                cuts.append((start, at))
                start, used = after, 0
                continue
            if chance > start:
                cuts.append((start, _trimmed(text, start, chance)))
                start, used = chance, used - used_at_chance
            if used + cells > width and at > start:
                cuts.append((start, at))
                start, used = at, 0
        used += cells
        if space:
            chance, used_at_chance = after, used
    if start < len(text) or not cuts:
        cuts.append((start, len(text)))
    return cuts


def _trimmed(text: str, start: int, end: int) -> int:
    while end > start and text[end - 1].isspace():
        end -= 1
    return end


def _cut(spans: Sequence[Span], start: int, end: int) -> list[Span]:
    found: list[Span] = []
    at = 0
    for text, style in spans:
        after = at + len(text)
        if after > start and at < end:
            found.append((text[max(0, start - at) : end - at], style))
        at = after
        if at >= end:
            break
    return found


def wrap(
    spans: Sequence[Span],
    width: int,
    *,
    first: Sequence[Span] = (),
    rest: Sequence[Span] | None = None,
    fill: str = "",
) -> list[Line]:
    """Wrap `spans` to `width` cells, `first` before the first line and `rest` before the others.

    Args:
        spans: The text.
        width: Cells, the prefixes included.
        first: Prefix of the first line.
        rest: Prefix of the other lines; spaces as wide as `first` if not given.
        fill: Style of the rest of each line.
    """
    indent = sum(cell_len(text) for text, _ in first)
    following: Sequence[Span] = ((" " * indent, ""),) if rest is None and indent else (rest or ())
    text = "".join(part for part, _ in spans)
    ranges = wrap_ranges(text, max(4, width - indent))
    if ranges == [(0, len(text))]:
        return [Line((*first, *spans), fill)]
    return [
        Line((*(following if number else first), *_cut(spans, start, end)), fill)
        for number, (start, end) in enumerate(ranges)
    ]


def fit(spans: Iterable[Span], width: int) -> tuple[Span, ...]:
    """Cut `spans` to `width` cells, with an ellipsis where something was cut."""
    kept: list[Span] = []
    left = width
    for text, style in spans:
        cells = cell_len(text)
        if cells <= left:
            kept.append((text, style))
            left -= cells
            continue
        if left > 0:
            end, used = 0, 0
            for _, after, size in split_graphemes(text)[0]:
                if used + size > left - 1:
                    break
                end, used = after, used + size
            kept.append((text[:end] + "…", style))
        break
    return tuple(kept)
