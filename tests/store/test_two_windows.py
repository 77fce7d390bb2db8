"""Several processes on one store: nothing lost, every race seen, nobody stuck."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_chat.engine.pathkey import path_keys
from rwkv_chat.errors import ConflictError, NotFoundError, StoreError
from rwkv_chat.store import locks
from rwkv_chat.store.conversations import Conversations
from tests.store.samples import MODEL, state, turn

ROOT = Path(__file__).parents[2]

RACE = """
import json, sys, time
from pathlib import Path
from rwkv_chat.errors import ConflictError
from rwkv_chat.store.conversations import Conversations
from tests.store.samples import turn

folder, home, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
won, conflicts, longest = [], 0, 0.0
with Conversations.open(folder) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(100):
        following = len(store.load(home).turns) + 1
        begun = time.monotonic()
        try:
            won.append(store.append(turn(home, text=f"{name}.{number}", seq=following)).seq)
        except ConflictError:
            conflicts += 1
        longest = max(longest, time.monotonic() - begun)
print(json.dumps([won, conflicts, longest]))
"""

MIXED = """
import random, sys
from dataclasses import replace
from pathlib import Path
from rwkv_chat.engine.pathkey import path_keys
from rwkv_chat.store.conversations import Conversations
from tests.store.samples import MODEL, state, turn

folder, home, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
chance, notes = random.Random(name), []
with Conversations.open(folder, note=notes.append, budget_bytes=40_000) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    mine = store.create(name, {}).id
    for number in range(120):
        made = store.append(turn(chance.choice([home, mine]), text=name, ids=(number,)))
        store.update(replace(made, text=f"{name}.{number}"))
        key = path_keys(MODEL, [(number,)])[0]
        if chance.random() < 0.7:
            store.snapshots.put(key, state(number))
        found = store.snapshots.get(path_keys(MODEL, [(chance.randrange(120),)])[0])
        assert found is None or found.state.tobytes() == state(found.tokens).state.tobytes()
        if chance.random() < 0.1:
            gone = store.create("gone", {}).id
            store.append(turn(gone, text="secret"))
            store.delete(gone)
            store.purge()
assert notes == [], notes
print("done")
"""


def together(script: str, folder: Path, home: str, count: int) -> list[str]:
    """What `count` processes that run `script` at the same time print last."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(folder), home, f"p{number}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment,
        )
        for number in range(count)
    ]  # fmt: skip
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [process.communicate(timeout=120) for process in started]
    for process, (_, errors) in zip(started, ended, strict=True):
        assert process.returncode == 0, errors[-2000:]
    return [printed for printed, _ in ended]


def test_every_number_is_given_once_and_every_race_is_seen(folder: Path) -> None:
    with Conversations.open(folder) as store:
        home = store.create("", {}).id
    results = [json.loads(line) for line in together(RACE, folder, home, 2)]
    won = sorted(seq for numbers, _, _ in results for seq in numbers)
    assert won == list(range(1, len(won) + 1))
    assert len(won) + sum(conflicts for _, conflicts, _ in results) == 200
    with Conversations.open(folder) as store:
        assert [t.seq for t in store.load(home).turns.values()] == won


def test_mixed_work_of_three_loses_nothing(folder: Path) -> None:
    with Conversations.open(folder) as store:
        home = store.create("", {}).id
    assert together(MIXED, folder, home, 3) == ["done\n"] * 3
    with Conversations.open(folder) as store:
        texts = [t.text for c in store.conversations() for t in store.load(c.id).turns.values()]
        kept = store.snapshots.size()
    assert sorted(texts) == sorted(f"p{p}.{n}" for p in range(3) for n in range(120))
    assert kept <= 40_000
    data = (folder / "conversations.db").read_bytes()
    assert b"secret" not in data


def test_opening_a_new_store_at_once(folder: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from rwkv_chat.store.conversations import Conversations\n"
        'print("ready", flush=True); sys.stdin.readline()\n'
        'with Conversations.open(Path(sys.argv[1])) as s: s.create(sys.argv[3], {})\nprint("done")'
    )
    assert together(script, folder, "", 4) == ["done\n"] * 4
    with Conversations.open(folder) as store:
        assert {c.title for c in store.conversations()} == {"p0", "p1", "p2", "p3"}


def test_two_windows_of_one_process(folder: Path) -> None:
    with Conversations.open(folder) as one, Conversations.open(folder) as two:
        home = one.create("", {}).id
        first = two.append(turn(home, seq=1))
        with pytest.raises(ConflictError):
            one.append(turn(home, seq=1))
        key = path_keys(MODEL, [(1, 2)])[0]
        one.snapshots.put(key, state(4))
        two.snapshots.put(key, state(5))
        back = one.snapshots.get(key)
        assert back is not None
        assert back.tokens == 5
        assert one.append(turn(home, first.id, seq=2)).seq == 2


def test_a_window_erases_only_what_it_has_deleted(folder: Path) -> None:
    with Conversations.open(folder) as one, Conversations.open(folder) as two:
        mine, yours = one.create("mine", {}).id, two.create("yours", {}).id
        one.append(turn(mine, ids=(1, 2)))
        key = path_keys(MODEL, [(1, 2)])[0]
        one.snapshots.put(key, state())
        one.delete(mine)
        two.delete(yours)
        two.purge()
        assert [summary.id for summary in one.deleted()] == [mine]
        assert one.snapshots.has([key]) == {key}
        one.restore(mine)
        one.purge()
        assert [summary.id for summary in one.conversations()] == [mine]
        with pytest.raises(NotFoundError):
            two.restore(yours)


def test_what_a_killed_window_has_deleted_is_erased_when_nobody_can_bring_it_back(
    folder: Path,
) -> None:
    with Conversations.open(folder) as killed:
        killed.delete(killed.create("", {}).id)
        with Conversations.open(folder) as other:
            other.purge()
            assert len(other.deleted()) == 1
    with Conversations.open(folder) as alone:
        alone.purge()
        assert alone.deleted() == []


def test_who_must_be_alone_is_waited_for_but_not_for_ever(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    monkeypatch.setattr(locks, "_PATIENCE", 0.05)
    lock = locks.StoreLock(folder / "lock")
    assert lock.try_alone()
    with pytest.raises(StoreError, match="repairing or checking"):
        Conversations.open(folder)
    lock.close()
    Conversations.open(folder).close()
