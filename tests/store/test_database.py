"""How the database is opened, checked, migrated and moved aside."""

import os
import random
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rwkv_chat.errors import StoreDamagedError, StoreError, StoreFullError, StoreVersionError
from rwkv_chat.store import files, salvage, schema
from rwkv_chat.store.conversations import Conversations
from rwkv_chat.store.database import Database
from rwkv_chat.store.opening import connect
from tests.store.samples import state, turn

DATABASE = "conversations.db"
ROOT = Path(__file__).parents[2]


def fill(folder: Path, turns: int = 40) -> list[str]:
    """A closed store with one conversation; returns the texts of its turns."""
    with Conversations.open(folder) as store:
        home, at = store.create("title", {}).id, None
        texts = [f"{number} " + "text " * 200 for number in range(turns)]
        for text in texts:
            at = store.append(turn(home, at, text)).id
    return texts


def texts_of(store: Conversations) -> list[str]:
    return [t.text for c in store.conversations() for t in store.load(c.id).turns.values()]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_may_read_anything(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with Conversations.open(tmp_path / "a" / "b") as store:
            made = store.append(turn(store.create("", {}).id))
            store.snapshots.put("k", state())
            store.set_label(made.id, "x")
            seen = modes(tmp_path / "a")
            store.purge()
        seen |= modes(tmp_path / "a")
    finally:
        os.umask(before)
    assert len(seen) >= 8
    assert {path.name: mode for path, mode in seen if mode & 0o077} == {}


def modes(folder: Path) -> set[tuple[Path, int]]:
    return {(path, stat.S_IMODE(path.stat().st_mode)) for path in [folder, *folder.rglob("*")]}


def test_the_journal_is_as_private_as_the_store(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Conversations.open(tmp_path / "s") as store:
            home = store.create("", {}).id

            def look(sql: sqlite3.Connection) -> int:
                sql.execute("UPDATE conversation SET title = 'x' WHERE id = ?", (home,))
                sql.execute("PRAGMA cache_spill = 1")
                return (tmp_path / "s" / f"{DATABASE}-journal").stat().st_mode & 0o777

            assert store._database.write(look) == 0o600
    finally:
        os.umask(before)


def test_loose_rights_are_taken_away(tmp_path: Path) -> None:
    fill(tmp_path / "s", 1)
    (tmp_path / "s").chmod(0o755)
    (tmp_path / "s" / DATABASE).chmod(0o644)
    with Conversations.open(tmp_path / "s"):
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "s" / DATABASE).stat().st_mode & 0o777 == 0o600


def test_the_settings_of_sqlite_are_in_force(store: Conversations) -> None:
    def work(sql: sqlite3.Connection) -> dict[str, object]:
        names = (
            "journal_mode synchronous foreign_keys trusted_schema cell_size_check busy_timeout "
            "mmap_size temp_store secure_delete application_id user_version"
        )
        rows = {name: sql.execute(f"PRAGMA {name}").fetchone() for name in names.split()}
        return {name: row[0] if row else 0 for name, row in rows.items()}

    assert store._database.read(work) == {
        "journal_mode": "delete", "synchronous": 3, "foreign_keys": 1, "trusted_schema": 0,
        "cell_size_check": 1, "busy_timeout": 5000, "mmap_size": 0, "temp_store": 2,
        "secure_delete": 1, "application_id": schema.APPLICATION_ID, "user_version": 1,
    }  # fmt: skip


def change(folder: Path, *statements: str) -> None:
    sql = sqlite3.connect(folder / DATABASE, isolation_level=None)
    for statement in statements:
        sql.execute(statement)
    sql.close()


def test_a_newer_store_is_refused_and_untouched(folder: Path) -> None:
    fill(folder, 3)
    change(folder, "PRAGMA user_version = 99")
    before = (folder / DATABASE).read_bytes()
    with pytest.raises(StoreVersionError, match="newer rwkv-chat"):
        Conversations.open(folder)
    assert (folder / DATABASE).read_bytes() == before


def test_a_database_of_another_program_is_refused(folder: Path) -> None:
    folder.mkdir()
    change(folder, "CREATE TABLE other (x)")
    with pytest.raises(StoreError, match="another program"):
        Conversations.open(folder)
    change(folder, "PRAGMA application_id = 5")
    with pytest.raises(StoreError, match="another program"):
        Conversations.open(folder)


def test_something_else_under_the_name_is_refused(folder: Path) -> None:
    (folder / DATABASE).mkdir(parents=True)
    with pytest.raises(StoreError, match="not a regular file"):
        Conversations.open(folder)


SECOND = (
    "CREATE TABLE note (turn TEXT REFERENCES turn(id), text TEXT) STRICT;\n"
    "ALTER TABLE turn ADD COLUMN stars INTEGER NOT NULL DEFAULT 0;\n"
    "UPDATE turn SET stars = 1;\n"
    "INSERT INTO note SELECT id, 'a;b' FROM turn;"
)


def upgrade(monkeypatch: pytest.MonkeyPatch, script: str = SECOND) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, script))
    monkeypatch.setattr(schema, "VERSION", 2)


