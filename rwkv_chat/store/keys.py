"""Which saved states belong to which turns: the keys of `engine.pathkey` for the whole store."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator

__all__ = ["reachable", "valued"]

_STRIDE = 8


def reachable(sql: sqlite3.Connection, models: Collection[str], gone: Collection[str]) -> set[str]:
    """The keys of all states at the end of a turn, or of its template prefix, for `models`.

    The conversations that are `gone` reach none.
    """
    walk = _walk(sql, models, gone)
    return {key for _, after_prefix, after_turn in walk for key in (*after_prefix, *after_turn)}


def valued(sql: sqlite3.Connection, models: Collection[str]) -> set[str]:
    """The keys of the states that are wanted most: they stand where one goes on or branches off.

    These are the ends of leaves, of branch points, of labelled turns, and of every 8th turn of a
    path, from which what lies between is soon read again.
    """
    children: Counter[str | None] = Counter()
    depth: dict[str | None, int] = {None: 0}
    wanted = set()
    turns = sql.execute("SELECT id, parent, label FROM turn ORDER BY conversation, seq").fetchall()
    for turn, parent, label in turns:
        children[parent] += 1
        depth[turn] = depth[parent] + 1
        if label or depth[turn] % _STRIDE == 0:
            wanted.add(turn)
    wanted |= {turn for turn, _, _ in turns if children[turn] != 1}
    walk = _walk(sql, models, ())
    return {key for turn, _, after_turn in walk if turn in wanted for key in after_turn}


def _walk(
    sql: sqlite3.Connection, models: Collection[str], gone: Collection[str]
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Every turn with the keys after its template prefix, and those at its end, for each model.

    The work for common beginnings is done once.
    """
    digests: dict[str, list[hashlib._Hash]] = {}
    roots = [hashlib.sha256(model.encode()) for model in models]
    for turn, conversation, parent, ids, prefix in sql.execute(
        "SELECT id, conversation, parent, ids, prefix FROM turn ORDER BY conversation, seq"
    ):
        if conversation in gone:
            continue
        mine = [digest.copy() for digest in (digests[parent] if parent else roots)]
        after_prefix = _digest_all(mine, ids[: prefix * 4])
        after_turn = _digest_all(mine, ids[prefix * 4 :])
        digests[turn] = mine
        yield turn, after_prefix, after_turn


def _digest_all(digests: list[hashlib._Hash], part: bytes) -> list[str]:
    for digest in digests:
        digest.update(part)
    return [digest.hexdigest() for digest in digests]
