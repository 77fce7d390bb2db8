"""The tables, and how an older store becomes a newer one."""

__all__ = ["APPLICATION_ID", "MIGRATIONS", "VERSION"]

APPLICATION_ID = 0x52574B56  # "RWKV"

_VERSION_1 = """
CREATE TABLE conversation (
    id       TEXT PRIMARY KEY,
    title    TEXT NOT NULL,
    created  REAL NOT NULL,
    updated  REAL NOT NULL,
    changed  INTEGER NOT NULL,   -- counts the store's changes: an order that no clock disturbs
    head     TEXT,               -- a turn of this conversation
    settings TEXT NOT NULL,      -- a JSON object
    deleted  REAL                -- when it was hidden; purging erases it
) STRICT;

CREATE TABLE turn (
    id           TEXT PRIMARY KEY,
    conversation TEXT NOT NULL REFERENCES conversation(id) ON DELETE CASCADE,
    parent       TEXT REFERENCES turn(id),
    seq          INTEGER NOT NULL CHECK (seq > 0),
    role         TEXT NOT NULL,
    text         TEXT NOT NULL,
    ids          BLOB NOT NULL,  -- token ids, uint32 little-endian
    prefix       INTEGER NOT NULL,
    tokenizer    TEXT NOT NULL,
    finish       TEXT NOT NULL,
    seed         INTEGER NOT NULL,
    model        TEXT NOT NULL,
    label        TEXT NOT NULL,
    created      REAL NOT NULL,
    tokens_per_s REAL NOT NULL,
    UNIQUE (conversation, seq)
) STRICT;
CREATE INDEX turn_parent ON turn(parent);

CREATE TABLE snapshot (
    key   TEXT PRIMARY KEY,      -- names the model and all ids on the path
    file  TEXT NOT NULL UNIQUE,  -- in the folder of snapshots; a name is never used twice
    model TEXT NOT NULL,         -- the fingerprint of the model
    bytes INTEGER NOT NULL,
    used  INTEGER NOT NULL       -- counts all uses: the smallest is the least recent
) STRICT;
CREATE INDEX snapshot_used ON snapshot(used);
"""

MIGRATIONS: tuple[str, ...] = (_VERSION_1,)
"""`MIGRATIONS[n]` turns a store of version n into one of version n + 1."""

VERSION = len(MIGRATIONS)
