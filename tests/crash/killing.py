"""Kill writers of a store at random moments and compare what is left with what they acknowledged.

Run as `python -m tests.crash.killing FOLDER KILLS SEED`; prints one JSON object of figures.
"""

import hashlib
import json
import os
import random
import select
import shutil
import signal
import sqlite3
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from rwkv_chat.chat.tree import Role, Turn
from rwkv_chat.checkpoints import statefile
from rwkv_chat.checkpoints.statefile import SavedState
from rwkv_chat.models.state import StateField, StateLayout
from rwkv_chat.store.conversations import Conversations

LAYOUT = StateLayout("rwkv7", 4, (StateField("wkv", (4, 32, 32)),))
LONGEST_S = 0.080
KILLS_PER_STORE = 40
BUDGET = 3 << 20


@dataclass
class Figures:
    """What a campaign has seen."""

    kills: int = 0
    turns: int = 0
    updates: int = 0
    snapshots: int = 0
    purges: int = 0
    lost: int = 0
    not_sound: int = 0
    bad_snapshots: int = 0
    orphans_before: int = 0
    orphans_after: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass
class Acknowledged:
    """What writers have said is on disk: per turn its number and the last version of its text."""

    turns: dict[str, tuple[str, int, int]] = field(default_factory=dict)

    def hear(self, line: str, figures: Figures) -> None:
        what, *words = line.split()
        if what == "turn":
            self.turns[words[0]] = (words[1], int(words[2]), 0)
            figures.turns += 1
        elif what == "update":
            conversation, seq, _ = self.turns[words[0]]
            self.turns[words[0]] = (conversation, seq, int(words[1]))
            figures.updates += 1
        elif what == "snapshot":
            figures.snapshots += 1
        elif what == "purge":
            figures.purges += 1
        elif what == "failed":
            figures.failures.append(line)


def text_of(turn: str, version: int) -> str:
    """A text of up to 20 KB that anyone can compute again."""
    length = int(hashlib.sha256(f"{turn} {version}".encode()).hexdigest()[:4], 16) % 20_000
    return f"{version} {turn} " + "x" * length


def write_for_ever(folder: Path, pipe: int, seed: int) -> None:
    """Append, update, snapshot and purge, saying so only after each call has returned."""

    def say(*words: object) -> None:
        os.write(pipe, (" ".join(map(str, words)) + "\n").encode())

    chance = random.Random(seed)
    state = np.random.default_rng(seed).standard_normal(LAYOUT.size).astype(np.float32)
    logits = np.zeros(512, np.float32)
    store = Conversations.open(folder, budget_bytes=BUDGET)
    say("open")
    home, parent, count = store.create("killed", {}).id, None, 0
    while True:
        count += 1
        name = f"{seed}-{count}"
        made = store.append(
            Turn(name, home, parent, 0, Role.USER, text_of(name, 0), tuple(range(count)))
        )
        say("turn", name, home, made.seq)
        for version in range(1, chance.randrange(4)):
            store.update(replace(made, text=text_of(name, version)))
            say("update", name, version)
        if chance.random() < 0.6:
            key = hashlib.sha256(name.encode()).hexdigest()
            store.snapshots.put(key, SavedState("m", "t", LAYOUT, count, state, logits))
            say("snapshot", key)
        if chance.random() < 0.05:
            other = store.create("to be erased", {}).id
            store.append(Turn("", other, None, 0, Role.USER, "y" * 9000))
            store.delete(other)
            store.purge()
            say("purge")
        parent = name


def start(folder: Path, seed: int) -> tuple[int, int]:
    """Fork a writer; returns its id and the end of the pipe on which it acknowledges."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        os.close(reading)
        write_for_ever(folder, writing, seed)
    except BaseException as error:
        os.write(writing, f"failed {error!r}\n".encode())
    finally:
        os._exit(1)


def kill_once(folder: Path, chance: random.Random, heard: Acknowledged, figures: Figures) -> None:
    """One or two writers at once, each killed after up to 80 ms; one time in five while opening."""
    writers = [start(folder, chance.getrandbits(48)) for _ in range(chance.choice((1, 1, 2)))]
    if chance.random() < 0.8:
        select.select([pipe for _, pipe in writers], [], [])
    for child, _ in writers:
        time.sleep(chance.uniform(0, LONGEST_S) / len(writers))
        os.kill(child, signal.SIGKILL)
    for child, pipe in writers:
        with os.fdopen(pipe, encoding="utf-8") as lines:
            for line in lines:
                heard.hear(line, figures)
        os.waitpid(child, 0)
    figures.kills += len(writers)


def verify(folder: Path, heard: Acknowledged, figures: Figures) -> None:
    """Compare the store with what was acknowledged."""
    if not (folder / "conversations.db").exists():
        figures.lost += len(heard.turns)
        return
    sound = is_sound(folder / "conversations.db")
    figures.orphans_before += len(orphans(folder))
    notes: list[str] = []
    with Conversations.open(folder, note=notes.append, budget_bytes=BUDGET) as store:
        found = {c.id: store.load(c.id) for c in store.conversations()}
        figures.orphans_after += len(orphans(folder))
    if not sound or notes or list(folder.glob("*damaged*")):
        figures.not_sound += 1
        figures.failures.append(f"not sound: {notes}")
    for name, (conversation, seq, version) in heard.turns.items():
        turn = found[conversation].turns.get(name) if conversation in found else None
        newest = int(turn.text.split()[0]) if turn else -1
        if not turn or turn.seq != seq or newest < version or turn.text != text_of(name, newest):
            figures.lost += 1
            figures.failures.append(f"lost: {name} {seq} {version} {newest}")
    for key, file, size in rows(folder):
        path = folder / "snapshots" / file
        try:
            good = statefile.read(path).key == key and path.stat().st_size == size
        except Exception as error:
            good = False
            figures.failures.append(repr(error))
        figures.bad_snapshots += not good


def is_sound(path: Path) -> bool:
    """Whether SQLite finds nothing wrong."""
    sql = sqlite3.connect(path)
    try:
        whole = sql.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return whole and not sql.execute("PRAGMA foreign_key_check").fetchall()
    except sqlite3.DatabaseError:
        return False
    finally:
        sql.close()


def rows(folder: Path) -> list[tuple[str, str, int]]:
    """The committed snapshots."""
    sql = sqlite3.connect(folder / "conversations.db")
    try:
        return sql.execute("SELECT key, file, bytes FROM snapshot").fetchall()
    except sqlite3.OperationalError:  # killed before there was a table
        return []
    finally:
        sql.close()


def orphans(folder: Path) -> set[str]:
    """Files in the folder of snapshots that no row names."""
    place = folder / "snapshots"
    names = {path.name for path in place.iterdir()} if place.exists() else set()
    return names - {file for _, file, _ in rows(folder)}


def campaign(folder: Path, kills: int, seed: int) -> Figures:
    """Kill writers until `kills` have died, verifying after each round."""
    chance, figures = random.Random(seed), Figures()
    round_ = 0
    while figures.kills < kills:
        place = folder / f"store-{round_}"
        heard, until = Acknowledged(), figures.kills + KILLS_PER_STORE
        while figures.kills < min(kills, until):
            kill_once(place, chance, heard, figures)
            verify(place, heard, figures)
        shutil.rmtree(place, ignore_errors=True)
        round_ += 1
    return figures


if __name__ == "__main__":
    result = campaign(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    result.failures = result.failures[:20]
    print(json.dumps(asdict(result)))  # noqa: T201
