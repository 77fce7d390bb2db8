"""Where everything stands in a very long column, when most of it was never built.

Heights are guesses until a block is built, and blocks are built only where one looks. What stands
on screen stays where it is when a guess above it turns out wrong.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from rwkv_chat.tui.markdown.lines import Line

__all__ = ["Anchor", "Block", "Column", "Group", "Stack"]


class _Tall(Protocol):
    def height(self, width: int) -> int:
        """Lines at `width` cells."""


_T = TypeVar("_T", bound=_Tall)


class Block:
    """Some lines that are built together, on demand, and kept for one width.

    Args:
        build: Makes the lines for a width in cells.
        guess: The likely number of lines for a width, cheap.
    """

    __slots__ = ("_build", "_guess", "_lines", "_width")

    def __init__(
        self, build: Callable[[int], list[Line]], guess: Callable[[int], int] | None = None
    ) -> None:
        self._build = build
        self._guess = guess or (lambda width: 1)
        self._lines: list[Line] = []
        self._width = -1

    def built(self, width: int) -> bool:
        """Whether the lines for `width` are there."""
        return self._width == width

    def height(self, width: int) -> int:
        """The number of lines, or a guess at it."""
        return len(self._lines) if self._width == width else max(1, self._guess(width))

    def lines(self, width: int) -> list[Line]:
        """The lines, built if need be."""
        if self._width != width:
            self._lines = self._build(width)
            self._width = width
        return self._lines


class Stack(Generic[_T]):
    """Things on top of each other, and the line at which each begins."""

    def __init__(self) -> None:
        self.items: list[_T] = []
        self._tops: list[int] = [0]
        self._width = 0

    def touch(self, index: int) -> None:
        """Heights from `index` on may have changed."""
        del self._tops[index + 1 :]

    def _fill(self, width: int) -> None:
        if width != self._width:
            self._width = width
            self._tops = [0]
        tops = self._tops
        del tops[len(self.items) + 1 :]
        for item in self.items[len(tops) - 1 :]:
            tops.append(tops[-1] + item.height(width))

    def top(self, index: int, width: int) -> int:
        """The line at which item `index` begins; for one past the last, the height of all."""
        self._fill(width)
        return self._tops[index]

    def height(self, width: int) -> int:
        """The lines of all items."""
        self._fill(width)
        return self._tops[-1]

    def find(self, y: int, width: int) -> int:
        """The item on line `y`; the first or the last for lines outside."""
        self._fill(width)
        return max(0, min(bisect_right(self._tops, y) - 1, len(self.items) - 1))


class Group(Stack[Block]):
    """The blocks of one turn, made when they are first needed."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = False

    def open(self) -> None:
        """Make the blocks."""
        self.opened = True

    def guess(self, width: int) -> int:
        """The likely number of lines while there are no blocks yet."""
        return 1

    def height(self, width: int) -> int:
        """The number of lines, or a guess at it."""
        return super().height(width) if self.opened else self.guess(width)


@dataclass(frozen=True, slots=True)
class Anchor:
    """A block, the line in it, and the row on screen at which that line stands."""

    group: int
    block: int
    line: int
    row: int


class Column(Stack[Group]):
    """All turns of a conversation, from the first line to the last."""

    def blocks(self, top: int, rows: int, width: int) -> Iterator[tuple[int, int, int]]:
        """The blocks on the lines from `top` to `top + rows`: group, block, and first line."""
        if not self.items:
            return
        at = self.find(top, width)
        while at < len(self.items):
            group = self.items[at]
            base = self.top(at, width)
            if base >= top + rows:
                return
            if not group.opened:
                group.open()
                self.touch(at)
            number = group.find(top - base, width)
            while number < len(group.items):
                first = base + group.top(number, width)
                if first >= top + rows:
                    return
                yield at, number, first
                number += 1
            at += 1

    def anchor(self, top: int, rows: int, width: int) -> Anchor | None:
        """What should stay where it is: the first built block on screen, or the first of all."""
        fallback: Anchor | None = None
        for _ in self.blocks(top, rows, width):
            pass  # opens the groups; the heights change by that
        for at, number, first in self.blocks(top, rows, width):
            line = max(0, top - first)
            found = Anchor(at, number, line, max(0, first - top))
            if self.items[at].items[number].built(width):
                return found
            fallback = fallback or found
        return fallback

    def scrolled(self, old: int, new: int, rows: int, width: int) -> Anchor | None:
        """What should stay where it is relative to the move from line `old` to `new`.

        After a small move this is a block that was on screen before; after a jump, one at the
        destination.
        """
        if abs(new - old) > rows:
            return self.anchor(new, rows, width)
        before = self.anchor(old, rows, width)
        return before and replace(before, row=before.row + old - new)

    def place(self, anchor: Anchor, width: int) -> int:
        """The first line on screen when `anchor` stands at its row."""
        if anchor.group >= len(self.items):
            return self.height(width)
        group = self.items[anchor.group]
        if not group.opened:
            group.open()
            self.touch(anchor.group)
        number = min(anchor.block, max(0, len(group.items) - 1))
        inside = min(anchor.line, max(0, group.items[number].height(width) - 1))
        return self.top(anchor.group, width) + group.top(number, width) + inside - anchor.row

    def settle(self, anchor: Anchor | None, rows: int, width: int) -> int:
        """Build what is on screen, with `anchor` at its row, or (None) the end at the bottom.

        Returns:
            The first line on screen.
        """
        while True:
            end = max(0, self.height(width) - rows)
            top = end if anchor is None else max(0, min(end, self.place(anchor, width)))
            if not self._build(top, rows, width):
                return top

    def _build(self, top: int, rows: int, width: int) -> bool:
        """Build the blocks on these lines; whether any of them has another height than guessed."""
        changed = False
        before = self.height(width)
        for at, number, _ in list(self.blocks(top, rows, width)):
            group = self.items[at]
            block = group.items[number]
            if block.built(width):
                continue
            guess = block.height(width)
            if len(block.lines(width)) != guess:
                group.touch(number)
                self.touch(at)
                changed = True
        return changed or self.height(width) != before

    def lines(self, top: int, rows: int, width: int) -> list[tuple[int, Line]]:
        """The lines on screen, each with the index of its group."""
        found: list[tuple[int, Line]] = []
        for at, number, first in self.blocks(top, rows, width):
            lines = self.items[at].items[number].lines(width)
            found.extend((at, line) for line in lines[max(0, top - first) : top + rows - first])
        return found
