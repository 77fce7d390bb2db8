"""A full disk loses nothing, says so, and lets the person delete."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rwkv_chat.errors import StoreFullError
from rwkv_chat.store.conversations import Conversations
from rwkv_chat.store.files import Ballast
from tests.store.samples import turn

ROOT = Path(__file__).parents[2]

FILL = """
import sys
from pathlib import Path
from rwkv_chat.errors import StoreFullError
from rwkv_chat.store.conversations import Conversations
from tests.store.samples import turn

notes = []
folder = Path(sys.argv[1])
store = Conversations.open(folder, note=notes.append)
spare = store.create("spare", {}).id
home, at, done = store.create("t", {}).id, None, 0
try:
    while done < 100_000:
        at = store.append(turn(home, at, "word " * 2000)).id
        done += 1
except StoreFullError as error:
    reason = str(error)
else:
    sys.exit("the disk never became full")
kept = store.load(home)
assert [t.seq for t in kept.turns.values()] == list(range(1, done + 1)), "a turn was lost"
assert kept.head == at
store.close()
with Conversations.open(folder) as store:
    kept = store.load(home)
    assert len(kept.turns) == done and kept.head == at, "a turn was lost"
    assert all(t.text == "word " * 2000 for t in kept.turns.values())
print(done, len(notes), (folder / "ballast").exists(), reason)
"""


def limit(store: Conversations, pages: int) -> None:
    sql = store._database._connection()
    (now,) = sql.execute("PRAGMA page_count").fetchone()
    sql.execute(f"PRAGMA max_page_count = {now + pages}")


def test_every_write_is_refused_whole_and_works_again(
    store: Conversations, folder: Path, notes: list[str]
) -> None:
    home = store.create("t", {}).id
    first = store.append(turn(home))
    before = store.load(home)
    limit(store, 0)
    big = "x" * 50_000
    writes = [
        lambda: store.create(big, {}),
        lambda: store.append(turn(home, first.id, big)),
        lambda: store.update(replace(first, text=big)),
        lambda: store.rename(home, big),
        lambda: store.configure(home, {"x": big}),
        lambda: store.set_label(first.id, big),
    ]
    for write in writes:
        with pytest.raises(StoreFullError, match="Free some space"):
            write()
        assert store.load(home) == before
        assert len(store.conversations()) == 1
    assert not (folder / "ballast").exists()
    assert notes == []
    limit(store, 10_000)
    for write in writes:
        write()
    assert store.load(home).turn(first.id).label == big


def test_the_reserve_saves_the_write_and_the_person_is_told(
    store: Conversations, folder: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = store.create("t", {}).id
    limit(store, 0)

    def release(ballast: Ballast) -> bool:
        limit(store, 1000)
        return True

    monkeypatch.setattr(Ballast, "release", release)
    made = store.append(turn(home, text="x" * 50_000))
    assert list(store.load(home).turns) == [made.id]
    assert len(notes) == 1
    assert "nothing is lost" in notes[0]


def test_the_reserve_is_laid_again(folder: Path) -> None:
    for _ in range(2):
        with Conversations.open(folder) as store:
            assert (folder / "ballast").stat().st_size == 4 << 20
            assert store._database._ballast.release()
            assert not store._database._ballast.release()
    (folder / "ballast").write_bytes(b"half")
    with Conversations.open(folder):
        assert (folder / "ballast").stat().st_size == 4 << 20


def run_fill(folder: Path, command: list[str]) -> tuple[int, int, str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, sys.executable, "-c", FILL, str(folder)],
        capture_output=True, text=True, timeout=120, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    turns, notes, ballast, reason = done.stdout.split(" ", 3)
    return int(turns), int(notes), ballast, reason


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    shell = ["sh", "-c", 'ulimit -f 600; exec "$@"', "sh"]
    turns, notes, _, reason = run_fill(tmp_path / "s", shell)
    assert turns > 10
    assert notes == 0  # there was no room for a reserve
    assert "could not be saved" in reason


def test_a_disk_of_seven_megabytes(tmp_path: Path) -> None:
    """On a real small disk: the reserve of 4 MB is used up before anything is refused."""
    unshare = shutil.which("unshare")
    mount = 'mount -t tmpfs -o size=7m none "$0" && exec "$@"'
    command = [unshare or "", "-rm", "sh", "-c", mount, str(tmp_path)]
    if not unshare or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("mounting in a private namespace (unshare -rm) is not allowed here")
    turns, notes, _, reason = run_fill(tmp_path / "s", command)
    assert turns > 400  # more than 4 MB of turns in a disk of 7 MB with a reserve of 4
    assert notes == 1
    assert "could not be saved" in reason


@pytest.mark.parametrize("pages", range(0, 14))
def test_wherever_the_disk_becomes_full_what_was_committed_stays(
    store: Conversations, folder: Path, pages: int
) -> None:
    home = store.create("t", {}).id
    kept = [store.append(turn(home, text="before"))]
    store._database._ballast.release()
    limit(store, pages)
    refused = 0
    for number in range(30):
        try:
            made = store.append(turn(home, kept[-1].id, text=f"{number} " * 900))
            kept.append(made)
            store.update(replace(made, text=made.text + "x" * 5000))
        except StoreFullError:
            refused += 1
        else:
            kept[-1] = replace(made, text=made.text + "x" * 5000)
    assert refused > 0
    assert list(store.load(home).turns.values()) == kept
    limit(store, 100_000)
    assert store.append(turn(home, kept[-1].id)).seq == len(kept) + 1
    store.close()
    with Conversations.open(folder) as again:
        assert len(again.load(home).turns) == len(kept) + 1
