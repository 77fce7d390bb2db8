"""Conversations on disk: the store that the chat asks for."""

import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from rwkv_chat.chat.tree import Conversation, Summary, Turn
from rwkv_chat.errors import ConflictError, NotFoundError, StoreError
from rwkv_chat.store.database import Database, Note
from rwkv_chat.store.files import create_private
from rwkv_chat.store.ids import new_id
from rwkv_chat.store.keys import reachable
from rwkv_chat.store.rows import (
    TURN_COLUMNS,
    conversation_of,
    pack_settings,
    summary_of,
    turn_of,
    turn_values,
)
from rwkv_chat.store.snapshots import DEFAULT_BUDGET, Snapshots
from rwkv_chat.text.display import scrub

__all__ = ["Conversations"]

_CHANGED = "Another window has changed this conversation in the meantime. Reload it and try again."
_SUMMARIES = """
    SELECT id, title, created, updated,
           (SELECT count(*) FROM turn WHERE turn.conversation = conversation.id)
    FROM conversation WHERE (deleted IS NULL) = ? ORDER BY changed DESC
"""


class Conversations:
    """Every conversation of one person; also a `chat.ports.Store`. Thread-safe."""

    def __init__(
        self, database: Database, snapshots: Snapshots, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._clock = clock
        self._erasable: set[str] = set()
        self.snapshots = snapshots

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        note: Note = lambda sentence: None,
        budget_bytes: int = DEFAULT_BUDGET,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open the store in `folder`, creating it where there is none.

        Args:
            folder: becomes readable by its owner only.
            note: is told, from any thread, what the person should know: a repaired store, a full
                disk, a damaged saved state.
            budget_bytes: how much room saved states may take together.
            clock: gives the times of turns.

        Raises:
            StoreVersionError: a newer version has written it.
            StoreDamagedError: it is damaged and open in another window.
            StoreError: it cannot be opened.
        """
        database = Database(folder, note)
        try:
            snapshots = Snapshots(folder / "snapshots", database, budget_bytes)
            store = cls(database, snapshots, clock)
            if database.alone:  # the windows that could bring these back are gone
                store._erasable.update(summary.id for summary in store.deleted())
            database.share()
        except BaseException:
            database.close()
            raise
        return store

    def close(self) -> None:
        """Close the store; everything is on disk already."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def conversations(self) -> list[Summary]:
        """All that are not deleted, the last changed first."""
        return self._summaries(present=True)

    def deleted(self) -> list[Summary]:
        """All that `restore` could bring back, the last changed first."""
        return self._summaries(present=False)

    def create(self, title: str, settings: Mapping[str, object]) -> Conversation:
        """A new empty conversation."""
        new = self._database.write(lambda sql: self._create(sql, title, settings))
        return self.load(new)

    def _create(self, sql: sqlite3.Connection, title: str, settings: Mapping[str, object]) -> str:
        new, now = new_id(), self._clock()
        sql.execute(
            "INSERT INTO conversation (id, title, created, updated, changed, settings) "
            "VALUES (?, ?, ?, ?, 0, ?)",
            (new, scrub(title), now, now, pack_settings(settings)),
        )
        self._touch(sql, new)
        return new

    def load(self, conversation: str) -> Conversation:
        """The whole tree.

        Raises:
            NotFoundError: there is no such conversation, or it is deleted.
        """

        def work(sql: sqlite3.Connection) -> Conversation:
            row = sql.execute(
                "SELECT id, title, created, updated, head, settings FROM conversation "
                "WHERE id = ? AND deleted IS NULL",
                (conversation,),
            ).fetchone()
            if row is None:
                raise _no_conversation(conversation)
            query = f"SELECT {TURN_COLUMNS} FROM turn WHERE conversation = ? ORDER BY seq"  # noqa: S608
            turns = [turn_of(found) for found in sql.execute(query, (conversation,))]
            return conversation_of(row, {turn.id: turn for turn in turns})

        return self._database.read(work)

    def rename(self, conversation: str, title: str) -> None:
        """Give it another title."""
        self._set(conversation, "title = ?", scrub(title))

    def configure(self, conversation: str, settings: Mapping[str, object]) -> None:
        """Replace its settings."""
        self._set(conversation, "settings = ?", pack_settings(settings))

    def delete(self, conversation: str) -> None:
        """Hide it; `restore` brings it back until `purge`."""
        self._set(conversation, "deleted = ?", self._clock())
        self._erasable.add(conversation)

    def restore(self, conversation: str) -> None:
        """Bring a deleted conversation back."""
        self._set(conversation, "deleted = ?", None, present=False)
        self._erasable.discard(conversation)

    def purge(self) -> None:
        """Erase what was deleted: rows, the bytes they leave, states, and copies of older stores.

        That is what was deleted through this object, and what was found deleted when it opened a
        store that no other window had open. The rest belongs to a window that may bring it back.
        States that a remaining conversation can reach stay. The rows go last, so that a purge which
        is cut off is done again.
        """
        gone = self._erasable & {summary.id for summary in self.deleted()}
        owed = self._database.folder / "erasing"
        if not gone and not owed.exists():
            return
        models = self.snapshots.models()
        self.snapshots.keep_only(self._database.read(lambda sql: reachable(sql, models, gone)))
        for backup in self._database.backups():
            with suppress(OSError):
                backup.unlink()

        def work(sql: sqlite3.Connection) -> None:
            sql.executemany(
                "DELETE FROM conversation WHERE id = ? AND deleted IS NOT NULL",
                [(conversation,) for conversation in gone],
            )

        with suppress(StoreError):  # without room for a file, erasing still makes some
            create_private(owed)
        self._database.write(work)
        # SQLite overwrites deleted rows, but not the copies that stay behind when it moves rows
        # between pages: only a rewritten file is free of them. What keeps it from being rewritten
        # (no room, another window) passes, and the next purge sees that it is owed.
        with suppress(StoreError, OSError):
            self._database.compact()
            owed.unlink(missing_ok=True)

    def append(self, turn: Turn, *, head: bool = True) -> Turn:
        """Add `turn` as a new node; the store sets `seq` and `created` and returns the result.

        An empty `turn.id` is replaced by a new one. With `head` the conversation's head moves to
        the turn, in the same transaction.

        Raises:
            ConflictError: `turn.seq` is neither 0 nor the next number, or the id is taken.
            NotFoundError: there is no such conversation, or no such parent in it.
        """

        def work(sql: sqlite3.Connection) -> Turn:
            _require(sql, turn.conversation)
            new = self._insert(sql, turn)
            if head:
                sql.execute(
                    "UPDATE conversation SET head = ? WHERE id = ?", (new.id, new.conversation)
                )
            self._touch(sql, new.conversation)
            return new

        return self._database.write(work)

    def fork(self, source: str, turn: str, title: str) -> str:
        """A new conversation with the settings of `source` and copies of its path to `turn`.

        Labels stay with the originals. Returns the id of the new conversation.

        Raises:
            NotFoundError: there is no such conversation, or no such turn in it.
        """
        original = self.load(source)
        path = original.path(turn)

        def work(sql: sqlite3.Connection) -> str:
            new = self._create(sql, title, original.settings)
            parent: str | None = None
            for step in path:
                copy = replace(step, id="", conversation=new, parent=parent, seq=0, label="")
                parent = self._insert(sql, copy).id
            sql.execute("UPDATE conversation SET head = ? WHERE id = ?", (parent, new))
            return new

        return self._database.write(work)

    def _insert(self, sql: sqlite3.Connection, turn: Turn) -> Turn:
        if turn.parent is not None and not _holds(sql, turn.conversation, turn.parent):
            raise NotFoundError(
                f"Turn {turn.parent}, which this one should follow, is not in its conversation."
            )
        (following,) = sql.execute(
            "SELECT coalesce(max(seq), 0) + 1 FROM turn WHERE conversation = ?",
            (turn.conversation,),
        ).fetchone()
        if turn.seq not in (0, following):
            raise ConflictError(_CHANGED)
        new = replace(turn, id=turn.id or new_id(), seq=following, created=self._clock())
        if sql.execute("SELECT 1 FROM turn WHERE id = ?", (new.id,)).fetchone():
            raise ConflictError(f"There is already a turn {new.id}. Reload the conversation.")
        values = turn_values(new)
        places = ", ".join("?" * len(values))
        sql.execute(f"INSERT INTO turn ({TURN_COLUMNS}) VALUES ({places})", values)  # noqa: S608
        return replace(new, text=scrub(new.text), ids=tuple(new.ids))

    def update(self, turn: Turn) -> None:
        """Replace text, ids, prefix, tokenizer, finish, seed, model and tokens_per_s of a turn.

        An answer only grows: one that came to its own end stays, and so do ids in the same
        vocabulary of which `turn.ids` is not a continuation.

        Raises:
            ConflictError: another window has written more of the same answer.
            NotFoundError: there is no turn with this id.
        """
        row = dict(zip(TURN_COLUMNS.split(", "), turn_values(turn), strict=True))

        def work(sql: sqlite3.Connection) -> None:
            changed = sql.execute(
                "UPDATE turn SET text = :text, ids = :ids, prefix = :prefix, "
                "tokenizer = :tokenizer, finish = :finish, seed = :seed, model = :model, "
                "tokens_per_s = :tokens_per_s WHERE id = :id AND (role <> 'assistant' OR "
                "length(ids) = 0 OR finish NOT IN ('stop', 'end') AND (tokenizer <> :tokenizer OR "
                "substr(:ids, 1, length(ids)) = ids))",
                row,
            ).rowcount
            if not changed:
                if sql.execute("SELECT 1 FROM turn WHERE id = ?", (turn.id,)).fetchone():
                    raise ConflictError(_CHANGED)
                raise _no_turn(turn.id)
            self._touch(sql, turn.conversation)

        self._database.write(work)

    def set_head(self, conversation: str, turn: str | None) -> None:
        """End the path on screen at `turn`, or before the first turn.

        Raises:
            NotFoundError: there is no such conversation, or no such turn in it.
        """

        def work(sql: sqlite3.Connection) -> None:
            _require(sql, conversation)
            if turn is not None and not _holds(sql, conversation, turn):
                raise _no_turn(turn)
            sql.execute("UPDATE conversation SET head = ? WHERE id = ?", (turn, conversation))

        self._database.write(work)

    def set_label(self, turn: str, label: str) -> None:
        """Name a turn, or with an empty label take its name away.

        Raises:
            NotFoundError: there is no turn with this id.
        """

        def work(sql: sqlite3.Connection) -> None:
            query = "UPDATE turn SET label = ? WHERE id = ?"
            if not sql.execute(query, (scrub(label), turn)).rowcount:
                raise _no_turn(turn)

        self._database.write(work)

    def find(self, text: str) -> Turn:
        """The turn that a person means by a label, or by the beginning or the end of an id.

        Raises:
            NotFoundError: no turn of a conversation that is not deleted fits, or several do.
        """
        columns = ", ".join(f"turn.{name}" for name in TURN_COLUMNS.split(", "))
        query = (
            f"SELECT {columns} FROM turn JOIN conversation ON conversation.id = turn.conversation "  # noqa: S608
            "WHERE deleted IS NULL AND "
        )
        wanted = scrub(text)
        ways = ("label = ?1", "turn.id = ?1", "substr(turn.id, 1, length(?1)) = ?1",
                "substr(turn.id, -length(?1)) = ?1")  # fmt: skip

        def work(sql: sqlite3.Connection) -> Turn:
            for way in ways if wanted else ():
                found = sql.execute(query + way + " LIMIT 2", (wanted,)).fetchall()
                if len(found) > 1:
                    raise NotFoundError(f"Several turns go by {wanted!r}. Give more of the id.")
                if found:
                    return turn_of(found[0])
            raise NotFoundError(f"No turn has the label or the id {wanted!r}.")

        return self._database.read(work)

    def _summaries(self, *, present: bool) -> list[Summary]:
        def work(sql: sqlite3.Connection) -> list[Summary]:
            return [summary_of(row) for row in sql.execute(_SUMMARIES, (present,))]

        return self._database.read(work)

    def _set(
        self, conversation: str, assignment: str, value: object, *, present: bool = True
    ) -> None:
        def work(sql: sqlite3.Connection) -> None:
            changed = sql.execute(
                f"UPDATE conversation SET {assignment} WHERE id = ? AND (deleted IS NULL) = ?",  # noqa: S608
                (value, conversation, present),
            ).rowcount
            if not changed:
                raise _no_conversation(conversation)
            self._touch(sql, conversation)

        self._database.write(work)

    def _touch(self, sql: sqlite3.Connection, conversation: str) -> None:
        sql.execute(
            "UPDATE conversation SET updated = ?, "
            "changed = (SELECT max(changed) + 1 FROM conversation) WHERE id = ?",
            (self._clock(), conversation),
        )


def _require(sql: sqlite3.Connection, conversation: str) -> None:
    query = "SELECT 1 FROM conversation WHERE id = ? AND deleted IS NULL"
    if not sql.execute(query, (conversation,)).fetchone():
        raise _no_conversation(conversation)


def _holds(sql: sqlite3.Connection, conversation: str, turn: str) -> bool:
    query = "SELECT 1 FROM turn WHERE id = ? AND conversation = ?"
    return sql.execute(query, (turn, conversation)).fetchone() is not None


def _no_conversation(conversation: str) -> NotFoundError:
    return NotFoundError(f"There is no conversation {conversation}; it may have been deleted.")


def _no_turn(turn: str) -> NotFoundError:
    return NotFoundError(f"There is no turn {turn}; its conversation may have been erased.")
