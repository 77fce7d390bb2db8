"""The SQLite file: how it is opened, checked, migrated, and written when the disk is full."""

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from rwkv_chat.errors import (
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreVersionError,
)
from rwkv_chat.store import schema
from rwkv_chat.store.files import Ballast, create_private, open_folder
from rwkv_chat.store.locks import StoreLock
from rwkv_chat.store.salvage import salvage

__all__ = ["Database", "Note"]

T = TypeVar("T")
Note = Callable[[str], None]
"""Takes a sentence that the person should read."""

_NAME = "conversations.db"
_WEEK = 7 * 24 * 3600.0
_SETTINGS = (
    # Not WAL: two processes on one file is what damages it in SQLite 3.7.0 to 3.51.2.
    "PRAGMA journal_mode = DELETE",
    # EXTRA also syncs the folder: after FULL, a power cut may undo the last commit.
    "PRAGMA synchronous = EXTRA",
    "PRAGMA foreign_keys = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
    "PRAGMA mmap_size = 0",
    "PRAGMA temp_store = MEMORY",  # no text in files outside the folder
    "PRAGMA secure_delete = ON",
)
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
        self._marker = folder / "in-use"
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
            if self._sound and self._lock.try_alone():
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
            self._connect()
        except StoreDamagedError as error:
            if not self.alone:
                raise StoreDamagedError(
                    f"{self.path} is damaged. Close all other windows of rwkv-chat and start it "
                    "again: what can be read will then be saved into a new file."
                ) from error
            if self._sql is not None:
                self._sql.close()
                self._sql = None
            damaged = self._move_aside()
            self._connect()
            self._sound = True
            conversations, turns = salvage(damaged, self._connection())
            self.note(
                f"The store of conversations was damaged. {turns} turns in {conversations} "
                f"conversations could be read and were saved. The damaged file is kept: {damaged}"
            )

    def _connect(self) -> None:
        create_private(self.path)
        try:
            self._sql = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=rw",
                uri=True,
                timeout=5.0,
                isolation_level=None,
                check_same_thread=False,
            )
            for setting in _SETTINGS:
                self._sql.execute(setting).fetchall()
            self._identify(self._sql)
            self._check(self._sql)
            self._migrate(self._sql)
        except sqlite3.Error as error:
            raise self._translate(error) from error

    def _identify(self, sql: sqlite3.Connection) -> None:
        (application,) = sql.execute("PRAGMA application_id").fetchone()
        (version,) = sql.execute("PRAGMA user_version").fetchone()
        (tables,) = sql.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if application != schema.APPLICATION_ID and (application or version or tables):
            raise StoreError(
                f"{self.path} is a database of another program. Move it away, or set "
                "RWKV_CHAT_HOME to another folder."
            )
        if version > schema.VERSION:
            raise StoreVersionError(
                f"{self.path} was written by a newer rwkv-chat (its version is {version}, this one "
                f"knows {schema.VERSION}). Install the newer rwkv-chat; nothing was changed."
            )

    def _check(self, sql: sqlite3.Connection) -> None:
        """Look for damage after a crash, and once a week; a file's time tells of the last look."""
        if not self.alone:
            return
        stamp = self.folder / "checked"
        clean = stamp.exists() and not self._marker.exists()
        if clean and 0 <= time.time() - stamp.stat().st_mtime < _WEEK:
            return
        found = sql.execute("PRAGMA quick_check(1)").fetchone()
        if found != ("ok",):
            raise StoreDamagedError(f"{self.path} is damaged: {found[0]}.")
        with suppress(OSError, StoreError):  # a full disk must not keep the store closed
            create_private(stamp)
            stamp.touch()

    def _migrate(self, sql: sqlite3.Connection) -> None:
        if _version(sql) == schema.VERSION:
            return
        sql.execute("BEGIN IMMEDIATE")
        try:
            version = _version(sql)  # another window may have been faster
            if version:
                if not self.alone:
                    raise StoreError(
                        "The store of conversations must be brought to a new version. Close all "
                        "other windows of rwkv-chat and start it again."
                    )
                self._back_up(version)
            for script in schema.MIGRATIONS[version:]:
                for statement in _statements(script):
                    sql.execute(statement)
            sql.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
            sql.execute(f"PRAGMA user_version = {schema.VERSION}")
            sql.execute("COMMIT")
        except BaseException:
            if sql.in_transaction:
                sql.execute("ROLLBACK")
            raise

    def _back_up(self, version: int) -> None:
        """Copy the store as it is before a migration, through a second connection."""
        target = self.folder / f"conversations-version-{version}.backup.db"
        target.unlink(missing_ok=True)
        create_private(target)
        source = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)
        copy = sqlite3.connect(target)
        try:
            source.backup(copy)
        finally:
            copy.close()
            source.close()

    def backups(self) -> list[Path]:
        """Copies made before migrations."""
        return sorted(self.folder.glob("conversations-version-*.backup.db"))

    def _move_aside(self) -> Path:
        stem = time.strftime("conversations-damaged-%Y%m%d-%H%M%S")
        for number in range(1000):
            target = self.folder / f"{stem}-{number}.db"
            if not target.exists():
                break
        journal = self.path.with_name(_NAME + "-journal")
        if journal.exists():  # belongs to the file under its new name
            journal.replace(target.with_name(target.name + "-journal"))
        self.path.replace(target)
        return target

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


def _version(sql: sqlite3.Connection) -> int:
    (version,) = sql.execute("PRAGMA user_version").fetchone()
    return int(version)


def _statements(script: str) -> list[str]:
    """The statements of `script`; `executescript` would commit the open transaction."""
    statements: list[str] = []
    start = 0
    for end, char in enumerate(script, 1):
        if char == ";" and sqlite3.complete_statement(script[start:end]):
            statements.append(script[start:end])
            start = end
    return statements
