"""A conversation as the transcript shows it: the path to the head, and what lies beside it."""

from dataclasses import dataclass

from rwkv_chat.chat.tree import Conversation, Turn

__all__ = ["Row", "timeline"]


@dataclass(frozen=True, slots=True)
class Row:
    """One turn on the path.

    `number` of `siblings` alternatives stand at this place; `hidden` turns lie in the branches of
    the others; `last` marks the end of the path, and `below` counts the turns that follow it.
    """

    turn: Turn
    number: int = 1
    siblings: int = 1
    hidden: int = 0
    last: bool = False
    below: int = 0


def timeline(conversation: Conversation) -> list[Row]:
    """The rows from the root to the head, in time linear in the size of the tree."""
    children: dict[str | None, list[Turn]] = {}
    sizes: dict[str, int] = {}
    for turn in sorted(conversation.turns.values(), key=lambda turn: -turn.seq):
        children.setdefault(turn.parent, []).append(turn)
        sizes[turn.id] = 1 + sum(sizes.get(child.id, 0) for child in children.get(turn.id, ()))
    rows: list[Row] = []
    path = conversation.path()
    for turn in path:
        beside = children[turn.parent]
        others = [other for other in beside if other.id != turn.id]
        number = 1 + sum(other.seq < turn.seq for other in others)
        hidden = sum(sizes[other.id] for other in others)
        last = turn is path[-1]
        below = sizes[turn.id] - 1 if last else 0
        rows.append(Row(turn, number, len(beside), hidden, last, below))
    return rows
