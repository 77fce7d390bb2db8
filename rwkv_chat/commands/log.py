"""`rwkv-chat log`: conversations and their trees."""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import suppress

from rwkv_chat.chat.tree import Conversation, Turn
from rwkv_chat.commands import compose
from rwkv_chat.errors import NotFoundError
from rwkv_chat.settings import Settings
from rwkv_chat.store.conversations import Conversations
from rwkv_chat.text.display import clean, one_line

__all__ = ["run"]

_WIDTH = 72


def run(options: argparse.Namespace) -> int:
    """Print every conversation, the last changed first."""
    with compose.open_store(Settings.load()) as store:
        conversations = list(_load(store))
    if options.json:
        print(json.dumps([_as_json(c) for c in conversations], indent=2))
        return 0
    if not conversations:
        print('There are no conversations yet; start one with rwkv-chat, or rwkv-chat ask "Hello".')
    for conversation in conversations:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(conversation.updated))
        print(f"{conversation.id}  {when}  {clean(conversation.title)}")
        for line in _draw(conversation, "  "):
            print(line)
        print()
    return 0


def _load(store: Conversations) -> Iterator[Conversation]:
    for summary in store.conversations():
        with suppress(NotFoundError):  # another window has deleted it since
            yield store.load(summary.id)


def _draw(conversation: Conversation, indent: str) -> Iterator[str]:
    """The tree, depth first; a lone child stays at its parent's indentation."""
    todo: list[tuple[Turn, str, bool]] = []

    def push(parent: str | None, before: str) -> None:
        children = conversation.children(parent)
        todo.extend((turn, before, turn is children[-1]) for turn in reversed(children))

    push(None, indent)
    while todo:
        turn, before, last = todo.pop()
        alone = len(conversation.siblings(turn.id)) == 1
        yield before + ("" if alone else "└ " if last else "├ ") + _line(conversation, turn)
        below = before + ("" if alone else "  " if last else "│ ")
        push(turn.id, below)


def _line(conversation: Conversation, turn: Turn) -> str:
    marks = [turn.label and f"[{turn.label}]", turn.finish.can_continue and "(unfinished)"]
    head = " *" if turn.id == conversation.head else ""
    words = [turn.id, f"{turn.role.value}:", *filter(None, marks), one_line(turn.text, _WIDTH)]
    return clean(" ".join(str(word) for word in words)) + head


def _as_json(conversation: Conversation) -> dict[str, object]:
    turns = sorted(conversation.turns.values(), key=lambda turn: turn.seq)
    return {
        "id": conversation.id,
        "title": conversation.title,
        "created": conversation.created,
        "updated": conversation.updated,
        "head": conversation.head,
        "turns": [
            {
                "id": turn.id,
                "parent": turn.parent,
                "role": turn.role.value,
                "text": turn.text,
                "label": turn.label,
                "finish": turn.finish.value,
                "model": turn.model,
                "tokens": len(turn.ids) - turn.prefix,
                "created": turn.created,
            }
            for turn in turns
        ],
    }
