"""The SQLite file: how it is opened, checked, migrated, and written when the disk is full."""

import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from rwkv_chat.errors import StoreDamagedError, StoreError, StoreFullError
from rwkv_chat.store.files import Ballast, create_private, open_folder
from rwkv_chat.store.locks import StoreLock
from rwkv_chat.store.opening import BACKUPS, check, connect, identify, migrate
from rwkv_chat.store.salvage import repair_store

__all__ = ["Database", "Note"]

T = TypeVar("T")
Note = Callable[[str], None]
"""Takes a sentence that the person should read."""

_NAME = "conversations.db"
_MARKERS = "in-use*"
_WEEK = 7 * 24 * 3600.0
_FULL_BELOW = 1 << 20
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class Database:
    """One connection to the store, used by any thread, one at a time."""

    def __init__(self, folder: Path, note: Note) -> None:
        """Open the store in `folder`, creating what is missing.

        A store that was not closed is checked first. A damaged one is moved aside and what can be
        read of it is copied into a new one; `note` is told.

        Raises:
            StoreVersionError: a newer version has written it.
            StoreDamagedError: it is damaged and another window has it open.
            StoreError: it cannot be opened, or is no store.
        """
        self.folder = open_folder(folder)
        self.path = folder / _NAME
        self.note = note
        self._mutex = threading.RLock()
        self._marker = folder / f"in-use-{secrets.token_hex(8)}"
        self._checked = folder / "checked"
        self._ballast = Ballast(folder / "ballast")
        self._sql: sqlite3.Connection | None = None
        self._sound = True
        self._lock = StoreLock(folder / "lock")
        try:
            self.alone = self._lock.try_alone()
            if not self.alone:
                self._lock.share()
            self._open()
            with suppress(StoreError):  # a full disk must not keep the store closed
                create_private(self._marker)
        except BaseException:
            self._release()
            raise
        self._ballast.lay()

    def share(self) -> None:
        """End the time of being alone, which lasts from opening to this call."""
        self._lock.share()
        self.alone = False

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on one consistent view of the store.

        Raises:
            StoreError: one of its subclasses.
        """
        with self._mutex:
            return self._transact("BEGIN", work)

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` as one transaction, which is on disk when this returns.

        On a full disk the reserve is given up and `work` runs once more, so that it must change
        nothing but the database.

        Raises:
            StoreError: one of its subclasses; nothing has then changed.
        """
        with self._mutex:
            try:
                return self._transact("BEGIN IMMEDIATE", work)
            except StoreFullError:
                if not self._ballast.release():
                    raise
            result = self._transact("BEGIN IMMEDIATE", work)
            self.note(
                f"The disk that holds {self.folder} is full. The reserve has been used and nothing "
                "is lost, but please free some space now."
            )
            return result

    def compact(self) -> None:
        """Rewrite the file without the pages that deleted rows have left.

        Raises:
            StoreError: one of its subclasses.
        """
        with self._mutex:
            try:
                self._connection().execute("VACUUM")
            except sqlite3.Error as error:
                raise self._translate(error) from error

    def close(self) -> None:
        """Close the store; calling it again does nothing."""
        with self._mutex:
            if self._sql is None:
                return
            self._sql.close()
            self._sql = None
            if self._sound:
                self._marker.unlink(missing_ok=True)
            self._release()

    def _release(self) -> None:
        if self._sql is not None:
            self._sql.close()
            self._sql = None
        self._lock.close()

    def _connection(self) -> sqlite3.Connection:
        if self._sql is None:
            raise StoreError("The store of conversations has been closed.")
        return self._sql

    def _open(self) -> None:
        try:
            self._sql = self._prepare()
        except StoreDamagedError as error:
            if not self.alone:
                raise StoreDamagedError(
                    f"{self.path} is damaged. Close all other windows of rwkv-chat and start it "
                    "again: what can be read will then be saved into a new file."
                ) from error
            try:
                repair = repair_store(self.path)
            except sqlite3.Error as failure:
                raise self._translate(failure) from failure
            self._sql = self._prepare()
            self._sound = True
            self.note(
                f"The store of conversations was damaged. {repair.turns} turns in "
                f"{repair.conversations} conversations could be read and were saved. The damaged "
                f"file is kept: {repair.damaged}"
            )

    def _prepare(self) -> sqlite3.Connection:
        sql = None
        try:
            sql = connect(self.path)
            identify(sql, self.path)
            if self.alone and self._is_due():
                check(sql, self.path)
                with suppress(OSError, StoreError):  # a full disk must not keep the store closed
                    create_private(self._checked)
                    self._checked.touch()
                    for left in self.folder.glob(_MARKERS):
                        left.unlink()
            migrate(sql, self.path, alone=self.alone)
        except BaseException as error:
            if sql is not None:
                sql.close()
            if isinstance(error, sqlite3.Error):
                raise self._translate(error) from error
            raise
        return sql

    def _is_due(self) -> bool:
        """Whether to look for damage: after the crash of any window, and once a week."""
        if any(self.folder.glob(_MARKERS)) or not self._checked.exists():
            return True
        return not 0 <= time.time() - self._checked.stat().st_mtime < _WEEK

    def backups(self) -> list[Path]:
        """Copies made before migrations."""
        return sorted(self.folder.glob(BACKUPS))

    def _transact(self, begin: str, work: Callable[[sqlite3.Connection], T]) -> T:
        sql = self._connection()
        try:
            sql.execute(begin)
            result = work(sql)
            sql.execute("COMMIT")
        except BaseException as error:
            if sql.in_transaction:  # a full disk has already rolled it back
                with suppress(sqlite3.Error):
                    sql.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise self._translate(error) from error
            raise
        return result

    def _translate(self, error: sqlite3.Error) -> StoreError:
        code: int = getattr(error, "sqlite_errorcode", 0)
        if code & 0xFF in _DAMAGED:
            self._sound = False
            return StoreDamagedError(
                f"{self.path} is damaged ({error}). Close all windows of rwkv-chat and start it "
                "again: what can be read will then be saved into a new file."
            )
        if self._is_full(code):
            return StoreFullError(
                f"The disk that holds {self.folder} is full, so this could not be saved. Free some "
                "space and try again; everything saved before is still there."
            )
        if code & 0xFF in _BUSY:
            return StoreError(
                "Another window of rwkv-chat is busy with the store of conversations. Try again."
            )
        return StoreError(f"The store {self.path} cannot be used: {error}.")

    def _is_full(self, code: int) -> bool:
        # Quotas and limits on file sizes show as failed writes, not as a full disk.
        if code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_WRITE:
            return True
        if code & 0xFF not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
            return False
        try:
            return shutil.disk_usage(self.folder).free < _FULL_BELOW
        except OSError:
            return False
