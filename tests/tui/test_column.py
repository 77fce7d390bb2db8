"""The geometry of a column whose heights are guesses until one looks."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_chat.tui.column import Anchor, Block, Column, Group
from rwkv_chat.tui.markdown.lines import Line


class FakeGroup(Group):
    """Blocks with known lines and wrong guesses."""

    def __init__(self, name: int, heights: list[tuple[int, int]]) -> None:
        super().__init__()
        self.name = name
        self.heights = heights

    def open(self) -> None:
        super().open()
        self.items = [
            Block(
                lambda width, n=n, real=real: self.draw(n, real), lambda width, guess=guess: guess
            )  # type: ignore[misc]
            for n, (real, guess) in enumerate(self.heights)
        ]
        self.touch(0)

    def draw(self, block: int, height: int) -> list[Line]:
        return [Line(((f"{self.name}.{block}.{n}", ""),)) for n in range(height)]

    def guess(self, width: int) -> int:
        return 7


def column(shape: list[list[tuple[int, int]]]) -> tuple[Column, list[str]]:
    made = Column()
    made.items = [FakeGroup(n, heights) for n, heights in enumerate(shape)]
    lines = [
        f"{n}.{b}.{line}"
        for n, heights in enumerate(shape)
        for b, (real, _) in enumerate(heights)
        for line in range(real)
    ]
    return made, lines


shapes = st.lists(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 20)), min_size=1, max_size=8),
    min_size=1,
    max_size=12,
)


def shown(made: Column, top: int, rows: int) -> list[str]:
    return [line.text for _, line in made.lines(top, rows, 10)]


@given(shapes, st.integers(1, 15))
@settings(max_examples=150, deadline=None)
def test_following_shows_the_last_lines(shape: list[list[tuple[int, int]]], rows: int) -> None:
    made, lines = column(shape)
    top = made.settle(None, rows, 10)
    assert shown(made, top, rows) == lines[-rows:]


@given(shapes, st.integers(1, 15))
@settings(max_examples=100, deadline=None)
def test_scrolling_up_line_by_line_shows_every_line(
    shape: list[list[tuple[int, int]]], rows: int
) -> None:
    made, lines = column(shape)
    top = made.settle(None, rows, 10)
    end = len(lines)
    while top > 0:
        anchor = made.scrolled(top, top - 1, rows, 10)
        top = made.settle(anchor, rows, 10)
        screen = shown(made, top, rows)
        end -= 1
        assert screen == lines[max(0, end - rows) : max(end, rows)]
    assert made.height(10) == len(lines)


@given(shapes, st.integers(1, 15), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_any_jumps_show_neighbouring_lines(
    shape: list[list[tuple[int, int]]], rows: int, rng: random.Random
) -> None:
    made, lines = column(shape)
    for _ in range(20):
        wanted = rng.randrange(max(1, made.height(10)))
        top = made.settle(made.anchor(wanted, rows, 10), rows, 10)
        screen = shown(made, top, rows)
        at = lines.index(screen[0])
        assert screen == lines[at : at + rows]
        assert len(screen) == min(rows, len(lines))


def test_an_anchor_stays_at_its_row_when_something_above_grows() -> None:
    made, _ = column([[(5, 5)], [(5, 5)], [(5, 5)]])
    top = made.settle(Anchor(1, 0, 2, 3), 4, 10)
    assert shown(made, top, 4)[3] == "1.0.2"
    first = made.items[0]
    assert isinstance(first, FakeGroup)
    first.heights = [(9, 9)]
    first.open()
    made.touch(0)
    top = made.settle(Anchor(1, 0, 2, 3), 4, 10)
    assert shown(made, top, 4)[3] == "1.0.2"


def test_an_empty_column_is_no_trouble() -> None:
    made = Column()
    assert made.settle(None, 10, 10) == 0
    assert made.anchor(0, 10, 10) is None
    assert made.lines(0, 10, 10) == []
