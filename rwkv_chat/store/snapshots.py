"""Saved states by the ids they stand after: a cache within a budget, never the truth."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_chat.errors import SnapshotError, StoreError, StoreFullError
from rwkv_chat.store.database import Database
from rwkv_chat.store.files import open_folder
from rwkv_chat.store.ids import new_id
from rwkv_chat.store.keys import valued

if TYPE_CHECKING:  # the window must not wait for numpy
    from rwkv_chat.checkpoints.statefile import SavedState, StateOwner

__all__ = ["DEFAULT_BUDGET", "Snapshots"]

DEFAULT_BUDGET = 2 << 30
_SUFFIX = ".state"
_DAMAGED = ".damaged"
_RESERVE = 64 << 20
_MANY = 500
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Snapshots:
    """Files of saved states and their rows, by `engine.pathkey.path_keys`. Thread-safe.

    A file has a name that is never used twice, and is complete before its row is written: a row
    that is there names a good file, and a file without a row is left from a crash.
    """

    def __init__(
        self, folder: Path, database: Database, budget_bytes: int = DEFAULT_BUDGET
    ) -> None:
        """Open the folder; without other windows, files that have no row are removed."""
        self._folder = open_folder(folder)
        self._database = database
        self.budget_bytes = budget_bytes
        if database.alone:
            self._sweep()

    def has(self, keys: Collection[str]) -> set[str]:
        """Those of `keys` that are kept."""
        wanted = list(keys)

        def work(sql: sqlite3.Connection) -> set[str]:
            found: set[str] = set()
            for start in range(0, len(wanted), _MANY):
                part = wanted[start : start + _MANY]
                places = ",".join("?" * len(part))
                query = f"SELECT key FROM snapshot WHERE key IN ({places})"  # noqa: S608
                found.update(key for (key,) in sql.execute(query, part))
            return found

        return self._database.read(work)

    def get(self, key: str, owner: StateOwner | None = None) -> SavedState | None:
        """The state saved under `key`, verified, or None where there is no usable one.

        With `owner`, it must also fit that model. A damaged or foreign file is put aside and the
        person told; the state is then computed again from the ids.

        Raises:
            StoreError: the database cannot be read.
        """
        from rwkv_chat.checkpoints import statefile

        row = self._database.read(lambda sql: _find(sql, key))
        if row is None:
            return None
        file, model = row
        path = self._folder / file
        try:
            saved = statefile.read(path, owner)
            if saved.key != key or saved.model != model:
                raise SnapshotError(f"{path} is another state than the one that was saved there.")
        except SnapshotError as error:
            self._put_aside(key, path, error)
            return None
        with suppress(StoreError):  # a disk too full to note the use is no reason to compute again
            self._database.write(lambda sql: _touch(sql, key))
        return saved

    def put(self, key: str, saved: SavedState) -> None:
        """Save a state; when the budget is exceeded, others give way.

        The least recently used go first, and those of leaves, branch points, labelled turns and
        every 8th turn of a path only after all others.

        A state that is larger than the whole budget is not kept.

        Raises:
            SnapshotError: the state is not finite.
            StoreFullError: the disk is (nearly) full.
            StoreError: the file or its row cannot be written.
        """
        from rwkv_chat.checkpoints import statefile

        expected = saved.state.nbytes + saved.logits.nbytes
        if expected > self.budget_bytes:
            return
        file = new_id() + _SUFFIX
        path = self._folder / file
        try:
            if shutil.disk_usage(self._folder).free < expected + _RESERVE:
                raise StoreFullError(
                    f"The disk that holds {self._folder} is nearly full: words are still saved, "
                    "states no longer. Free some space."
                )
            statefile.write(path, replace(saved, key=key))
            size = path.stat().st_size
            gone = self._database.write(lambda sql: self._insert(sql, key, file, saved.model, size))
        except SnapshotError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            kind = StoreFullError if error.__cause__.errno in _FULL else StoreError
            raise kind(f"{error} Your words are safe; free some space.") from error
        except OSError as error:
            raise StoreError(f"States cannot be saved in {self._folder}: {error}.") from error
        except StoreError:
            self._unlink([file])
            raise
        self._unlink(gone)

    def keep_only(self, keys: Collection[str]) -> None:
        """Erase every state whose key is not among `keys`, and all damaged ones.

        Raises:
            StoreError: the database cannot be written.
        """

        def work(sql: sqlite3.Connection) -> list[str]:
            rows = sql.execute("SELECT key, file FROM snapshot").fetchall()
            gone = [(key, file) for key, file in rows if key not in keys]
            sql.executemany("DELETE FROM snapshot WHERE key = ?", [(key,) for key, _ in gone])
            return [file for _, file in gone]

        self._unlink(self._database.write(work))
        self._unlink([path.name for path in self._folder.glob("*" + _DAMAGED)])

    def models(self) -> list[str]:
        """The fingerprints of all models of which states are kept."""

        def work(sql: sqlite3.Connection) -> list[str]:
            return [model for (model,) in sql.execute("SELECT DISTINCT model FROM snapshot")]

        return self._database.read(work)

    def size(self) -> int:
        """The bytes of all states together."""

        def work(sql: sqlite3.Connection) -> int:
            (total,) = sql.execute("SELECT total(bytes) FROM snapshot").fetchone()
            return int(total)

        return self._database.read(work)

    def _insert(
        self, sql: sqlite3.Connection, key: str, file: str, model: str, size: int
    ) -> list[str]:
        """Write the row and make room; returns the files that no row names any more."""
        before = _find(sql, key)
        gone = [before[0]] if before else []
        sql.execute(
            "INSERT OR REPLACE INTO snapshot (key, file, model, bytes, used) "
            "VALUES (?, ?, ?, ?, 0)",
            (key, file, model, size),
        )
        _touch(sql, key)
        (total,) = sql.execute("SELECT total(bytes) FROM snapshot").fetchone()
        if total > self.budget_bytes:
            models = {name for (name,) in sql.execute("SELECT DISTINCT model FROM snapshot")}
            wanted = valued(sql, models)
            query = "SELECT key, file, bytes FROM snapshot WHERE key <> ? ORDER BY used"
            others = sql.execute(query, (key,)).fetchall()
            for other, name, length in sorted(others, key=lambda row: row[0] in wanted):
                if total <= self.budget_bytes:
                    break
                sql.execute("DELETE FROM snapshot WHERE key = ?", (other,))
                gone.append(name)
                total -= length
        return gone

    def _put_aside(self, key: str, path: Path, error: SnapshotError) -> None:
        file = path.name

        def work(sql: sqlite3.Connection) -> int:
            return sql.execute(
                "DELETE FROM snapshot WHERE key = ? AND file = ?", (key, file)
            ).rowcount

        if not self._database.write(work):
            return  # another window replaced or dropped it meanwhile: nothing is wrong
        with suppress(OSError):
            path.replace(path.with_name(file + _DAMAGED))
        self._database.note(f"A saved state could not be used and is computed again. {error}")

    def _sweep(self) -> None:
        def work(sql: sqlite3.Connection) -> set[str]:
            return {file for (file,) in sql.execute("SELECT file FROM snapshot")}

        known = self._database.read(work)
        with os.scandir(self._folder) as entries:
            orphans = [entry.name for entry in entries if entry.name not in known]
        self._unlink(orphans)

    def _unlink(self, files: Iterable[str]) -> None:
        for file in files:
            with suppress(OSError):  # what stays is swept at the next start
                (self._folder / file).unlink(missing_ok=True)


def _find(sql: sqlite3.Connection, key: str) -> tuple[str, str] | None:
    row = sql.execute("SELECT file, model FROM snapshot WHERE key = ?", (key,)).fetchone()
    return None if row is None else (str(row[0]), str(row[1]))


def _touch(sql: sqlite3.Connection, key: str) -> None:
    sql.execute(
        "UPDATE snapshot SET used = (SELECT max(used) + 1 FROM snapshot) WHERE key = ?", (key,)
    )
