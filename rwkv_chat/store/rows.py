"""Between values of the chat and rows of the tables."""

import json
import math
import sys
from array import array
from collections.abc import Mapping, Sequence

from rwkv_chat.chat.tree import Conversation, Finish, Role, Summary, Turn
from rwkv_chat.engine.ids import pack_ids
from rwkv_chat.errors import StoreDamagedError, UsageError
from rwkv_chat.text.display import scrub

__all__ = [
    "TURN_COLUMNS",
    "conversation_of",
    "pack_settings",
    "summary_of",
    "turn_of",
    "turn_values",
    "unpack_ids",
]

TURN_COLUMNS = (
    "id, conversation, parent, seq, role, text, ids, prefix, tokenizer, finish, seed, model, "
    "label, created, tokens_per_s"
)
Row = tuple[object, ...]


def unpack_ids(data: bytes) -> tuple[int, ...]:
    """The ids in `data`.

    Raises:
        StoreDamagedError: its length is no multiple of 4.
    """
    if len(data) % 4:
        raise StoreDamagedError("The token ids of a turn are damaged in the store.")
    packed = array("I", data)
    if sys.byteorder == "big":
        packed.byteswap()
    return tuple(packed)


def pack_settings(settings: Mapping[str, object]) -> str:
    """Settings as JSON.

    Raises:
        UsageError: they hold something that JSON cannot.
    """
    try:
        return json.dumps(dict(settings), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"The settings of a conversation cannot be saved: {error}.") from error


def turn_values(turn: Turn) -> Row:
    """The row of `turn`, in the order of TURN_COLUMNS."""
    speed = turn.tokens_per_s if math.isfinite(turn.tokens_per_s) else 0.0
    return (
        turn.id, turn.conversation, turn.parent, turn.seq, turn.role.value, scrub(turn.text),
        pack_ids(turn.ids), turn.prefix, turn.tokenizer, turn.finish.value, turn.seed,
        scrub(turn.model), scrub(turn.label), turn.created, speed,
    )  # fmt: skip


def turn_of(row: Sequence[object]) -> Turn:
    """The turn in a row of TURN_COLUMNS.

    Raises:
        StoreDamagedError: a column holds what no turn can have.
    """
    turn, conversation, parent, seq, role, text, ids, prefix, tokenizer, finish, *rest = row
    seed, model, label, created, speed = rest
    try:
        return Turn(
            id=str(turn),
            conversation=str(conversation),
            parent=None if parent is None else str(parent),
            seq=_whole(seq),
            role=Role(str(role)),
            text=str(text),
            ids=unpack_ids(_blob(ids)),
            prefix=_whole(prefix),
            tokenizer=str(tokenizer),
            finish=Finish(str(finish)),
            seed=_whole(seed),
            model=str(model),
            label=str(label),
            created=_number(created),
            tokens_per_s=_number(speed),
        )
    except (TypeError, ValueError) as error:
        raise StoreDamagedError(f"Turn {turn} is damaged in the store: {error}.") from error


def summary_of(row: Sequence[object]) -> Summary:
    """The summary in a row of id, title, created, updated, number of turns."""
    identifier, title, created, updated, turns = row
    return Summary(str(identifier), str(title), _number(created), _number(updated), _whole(turns))


def conversation_of(row: Sequence[object], turns: Mapping[str, Turn]) -> Conversation:
    """The conversation in a row of id, title, created, updated, head, settings.

    Raises:
        StoreDamagedError: the settings are no JSON object.
    """
    identifier, title, created, updated, head, settings = row
    try:
        choices = json.loads(str(settings))
    except (ValueError, RecursionError) as error:
        raise StoreDamagedError(
            f"The settings of conversation {identifier} are damaged in the store."
        ) from error
    if not isinstance(choices, dict):
        raise StoreDamagedError(
            f"The settings of conversation {identifier} are damaged in the store."
        )
    return Conversation(
        str(identifier),
        str(title),
        _number(created),
        _number(updated),
        head if isinstance(head, str) and head in turns else None,
        turns,
        choices,
    )


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _number(value: object) -> float:
    if not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _blob(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("the token ids are no bytes")
    return value