def test_a_migration_backs_up_and_keeps_everything(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = fill(folder)
    upgrade(monkeypatch)
    with Conversations.open(folder) as store:
        assert texts_of(store) == texts
        rows = store._database.read(lambda sql: sql.execute("SELECT text FROM note").fetchall())
        assert rows == [("a;b",)] * len(texts)
        (backup,) = store._database.backups()
        assert backup.stat().st_mode & 0o777 == 0o600
    copy = sqlite3.connect(backup)
    assert copy.execute("PRAGMA user_version").fetchone() == (1,)
    assert copy.execute("SELECT text FROM turn ORDER BY seq").fetchall() == [(t,) for t in texts]
    copy.close()


@pytest.mark.parametrize("statement", range(4))
def test_a_failed_migration_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, statement: int
) -> None:
    texts = fill(folder)
    parts = SECOND.split(";\n")
    parts.insert(statement, "INSERT INTO nowhere VALUES (1)")
    with monkeypatch.context() as patch:
        upgrade(patch, ";\n".join(parts))
        with pytest.raises(StoreError, match="nowhere"):
            Conversations.open(folder)
    with Conversations.open(folder) as store:
        assert texts_of(store) == texts
    upgrade(monkeypatch)
    with Conversations.open(folder) as store:
        assert texts_of(store) == texts


def test_no_migration_under_another_window(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = fill(folder)
    with Conversations.open(folder) as old:
        with monkeypatch.context() as patch:
            upgrade(patch)
            with pytest.raises(StoreError, match="other windows"):
                Conversations.open(folder)
        assert texts_of(old) == texts


def test_closed_is_a_sentence_and_closing_twice_is_nothing(store: Conversations) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="has been closed"):
        store.conversations()


def test_a_locked_store_is_a_sentence(store: Conversations, folder: Path) -> None:
    store._database.read(lambda sql: None)
    store._database._connection().execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(folder / DATABASE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="busy"):
        store.create("", {})
    other.execute("ROLLBACK")
    other.close()
    assert store.create("", {}).title == ""


def test_a_failure_in_the_middle_changes_nothing(store: Conversations) -> None:
    def work(sql: sqlite3.Connection) -> None:
        sql.execute("INSERT INTO conversation VALUES ('x','t',0,0,0,NULL,'{}',NULL)")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store._database.write(work)
    assert store.conversations() == []


def mark_unclean(folder: Path) -> None:
    (folder / "in-use").touch()


def damage_page(folder: Path, number: int, seed: int = 0) -> None:
    data = bytearray((folder / DATABASE).read_bytes())
    data[number * 4096 : (number + 1) * 4096] = random.Random(seed).randbytes(4096)
    (folder / DATABASE).write_bytes(data)


def pages(folder: Path) -> int:
    return (folder / DATABASE).stat().st_size // 4096


def markers(folder: Path) -> int:
    return len(list(folder.glob("in-use*")))


def test_every_window_has_a_marker_only_while_open(folder: Path) -> None:
    with Conversations.open(folder):
        assert markers(folder) == 1
        with Conversations.open(folder):
            assert markers(folder) == 2
        assert markers(folder) == 1
    assert markers(folder) == 0


def test_the_marker_of_a_killed_window_stays_until_the_store_was_checked(folder: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path\n"
        "from rwkv_chat.store.conversations import Conversations\n"
        "store = Conversations.open(Path(sys.argv[1])); os._exit(0)"
    )
    with Conversations.open(folder):
        subprocess.run([sys.executable, "-c", script, str(folder)], check=True, cwd=ROOT)
        assert markers(folder) == 2
    assert markers(folder) == 1
    with Conversations.open(folder):
        assert markers(folder) == 1
    assert markers(folder) == 0


