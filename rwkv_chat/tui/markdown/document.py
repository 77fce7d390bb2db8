"""A text that grows, cut into chunks of lines; finished chunks never change again."""

from collections.abc import Iterator
from dataclasses import dataclass

from rwkv_chat.text.display import clean
from rwkv_chat.tui.markdown.code import advance

__all__ = ["Chunk", "Document", "Fence", "fence_after"]

_CHUNK_LINES = 32
_TABLE_LINES = 256
_LINE_CHARACTERS = 2000
_CHUNK_CHARACTERS = 8000


@dataclass(frozen=True, slots=True)
class Fence:
    """An open code block: its closing mark, indent, language, and the state of its colours."""

    mark: str
    indent: int
    language: str
    state: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some lines of a document.

    `start` is the index of the first character in the document's raw text; `fence` is the code
    block that is open at the first line.
    """

    start: int
    lines: tuple[str, ...]
    fence: Fence | None


def fence_after(line: str, fence: Fence | None) -> Fence | None:
    """The code block that is open after `line`."""
    stripped = line.lstrip(" ")
    indent = len(line) - len(stripped)
    if fence is None:
        mark = stripped[:3]
        if mark not in ("```", "~~~"):
            return None
        length = len(stripped) - len(stripped.lstrip(mark[0]))
        info = stripped[length:].strip()
        if mark == "```" and "`" in info:
            return None
        language = info.split(None, 1)[0].strip("{}.,") if info else ""
        return Fence(mark[0] * length, indent, language)
    if stripped.startswith(fence.mark) and not stripped.strip().strip(fence.mark[0]):
        return None
    state = advance(line, fence.language, fence.state)
    if state == fence.state:
        return fence
    return Fence(fence.mark, fence.indent, fence.language, state)


class Document:
    """Chunks of a text. `update` re-reads only what follows the last finished chunk."""

    def __init__(self, text: str = "") -> None:
        self.text = ""
        self.chunks: list[Chunk] = []
        self.update(text)

    def update(self, text: str) -> int:
        """Take over the whole text so far.

        Args:
            text: Raw text; it is made safe here.

        Returns:
            The index of the first chunk that is not the same as before.
        """
        if text == self.text:
            return len(self.chunks)
        if self.chunks and text.startswith(self.text):
            last = self.chunks.pop()
            start, fence = last.start, last.fence
        else:
            self.chunks.clear()
            start, fence = 0, None
        first = len(self.chunks)
        self.text = text
        if text:
            self._read(start, fence)
        return first

    def _read(self, start: int, fence: Fence | None) -> None:
        opened, lines, characters, begun = fence, list[str](), 0, start
        for at, line in _raw_lines(self.text, start):
            full = len(lines) >= _CHUNK_LINES or characters + len(line) > _CHUNK_CHARACTERS
            if lines and full and not _in_table(lines, line):
                self.chunks.append(Chunk(begun, tuple(lines), opened))
                opened, lines, characters, begun = fence, [], 0, at
            for safe in clean(line.removesuffix("\r")).expandtabs(4).split("\n"):
                lines.append(safe)
                fence = fence_after(safe, fence)
            characters += len(line)
        self.chunks.append(Chunk(begun, tuple(lines), opened))


def _in_table(lines: list[str], line: str) -> bool:
    """Whether the next line may belong to a table that began in `lines`."""
    return "|" in line and "|" in lines[-1] and len(lines) < _TABLE_LINES


def _raw_lines(text: str, start: int) -> Iterator[tuple[int, str]]:
    """The lines from `start` with their positions; a very long one comes in pieces.

    A line end at the end of the text begins no other line.
    """
    at = start
    while at == start or at < len(text):
        end = text.find("\n", at, at + _LINE_CHARACTERS)
        if end >= 0:
            yield at, text[at:end]
            at = end + 1
        elif at + _LINE_CHARACTERS < len(text):
            yield at, text[at : at + _LINE_CHARACTERS]
            at += _LINE_CHARACTERS
        else:
            yield at, text[at:]
            return
