"""Opening one SQLite file as a store: its settings, its identity, its version."""

import sqlite3
from pathlib import Path

from rwkv_chat.errors import StoreDamagedError, StoreError, StoreVersionError
from rwkv_chat.store import schema
from rwkv_chat.store.files import create_private

__all__ = ["BACKUPS", "check", "connect", "identify", "migrate"]

BACKUPS = "conversations-version-*.backup.db"
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


def connect(path: Path) -> sqlite3.Connection:
    """Open (or create, for its owner only) the file `path` with the settings of a store.

    Raises:
        StoreError: it cannot be created. sqlite3.Error: it cannot be opened.
    """
    create_private(path)
    sql = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=5.0,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        for setting in _SETTINGS:
            sql.execute(setting).fetchall()
    except sqlite3.Error:
        sql.close()
        raise
    return sql


def identify(sql: sqlite3.Connection, path: Path) -> None:
    """Refuse what is no store, or one from the future.

    Raises:
        StoreVersionError: a newer version has written it.
        StoreError: it belongs to another program.
    """
    (application,) = sql.execute("PRAGMA application_id").fetchone()
    (tables,) = sql.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    version = _version(sql)
    if application != schema.APPLICATION_ID and (application or version or tables):
        raise StoreError(
            f"{path} is a database of another program. Move it away, or set RWKV_CHAT_HOME to "
            "another folder."
        )
    if version > schema.VERSION:
        raise StoreVersionError(
            f"{path} was written by a newer rwkv-chat (its version is {version}, this one knows "
            f"{schema.VERSION}). Install the newer rwkv-chat; nothing was changed."
        )


def check(sql: sqlite3.Connection, path: Path) -> None:
    """Look through the whole file.

    Raises:
        StoreDamagedError: it is damaged.
    """
    found = sql.execute("PRAGMA quick_check(1)").fetchone()
    if found != ("ok",):
        raise StoreDamagedError(f"{path} is damaged: {found[0]}.")


def migrate(sql: sqlite3.Connection, path: Path, *, alone: bool) -> None:
    """Bring the store to the newest version in one transaction, after a backup.

    Raises:
        StoreError: it is an older version that another window has open.
    """
    if _version(sql) == schema.VERSION:
        return
    sql.execute("BEGIN IMMEDIATE")
    try:
        version = _version(sql)  # another window may have been faster
        if version:
            if not alone:
                raise StoreError(
                    "The store of conversations must be brought to a new version. Close all other "
                    "windows of rwkv-chat and start it again."
                )
            _back_up(path, version)
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


def _back_up(path: Path, version: int) -> None:
    """Copy the store as it is before the migration, through a second connection."""
    target = path.with_name(BACKUPS.replace("*", str(version)))
    target.unlink(missing_ok=True)
    create_private(target)
    source = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    copy = sqlite3.connect(target)
    try:
        source.backup(copy)
    finally:
        copy.close()
        source.close()


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