@pytest.mark.parametrize("why", ["unclean", "week"])
def test_damage_is_looked_for_after_a_crash_and_weekly(
    folder: Path, notes: list[str], why: str
) -> None:
    fill(folder)
    damage_page(folder, pages(folder) // 2)
    if why == "unclean":
        mark_unclean(folder)
    else:
        os.utime(folder / "checked", (time.time() - 8 * 86400,) * 2)
    with Conversations.open(folder, note=notes.append) as store:
        assert "damaged" in notes[0]
        assert store.conversations() != []
    with Conversations.open(folder, note=notes.append):
        assert len(notes) == 1


def test_every_damaged_page_is_survived(folder: Path, tmp_path: Path) -> None:
    """Whatever page is garbage, the store opens, losing only what was on that page."""
    texts = fill(folder)
    sql = sqlite3.connect(folder / DATABASE)
    (root,) = sql.execute("SELECT rootpage - 1 FROM sqlite_schema WHERE name = 'turn'").fetchone()
    sql.close()
    original = (folder / DATABASE).read_bytes()
    saved = {}
    for number in range(pages(folder)):
        place = tmp_path / f"p{number}"
        place.mkdir()
        (place / DATABASE).write_bytes(original)
        damage_page(place, number)
        mark_unclean(place)
        notes: list[str] = []
        with Conversations.open(place, note=notes.append) as store:
            found = texts_of(store)
            assert set(found) <= set(texts)
            home = store.create("new", {}).id
            assert store.append(turn(home)).seq == 1
        if notes:
            assert len(list(place.glob("conversations-damaged-*.db"))) == 1
        saved[number] = len(found)
    # Without the schema or the root of its tree no turn can be reached; other pages cost a few.
    ordinary = {number: kept for number, kept in saved.items() if number not in (0, root)}
    assert len(ordinary) > 20
    assert min(ordinary.values()) >= len(texts) * 0.85, ordinary


def test_damage_met_while_running_is_said_and_repaired_at_the_next_start(
    folder: Path, notes: list[str]
) -> None:
    texts = fill(folder)
    with Conversations.open(folder) as store:
        (home,) = (c.id for c in store.conversations())
        store._database._connection().execute("PRAGMA cache_size = 0")
        for number in range(5, pages(folder)):
            damage_page(folder, number, number)
        with pytest.raises(StoreDamagedError, match="start it"):
            store.load(home)
    with Conversations.open(folder, note=notes.append) as store:
        assert "damaged" in notes[0]
        assert set(texts_of(store)) <= set(texts)


def test_damage_under_another_window_is_left_alone(folder: Path) -> None:
    fill(folder)
    with Conversations.open(folder):
        (folder / DATABASE).write_bytes(b"garbage" * 3000)
        before = (folder / DATABASE).read_bytes()
        with pytest.raises(StoreDamagedError, match="Close all other windows"):
            Conversations.open(folder)
        assert (folder / DATABASE).read_bytes() == before


def test_a_truncated_store_is_survived(folder: Path, notes: list[str]) -> None:
    texts = fill(folder)
    data = (folder / DATABASE).read_bytes()
    (folder / DATABASE).write_bytes(data[: len(data) // 2])
    mark_unclean(folder)
    with Conversations.open(folder, note=notes.append) as store:
        found = texts_of(store)
    assert set(found) <= set(texts)
    assert "damaged" in notes[0]


@pytest.mark.parametrize("column", ["role = 'x'", "ids = x'010203'", "finish = ''"])
def test_impossible_values_are_a_sentence(folder: Path, column: str) -> None:
    fill(folder, 2)
    change(folder, f"UPDATE turn SET {column}")
    with Conversations.open(folder) as store:
        (home,) = (c.id for c in store.conversations())
        with pytest.raises(StoreDamagedError):
            store.load(home)


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000])
def test_impossible_settings_are_a_sentence(folder: Path, text: str) -> None:
    fill(folder, 1)
    change(folder, f"UPDATE conversation SET settings = '{text}'")
    with Conversations.open(folder) as store:
        (home,) = (c.id for c in store.conversations())
        with pytest.raises(StoreDamagedError, match="settings"):
            store.load(home)


def test_network_file_systems_are_refused(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    line = "36 35 {}:{} / /x rw,noatime shared:1 - {} server:/x rw\n"
    place = os.major(device), os.minor(device)
    mounts.write_text(line.format(*place, "ext4") + line.format(0, 9999, "nfs4"))
    files.refuse_network(tmp_path, mounts)
    files.refuse_network(tmp_path, tmp_path / "none")
    for kind in ("nfs", "nfs4", "cifs", "smb3"):
        mounts.write_text("nonsense\n" + line.format(*place, kind))
        with pytest.raises(StoreError, match=f"network file system \\({kind}\\)"):
            files.refuse_network(tmp_path, mounts)


def test_a_folder_that_cannot_be_written_is_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match="Permission denied"):
        Database(folder, lambda note: None)


@pytest.mark.parametrize("step", ["_salvage", "_keep_aside", "replace"])
def test_a_repair_that_is_cut_off_is_done_again(
    folder: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    texts = fill(folder)
    damage_page(folder, pages(folder) // 2)
    mark_unclean(folder)

    def crash(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "replace":
            patch.setattr(Path, "replace", crash)
        else:
            patch.setattr(salvage, step, crash)
        with pytest.raises(KeyboardInterrupt):
            Conversations.open(folder)
    with Conversations.open(folder, note=notes.append) as store:
        assert len(texts_of(store)) >= len(texts) * 0.85
        assert "damaged" in notes[0]
    assert sorted(path.name for path in folder.glob("*repaired*")) == []


def test_a_repair_without_room_leaves_the_damaged_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder)
    damage_page(folder, pages(folder) // 2)
    mark_unclean(folder)
    before = (folder / DATABASE).read_bytes()

    def connect_small(path: Path) -> sqlite3.Connection:
        sql = connect(path)
        sql.execute("PRAGMA max_page_count = 12")
        return sql

    monkeypatch.setattr(salvage, "connect", connect_small)
    with pytest.raises(StoreFullError):
        Conversations.open(folder)
    assert (folder / DATABASE).read_bytes() == before
    assert list(folder.glob("conversations-damaged-*")) == []
