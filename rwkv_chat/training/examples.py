"""A file of text or chats as rows of token ids, in a part to learn from and parts to judge by.

Three forms are read:

- `.jsonl`: a line {"turns": [what the user says, the answer, ...]} or {"text": "..."} per document;
- chats, when the first line begins with `User:`. A turn begins with `User:` or `Assistant:` at the
  start of a line. Two blank lines or a line `---` end a dialogue; in a file that has no blank line
  between a question and its answer, one blank line does.
- any other text. Two blank lines or a line `---` end a document; in a file that has neither, one
  blank line does.
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkv_chat.chat.templates import Template
from rwkv_chat.chat.tree import Role
from rwkv_chat.errors import UsageError
from rwkv_chat.tokenizer.vocabulary import Vocabulary
from rwkv_chat.training.pack import ANSWER, TEXT, pieces_of

__all__ = ["Parts", "Row", "cut", "divide", "parse", "read"]

Document = dict[str, Any]
"""{"text": str} or {"turns": list of str, the user first}."""

_MAX_BYTES = 256 << 20
_WIDE_GAP = re.compile(r"\n(?:[ \t]*\n){2,}|(?:^|\n)---[ \t]*(?:\n|$)")
_GAP = re.compile(r"\n(?:[ \t]*\n)+")
_LABEL = re.compile(r"^(User|Assistant):", re.MULTILINE)
_ANSWER_AT_ONCE = re.compile(r"\S[ \t]*\nAssistant:")
_JUDGED = 10  # one document in so many, in each of the parts to judge by


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids that a model reads from its start state.

    `counted[i]` says whether the loss of `ids[i]`, predicted from those before it, counts.
    """

    ids: tuple[int, ...]
    counted: tuple[bool, ...]

    @property
    def n_counted(self) -> int:
        """How many predictions count."""
        return sum(self.counted)


@dataclass(frozen=True, slots=True)
class Parts:
    """Rows to learn from, rows by which the best state is chosen (none where the file is small),
    and rows that are only looked at before and after. No document is in two parts.
    """

    learnt: tuple[Row, ...]
    watched: tuple[Row, ...]
    held_out: tuple[Row, ...]


def read(path: Path) -> list[Document]:
    """The documents of a file, each one once.

    Raises:
        UsageError: it cannot be read as one of the three forms, or is empty; with the line.
    """
    try:
        if not path.is_file():
            raise UsageError(f"There is no file {path}. Check the path.")
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise UsageError(
                f"{path} has {size / 1e6:.0f} MB. A start state learns a manner, not a library: "
                f"give a file of at most {_MAX_BYTES >> 20} MiB."
            )
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        documents = list(_json_lines(text) if path.suffix == ".jsonl" else parse(text))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    once = {json.dumps(document, sort_keys=True): document for document in documents}
    if not once:
        raise UsageError(f"{path} is empty: there is nothing to learn from.")
    return list(once.values())


def _json_lines(text: str) -> Iterator[Document]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise UsageError(f"line {number} is not a JSON object.")
        turns, said = found.get("turns"), found.get("text")
        if isinstance(turns, list) and len(turns) > 1 and all(isinstance(t, str) for t in turns):
            yield {"turns": turns}
        elif isinstance(said, str) and turns is None:
            if said.strip():
                yield {"text": said}
        else:
            raise UsageError(
                f'line {number} has neither "turns", a list of two or more texts, nor "text".'
            )


def parse(text: str) -> Iterator[Document]:
    """The documents of a text: chats when it begins with `User:`, or else plain ones.

    Raises:
        UsageError: the turns of a chat do not alternate.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    chats = text.startswith("User:")
    gap = _WIDE_GAP
    if _ANSWER_AT_ONCE.search(text) if chats else not _WIDE_GAP.search(text):
        gap = re.compile(f"{_WIDE_GAP.pattern}|{_GAP.pattern}")
    for block in gap.split(text):
        if block.strip():
            yield {"turns": _turns(block.strip())} if chats else {"text": block.strip("\n")}


def _turns(block: str) -> list[str]:
    before, *found = _LABEL.split(block)
    labels, turns = found[::2], [turn.strip() for turn in found[1::2]]
    expected = ["User", "Assistant"] * (len(labels) // 2)
    if before or labels != expected or not all(turns):
        raise UsageError(
            f"the dialogue that begins {block[:60]!r} is not User: and Assistant: by turns, from a "
            "question to an answer."
        )
    return turns


def cut(document: Document, tokenizer: Vocabulary, template: Template, length: int) -> list[Row]:
    """Rows of at most `length` predictions. Of chats the answers count, of text everything.

    A document is encoded as the application does it and ends with id 0. What is longer becomes
    several rows, each of which begins at the start state.
    """
    if "turns" in document:
        speakers = (Role.USER, Role.ASSISTANT)
        turns = [template.clean(speakers[i % 2], t) for i, t in enumerate(document["turns"])]
        document = {"turns": turns}
    ids: list[int] = []
    counted: list[bool] = []
    role = TEXT
    for text, role in pieces_of(document):
        piece = tokenizer.encode(text)
        ids += piece
        counted += [role in (TEXT, ANSWER)] * len(piece)
    ids.append(0)
    counted.append(role == TEXT)
    rows = []
    for start in range(0, len(ids) - 1, length):
        end = start + length + 1
        row = Row(tuple(ids[start:end]), (False, *counted[start + 1 : end]))
        if row.n_counted:
            rows.append(row)
    return rows


def divide(documents: Sequence[Sequence[Row]], seed: int) -> Parts:
    """Deal out whole documents; of a single one, its last rows are held out.

    Raises:
        UsageError: there is too little to learn from and to judge by.
    """
    kept = [list(rows) for rows in documents if rows]
    if len(kept) == 1:
        kept = [[row] for row in kept[0]]
    else:
        random.Random(seed).shuffle(kept)
    if len(kept) < 2:
        raise UsageError(
            "The text is too short: it needs two documents, one to learn from and one to judge by, "
            "or one that is longer than --length. A few dozen are better."
        )
    judged = max(1, len(kept) // _JUDGED)
    watched = judged if len(kept) >= _JUDGED else 0

    def rows(first: int, end: int) -> tuple[Row, ...]:
        return tuple(row for rows in kept[first:end] for row in rows)

    last, middle = len(kept) - judged, len(kept) - judged - watched
    return Parts(rows(0, middle), rows(middle, last), rows(last, len(kept)))
