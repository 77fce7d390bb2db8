"""From turns to token ids: what the model has read at every point of a path."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from rwkv_chat.chat.ports import Tokenizer
from rwkv_chat.chat.templates import Template, Think
from rwkv_chat.chat.tree import Role, Turn

__all__ = ["answer_bytes", "derive_seed", "encode_path"]

_TAIL = 64


def derive_seed(seed: int | None, depth: int, ordinal: int) -> int | None:
    """The seed of the `ordinal`-th answer at `depth`, so that siblings differ and reruns agree."""
    if seed is None:
        return None
    digest = hashlib.sha256(f"{seed}/{depth}/{ordinal}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def encode_path(
    path: Sequence[Turn], template: Template, tokenizer: Tokenizer, think: str
) -> list[Turn]:
    """The turns of `path` with ids in the vocabulary of `tokenizer`.

    Ids that are already in this vocabulary stay as they are: text encoded anew may give others.
    """
    encoded: list[Turn] = []
    tail = b""
    for turn in path:
        if turn.tokenizer != tokenizer.fingerprint or not turn.ids:
            turn = _encode(turn, template, tokenizer, think, tail)
        tail = (tail + tokenizer.decode_bytes(turn.ids[-_TAIL:]))[-_TAIL:]
        encoded.append(turn)
    return encoded


def _encode(turn: Turn, template: Template, tokenizer: Tokenizer, think: str, tail: bytes) -> Turn:
    if turn.role is not Role.ASSISTANT:
        ids = tokenizer.encode(template.opening(turn.role, turn.text, tail))
        return replace(turn, ids=tuple(ids), prefix=0, tokenizer=tokenizer.fingerprint)
    if turn.text:
        said = template.opening(turn.role, turn.text, tail)
        prefix = tokenizer.encode(template.answer_label)
        ids = prefix + tokenizer.encode(said.removeprefix(template.answer_label))
    else:
        prefix = ids = tokenizer.encode(template.answer_prefix(Think(think)))
    return replace(turn, ids=tuple(ids), prefix=len(prefix), tokenizer=tokenizer.fingerprint)


def answer_bytes(ids: Sequence[int], template: Template, tokenizer: Tokenizer) -> bytes:
    """What an answer says, a thinking prefix included, the role's label left out."""
    return tokenizer.decode_bytes(ids).removeprefix(template.answer_label)
