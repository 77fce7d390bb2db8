"""A conversation is a tree of turns: values that the store makes and nothing changes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from rwkv_chat.errors import NotFoundError

__all__ = ["Conversation", "Finish", "Role", "Summary", "Turn"]


class Role(StrEnum):
    """Who speaks in a turn. `TEXT` is raw text for the model to continue, without any template."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TEXT = "text"


class Finish(StrEnum):
    """Why an answer ended. `PARTIAL` covers a running answer and one cut off by a crash."""

    PARTIAL = "partial"
    STOP = "stop"
    END = "end"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"

    @property
    def can_continue(self) -> bool:
        """Whether the model had more to say."""
        return self in (Finish.PARTIAL, Finish.LENGTH, Finish.CANCELLED, Finish.ERROR)


@dataclass(frozen=True, slots=True)
class Turn:
    """One node of the tree.

    `text` is what a person reads; for an answer it includes the thoughts in `<think>...</think>`.
    `ids` are the token ids that this turn adds to the path, exactly as fed or generated, in terms
    of the vocabulary `tokenizer` (a fingerprint); both are empty until an engine has seen the turn.
    The first `prefix` ids of an answer come from the template, the others from the model.
    `seq` counts the turns of a conversation in the order in which they were made.
    """

    id: str
    conversation: str
    parent: str | None
    seq: int
    role: Role
    text: str
    ids: tuple[int, ...] = ()
    prefix: int = 0
    tokenizer: str = ""
    finish: Finish = Finish.STOP
    seed: int = 0
    model: str = ""
    label: str = ""
    created: float = 0.0
    tokens_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """A conversation as the sidebar shows it. Times are seconds since the epoch."""

    id: str
    title: str
    created: float
    updated: float
    turns: int


@dataclass(frozen=True)
class Conversation:
    """The whole tree of one conversation; `head` is the turn at the end of the path on screen.

    `settings` is a JSON object of the choices made for this conversation (template, sampling).
    """

    id: str
    title: str
    created: float
    updated: float
    head: str | None
    turns: Mapping[str, Turn] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)

    def turn(self, turn_id: str) -> Turn:
        """The turn with this id.

        Raises:
            NotFoundError: there is none.
        """
        try:
            return self.turns[turn_id]
        except KeyError:
            raise NotFoundError(f"There is no turn {turn_id} in this conversation.") from None

    def path(self, turn_id: str | None = None) -> list[Turn]:
        """The turns from the root to `turn_id` (default: to the head)."""
        path: list[Turn] = []
        at = turn_id if turn_id is not None else self.head
        while at is not None:
            turn = self.turn(at)
            path.append(turn)
            at = turn.parent
        path.reverse()
        return path

    def children(self, turn_id: str | None) -> list[Turn]:
        """The turns that follow `turn_id` (None: the roots), oldest first."""
        return self._children.get(turn_id, [])

    @cached_property
    def _children(self) -> dict[str | None, list[Turn]]:
        children: dict[str | None, list[Turn]] = {}
        for turn in sorted(self.turns.values(), key=lambda turn: turn.seq):
            children.setdefault(turn.parent, []).append(turn)
        return children

    def siblings(self, turn_id: str) -> list[Turn]:
        """The alternatives at this place, this turn among them, oldest first."""
        return self.children(self.turn(turn_id).parent)

    def newest_leaf(self, turn_id: str) -> Turn:
        """The leaf below `turn_id` (or itself) that was made last."""
        newest = self.turn(turn_id)
        todo = [newest]
        while todo:
            turn = todo.pop()
            newest = max(newest, turn, key=lambda turn: turn.seq)
            todo += self.children(turn.id)
        return newest
