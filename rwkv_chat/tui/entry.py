"""One turn in the transcript: its header, thoughts, text and marks, as blocks of lines."""

from dataclasses import dataclass
from functools import partial

from rich.cells import cell_len

from rwkv_chat.chat.templates import split_thought
from rwkv_chat.chat.tree import Finish, Role
from rwkv_chat.text.display import one_line
from rwkv_chat.tui.column import Block, Group
from rwkv_chat.tui.markdown.document import Chunk, Document
from rwkv_chat.tui.markdown.lines import Line, Span, fit, wrap
from rwkv_chat.tui.markdown.render import render_chunk, render_plain
from rwkv_chat.tui.timeline import Row

__all__ = ["GAP", "Entry", "Live"]

GAP = Line()
"""The blank line below a turn."""

_ENDINGS = {
    Finish.PARTIAL: "cut off",
    Finish.CANCELLED: "stopped",
    Finish.LENGTH: "length limit reached",
    Finish.ERROR: "failed",
}


@dataclass(frozen=True, slots=True)
class Live:
    """A running answer: its text so far, and what is going on while there is none."""

    text: str = ""
    doing: str = ""


class Entry(Group):
    """The blocks of one turn.

    Blocks: header, thoughts (a fold line and chunks), chunks of text, the end mark, a blank line.
    """

    def __init__(self, row: Row, continue_key: str) -> None:
        super().__init__()
        self.row = row
        self.live: Live | None = None
        self.failure = ""
        self.unfolded: bool | None = None
        self._continue_key = continue_key
        self._thought = _Part(plain=False, style="thought")
        self._body = _Part(plain=row.turn.role in (Role.USER, Role.TEXT))
        self._head = 0

    @property
    def text(self) -> str:
        """The raw text on screen: what was said so far while the answer runs."""
        return self.live.text if self.live is not None else self.row.turn.text

    @property
    def has_thought(self) -> bool:
        """Whether there are thoughts to fold."""
        return self.row.turn.role is Role.ASSISTANT and split_thought(self.text)[0] is not None

    @property
    def thought_open(self) -> bool:
        """Whether the thoughts are shown: as the person chose, else while nothing else is said."""
        if self.unfolded is not None:
            return self.unfolded
        return self.live is not None and not split_thought(self.text)[1]

    def guess(self, width: int) -> int:
        """The likely height, from the length of the text alone."""
        text = self.text
        return 3 + text.count("\n") + len(text) // max(1, width)

    def open(self) -> None:
        """Make the blocks."""
        super().open()
        self.refresh()

    def update(self, row: Row, live: Live | None, failure: str = "") -> bool:
        """Show other content; blocks whose content is the same are kept.

        Returns:
            Whether anything changed.
        """
        same = (row, live, failure) == (self.row, self.live, self.failure)
        self.row, self.live, self.failure = row, live, failure
        if self.opened and not same:
            self.refresh()
        return not same

    def refresh(self) -> None:
        """Rebuild the blocks that are not the same as before."""
        thought, said = None, self.text
        if self.row.turn.role is Role.ASSISTANT:
            thought, said = split_thought(self.text)
        head = [Block(self._header)]
        if thought is not None:
            head.append(Block(self._fold_line))
            if self.thought_open:
                self._thought.update(thought)
                head += [*self._thought.blocks, Block(_blank)]
        changed = len(head) + self._body.update(said.rstrip("\n"))
        tail: list[Block] = []
        if self.live is not None and not said:
            tail.append(Block(self._waiting))
        if self.live is None and self._ending():
            tail.append(Block(self._end_mark))
        if self.row.below:
            tail.append(Block(self._below_mark))
        tail.append(Block(_gap))
        same_head = len(head) <= 2 and len(head) == self._head
        self._head = len(head)
        self.items = [*head, *self._body.blocks, *tail]
        self.touch(changed if same_head else 0)

    # -- lines ---------------------------------------------------------------------------------

    def _header(self, width: int) -> list[Line]:
        turn = self.row.turn
        names = {Role.USER: "You", Role.SYSTEM: "System", Role.TEXT: "Text"}
        name = names.get(turn.role) or one_line(turn.model, 40) or "Model"
        left: list[Span] = [(name, f"name+{turn.role.value}")]
        if turn.label:
            left.append((f"  ⚑ {one_line(turn.label, 40)}", "label"))
        right: list[Span] = []
        row = self.row
        if row.siblings > 1:
            if row.hidden:
                turns = "turn" if row.hidden == 1 else "turns"
                wide = f"{row.hidden} {turns} in other branches  "
                note = wide if width >= 56 else f"+{row.hidden} "
                right.append((note, "dim"))
            right.append((f"‹ {row.number}/{row.siblings} ›", "siblings"))
        room = width - sum(cell_len(text) for text, _ in right) - 1
        shown = fit(left, max(1, room))
        gap = width - sum(cell_len(text) for text, _ in (*shown, *right))
        return [Line((*shown, (" " * max(1, gap), ""), *right))]

    def _fold_line(self, width: int) -> list[Line]:
        opened = self.thought_open
        thinking = self.live is not None and not split_thought(self.text)[1]
        mark = "▾" if opened else "▸"
        if thinking:
            return [Line(((f"{mark} thinking…", "fold"),))]
        count = len((split_thought(self.text)[0] or "").splitlines())
        lines = "line" if count == 1 else "lines"
        hint = "" if opened else f" · {count} {lines}"
        return [Line(fit([(f"{mark} thoughts{hint}", "fold")], width))]

    def _waiting(self, width: int) -> list[Line]:
        doing = self.live.doing if self.live is not None else ""
        return [Line(fit([(f"{doing or 'waiting'} …", "dim")], width))]

    def _ending(self) -> str:
        turn = self.row.turn
        if turn.role is not Role.ASSISTANT:
            return ""
        return _ENDINGS.get(turn.finish, "")

    def _end_mark(self, width: int) -> list[Line]:
        spans: list[Span] = [(f"■ {self._ending()}", "mark")]
        if self.failure:
            spans.append((f": {one_line(self.failure, 400)}", "dim"))
        if self.row.last:
            spans.append((f" — {self._continue_key} continues", "dim"))
        return wrap(spans, width)

    def _below_mark(self, width: int) -> list[Line]:
        below = self.row.below
        turns = "turn follows" if below == 1 else "turns follow"
        return [Line(fit([(f"▾ {below} {turns} here: ↓ shows them", "dim")], width))]


class _Part:
    """A document and the blocks of its chunks; a block stays as long as its chunk."""

    def __init__(self, plain: bool, style: str = "") -> None:
        self.blocks: list[Block] = []
        self._document = Document()
        self._plain = plain
        self._style = style

    def update(self, text: str) -> int:
        """Show `text`; returns the index of the first block that is not the same as before."""
        first = self._document.update(text)
        self.blocks[first:] = [
            Block(partial(_draw, chunk, self._plain, self._style), partial(_guess, chunk))
            for chunk in self._document.chunks[first:]
        ]
        return first


def _draw(chunk: Chunk, plain: bool, style: str, width: int) -> list[Line]:
    if not style:
        return render_plain(chunk, width) if plain else render_chunk(chunk, width)
    bar: Span = ("│ ", "fold")
    inner = render_chunk(chunk, max(4, width - 2), style)
    return [Line((bar, *line.spans), line.fill) for line in inner]


def _guess(chunk: Chunk, width: int) -> int:
    return sum(1 + len(line) // max(1, width) for line in chunk.lines)


def _gap(width: int) -> list[Line]:
    return [GAP]


def _blank(width: int) -> list[Line]:
    return [Line()]
