"""Reading what can still be read of a damaged store, row by row."""

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rwkv_chat.store.files import create_private
from rwkv_chat.store.opening import connect, migrate

__all__ = ["Repair", "repair_store"]

_PROBE = 10_000
_CONVERSATION = ("id", "title", "created", "updated", "changed", "head", "settings", "deleted")
_TURN = (
    "id", "conversation", "parent", "seq", "role", "text", "ids", "prefix",
    "tokenizer", "finish", "seed", "model", "label", "created", "tokens_per_s",
)  # fmt: skip
_Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Repair:
    """What became of a damaged store: where it is kept, and how much of it was saved."""

    damaged: Path
    conversations: int
    turns: int


def repair_store(path: Path) -> Repair:
    """Put a new store with all that can be read of the one at `path` in its place.

    The damaged file stays where it is until the new one is complete, and is then kept under another
    name, so that a crash at any moment leaves one of them to start from.

    Raises:
        StoreError: the new file cannot be created. sqlite3.Error: it cannot be written.
    """
    fresh = path.with_name("conversations-repaired.db")
    for left in (fresh, _journal(fresh)):
        left.unlink(missing_ok=True)
    target = connect(fresh)
    try:
        migrate(target, fresh, alone=True)
        conversations, turns = _salvage(path, target)
    finally:
        target.close()
    kept = _keep_aside(path)
    fresh.replace(path)
    return Repair(kept, conversations, turns)


def _keep_aside(path: Path) -> Path:
    stem = time.strftime("conversations-damaged-%Y%m%d-%H%M%S")
    number = 0
    while (kept := path.with_name(f"{stem}-{number}.db")).exists():
        number += 1
    try:
        os.link(path, kept)
    except OSError:  # a file system without hard links
        create_private(kept)
        shutil.copyfile(path, kept)
    if _journal(path).exists():  # it must not be played back into the new store
        _journal(path).replace(_journal(kept))
    return kept


def _journal(path: Path) -> Path:
    return path.with_name(path.name + "-journal")


def _salvage(damaged: Path, target: sqlite3.Connection) -> tuple[int, int]:
    """Copy the readable conversations and turns of `damaged` into the empty store `target`.

    A turn whose parent is lost becomes a root, one whose conversation is lost goes into a new one
    of the same id. Snapshots are left out: they are rebuilt.

    Returns:
        The number of conversations and of turns copied.
    """
    source = sqlite3.connect(f"{damaged.absolute().as_uri()}?mode=rw", uri=True)
    try:
        source.text_factory = _text
        conversations = list(_rows(source, "conversation", _CONVERSATION))
        turns = list(_rows(source, "turn", _TURN))
    finally:
        source.close()
    target.execute("BEGIN IMMEDIATE")
    kept = {row["id"]: row for row in conversations if _insert(target, "conversation", row)}
    parents: dict[object, object] = {}
    for turn in sorted(
        turns, key=lambda row: (str(row["conversation"]), str(row["seq"]).zfill(20))
    ):
        home = turn["conversation"]
        if home not in kept:
            found = {
                "id": home, "title": "Recovered", "created": turn["created"],
                "updated": turn["created"], "changed": 0, "head": None, "settings": "{}",
                "deleted": None,
            }  # fmt: skip
            if not _insert(target, "conversation", found):
                continue
            kept[home] = found
        if parents.get(turn["parent"]) != home:
            turn["parent"] = None
        if _insert(target, "turn", turn):
            parents[turn["id"]] = home
    for identifier, row in kept.items():
        if parents.get(row["head"]) != identifier:
            target.execute(
                "UPDATE conversation SET head = (SELECT id FROM turn WHERE conversation = ?1 "
                "ORDER BY seq DESC LIMIT 1) WHERE id = ?1",
                (identifier,),
            )
    target.execute("COMMIT")
    return len(kept), len(parents)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _insert(target: sqlite3.Connection, table: str, row: _Row) -> bool:
    places = ", ".join("?" * len(row))
    columns = ", ".join(row)
    try:
        target.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})", tuple(row.values()))  # noqa: S608
    except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError):
        return False
    return True


def _rows(source: sqlite3.Connection, table: str, columns: tuple[str, ...]) -> Iterator[_Row]:
    """All rows that can be read: forward to the damage, backward to it, then one by one between."""
    names = ", ".join(columns)
    select = f"SELECT rowid, {names} FROM {table} NOT INDEXED"  # noqa: S608
    found: dict[int, _Row] = {}

    def take(query: str) -> tuple[int | None, bool]:
        last = None
        try:
            for rowid, *values in source.execute(query):
                found[rowid] = dict(zip(columns, values, strict=True))
                last = rowid
        except sqlite3.DatabaseError:
            return last, False
        return last, True

    first_end, complete = take(f"{select} ORDER BY rowid")
    if not complete:
        low = (first_end or 0) + 1
        last_end, _ = take(f"{select} ORDER BY rowid DESC")
        high = last_end if last_end is not None else low + _PROBE
        for rowid in range(low, min(high, low + 100 * _PROBE)):
            take(f"{select} WHERE rowid = {rowid}")
    yield from found.values()
