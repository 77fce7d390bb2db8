"""Emphasis, code, strike-through and links inside one line, in linear time."""

import re
from collections.abc import Iterator

from rwkv_chat.tui.markdown.lines import Span

__all__ = ["parse_inline"]

_TOKEN = re.compile(
    r"\\(?P<escaped>[!-/:-@\[-`{-~])"
    r"|(?P<ticks>`+)"
    r"|(?P<mark>\*{1,3}|_{1,3}|~~)"
    r"|!?\[(?P<label>[^\[\]\n]{1,300})\]\((?P<target>[^()\s]{1,500})\)"
)
_MARKS = {"*": "em", "_": "em", "**": "strong", "__": "strong", "~~": "strike"}
_MARKS |= {"***": "strong+em", "___": "strong+em"}
_LONGEST = 4000


def parse_inline(text: str, base: str = "") -> list[Span]:
    """Split a line into styled spans. Marks that pair with nothing stay as they are written.

    A link shows its label and its whole target, as text: nothing can be opened by it.

    Args:
        text: Safe text of one line.
        base: A style that every span carries.
    """
    if len(text) > _LONGEST or not any(mark in text for mark in "*_`~[\\"):
        return [(text, base)] if text else []
    pieces = list(_pieces(text))
    _pair(pieces)
    spans: list[Span] = []
    for piece in pieces:
        style = "+".join(name for name in (base, *sorted(piece.styles)) if name)
        if not piece.text:
            continue
        if spans and spans[-1][1] == style:
            spans[-1] = (spans[-1][0] + piece.text, style)
        else:
            spans.append((piece.text, style))
    return spans


class _Piece:
    __slots__ = ("closes", "mark", "opens", "styles", "text")

    def __init__(self, text: str, *styles: str) -> None:
        self.text = text
        self.styles = set(styles)
        self.mark = ""
        self.opens = False
        self.closes = False


def _pieces(text: str) -> Iterator[_Piece]:
    runs: dict[int, list[int]] = {}
    for run in re.finditer("`+", text):
        runs.setdefault(len(run.group()), []).append(run.start())
    for starts in runs.values():
        starts.reverse()
    at = 0
    position = 0
    while match := _TOKEN.search(text, position):
        start, position = match.span()
        if start > at:
            yield _Piece(text[at:start])
        at = position
        if match["escaped"]:
            yield _Piece(match["escaped"])
        elif ticks := match["ticks"]:
            starts = runs.get(len(ticks), [])
            while starts and starts[-1] <= start:
                starts.pop()
            if starts:
                inside = text[position : starts[-1]]
                if inside.strip() and inside[0] == inside[-1] == " ":
                    inside = inside[1:-1]
                yield _Piece(inside, "code")
                at = position = starts[-1] + len(ticks)
            else:
                yield _Piece(ticks)
        elif match["label"]:
            yield _Piece(match["label"], "link")
            if match["label"] != match["target"]:
                yield _Piece(f" ({match['target']})", "dim")
        else:
            yield _delimiter(text, match["mark"], start, position)
    if at < len(text):
        yield _Piece(text[at:])


def _delimiter(text: str, mark: str, start: int, end: int) -> _Piece:
    before = text[start - 1] if start else " "
    after = text[end] if end < len(text) else " "
    piece = _Piece(mark)
    piece.mark = mark
    piece.opens = not after.isspace()
    piece.closes = not before.isspace()
    if mark == "*" and before.isalnum() and after.isalnum():
        piece.opens = piece.closes = False  # 2*3*4 is arithmetic
    if mark[0] == "_":
        piece.opens = piece.opens and not before.isalnum()
        piece.closes = piece.closes and not after.isalnum()
    return piece


def _pair(pieces: list[_Piece]) -> None:
    """Match closing marks with the nearest equal opening one, and style what lies between."""
    opened: dict[str, list[int]] = {}
    pairs: list[tuple[int, int, str]] = []
    for number, piece in enumerate(pieces):
        if not piece.mark:
            continue
        stack = opened.setdefault(piece.mark, [])
        if piece.closes and stack and stack[-1] < number - 1:
            start = stack.pop()
            pairs.append((start, number, _MARKS[piece.mark]))
            for held in opened.values():
                while held and held[-1] > start:
                    held.pop()
        elif piece.opens:
            stack.append(number)
    _apply(pieces, pairs)


def _apply(pieces: list[_Piece], pairs: list[tuple[int, int, str]]) -> None:
    starts: dict[int, str] = {}
    ends: set[int] = set()
    for start, end, style in pairs:
        starts[start] = style
        ends.add(end)
        pieces[start].text = pieces[end].text = ""
    active: list[str] = []
    for number, piece in enumerate(pieces):
        if number in ends:
            active.pop()
        elif number in starts:
            active.append(starts[number])
        elif active:
            piece.styles.update(name for style in set(active) for name in style.split("+"))
