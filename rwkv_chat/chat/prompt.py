"""From turns to token ids: what the model has read at every point of a path."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import replace

from rwkv_chat.chat.ports import Tokenizer
from rwkv_chat.chat.templates import Template, Think, after_label
from rwkv_chat.chat.tree import Role, Turn

__all__ = ["answer_bytes", "derive_seed", "encode_path"]

_TAIL = 512


def derive_seed(seed: int | None, ordinal: int) -> int:
    """The seed of the `ordinal`-th answer to a question: `seed` itself for the first one.

    Siblings differ, and reruns agree. Without a seed a fresh one is drawn.
    """
    if seed is None:
        return secrets.randbits(63)
    if ordinal == 0:
        return seed
    digest = hashlib.sha256(f"{seed}/{ordinal}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def encode_path(
    path: Sequence[Turn], template: Template, tokenizer: Tokenizer, think: str
) -> list[Turn]:
    """The turns of `path`, of which the last is to be answered, with ids of `tokenizer`.

    Ids that are already in this vocabulary stay as they are: text encoded anew may give others.
    `think` names the thinking mode of the last turn when nothing of it was generated yet; the
    message before it is told how long to think when it was not fed before.
    """
    encoded: list[Turn] = []
    tail = b""
    for turn in path:
        known = turn.tokenizer == tokenizer.fingerprint and turn.ids
        unsaid = turn.role is Role.ASSISTANT and len(turn.ids) == turn.prefix and not turn.text
        if not known or unsaid:
            mode = Think(think) if len(path) - len(encoded) <= 2 else Think.OFF
            turn = _encode(turn, template, tokenizer, mode, tail)
        tail = (tail + tokenizer.decode_bytes(turn.ids[-_TAIL:]))[-_TAIL:]
        encoded.append(turn)
    return encoded


def _encode(
    turn: Turn, template: Template, tokenizer: Tokenizer, think: Think, tail: bytes
) -> Turn:
    said = template.opening(turn.role, turn.text, tail, think)
    if turn.role is not Role.ASSISTANT:
        ids = tokenizer.encode(said)
        return replace(turn, ids=tuple(ids), prefix=0, tokenizer=tokenizer.fingerprint)
    label = template.answer_label
    said = said[said.find(label) + len(label) :] if turn.text else b""
    joint = template.opening(turn.role, "", tail)
    thought = b"" if turn.text else template.answer_prefix(think).removeprefix(label)
    prefix = tokenizer.encode(joint + thought)
    ids = prefix + tokenizer.encode(said)
    return replace(turn, ids=tuple(ids), prefix=len(prefix), tokenizer=tokenizer.fingerprint)


def answer_bytes(turn: Turn, tokenizer: Tokenizer) -> bytes:
    """What an answer says, a thinking prefix included, the role's label left out."""
    if len(turn.ids) == turn.prefix:
        return b""
    prefix = tokenizer.decode_bytes(turn.ids[: turn.prefix])
    start = len(prefix) - len(after_label(prefix))
    return tokenizer.decode_bytes(turn.ids)[start:]
