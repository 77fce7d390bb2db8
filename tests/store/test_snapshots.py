"""Saved states: a verified cache within a budget."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rwkv_chat.checkpoints import safetensors
from rwkv_chat.errors import SnapshotError, StoreError, StoreFullError
from rwkv_chat.store.conversations import Conversations
from rwkv_chat.store.snapshots import Snapshots
from tests.store.samples import state


@pytest.fixture
def snapshots(store: Conversations) -> Snapshots:
    return store.snapshots


def files(folder: Path) -> list[Path]:
    return sorted((folder / "snapshots").iterdir())


def test_a_state_comes_back_to_the_bit(snapshots: Snapshots) -> None:
    saved = state(3)
    snapshots.put("k", saved)
    back = snapshots.get("k", saved.owner)
    assert back is not None
    assert back.state.tobytes() == saved.state.tobytes()
    assert back.logits.tobytes() == saved.logits.tobytes()
    assert (back.tokens, back.key) == (3, "k")
    assert snapshots.get("other") is None


def test_has_tells_which_are_kept(snapshots: Snapshots) -> None:
    snapshots.put("a", state())
    snapshots.put("b", state())
    assert snapshots.has([]) == set()
    assert snapshots.has(["a", "c", "b", *map(str, range(2000))]) == {"a", "b"}


def test_a_newer_state_replaces_the_file(snapshots: Snapshots, folder: Path) -> None:
    snapshots.put("a", state(1))
    (before,) = files(folder)
    snapshots.put("a", state(2))
    (after,) = files(folder)
    assert before != after
    back = snapshots.get("a")
    assert back is not None
    assert back.tokens == 2


def test_the_least_recently_used_gives_way(folder: Path) -> None:
    with Conversations.open(folder) as store:
        store.snapshots.put("x", state())
        size = store.snapshots.size()
        store.snapshots.budget_bytes = 3 * size
        for key in "abc":
            store.snapshots.put(key, state())
        assert store.snapshots.has("xabc") == set("abc")
        assert store.snapshots.get("a") is not None
        store.snapshots.put("d", state())
        assert store.snapshots.has("abcd") == set("acd")
        assert store.snapshots.size() == 3 * size
        assert len(files(folder)) == 3
        store.snapshots.budget_bytes = 10
        store.snapshots.put("e", state())
        assert store.snapshots.has("acde") == set("acd")


def corrupt(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


def replace_by_other(path: Path) -> None:
    safetensors.write(path, {"state": np.zeros(4, np.float32)}, {})


@pytest.mark.parametrize(
    "damage",
    [corrupt, replace_by_other, Path.unlink, lambda path: path.write_bytes(b"")],
)
def test_a_damaged_file_is_put_aside_and_told(
    snapshots: Snapshots, folder: Path, notes: list[str], damage: object
) -> None:
    snapshots.put("a", state())
    (path,) = files(folder)
    damage(path)  # type: ignore[operator]
    assert snapshots.get("a") is None
    assert len(notes) == 1
    assert "computed again" in notes[0]
    assert snapshots.has(["a"]) == set()
    assert all(left.name.endswith(".damaged") for left in files(folder))
    assert snapshots.get("a") is None
    assert len(notes) == 1
    snapshots.keep_only([])
    assert files(folder) == []


def test_files_swapped_under_their_names_are_found(
    snapshots: Snapshots, folder: Path, notes: list[str]
) -> None:
    snapshots.put("a", state(1))
    snapshots.put("b", state(2))
    one, two = files(folder)
    spare = one.with_name("spare")
    one.rename(spare)
    two.rename(one)
    spare.rename(two)
    assert snapshots.get("a") is None
    assert snapshots.get("b") is None
    assert len(notes) == 2


def test_a_state_of_another_model_is_not_used(snapshots: Snapshots, notes: list[str]) -> None:
    snapshots.put("a", state(1))
    assert snapshots.get("a", state(1, model="z" * 64).owner) is None
    assert "weights" in notes[0]


def test_a_state_that_is_not_finite_is_not_kept(snapshots: Snapshots, folder: Path) -> None:
    saved = state()
    saved.state[7] = np.nan
    with pytest.raises(SnapshotError):
        snapshots.put("a", saved)
    assert files(folder) == []
    assert snapshots.has(["a"]) == set()


def test_orphans_are_swept_at_the_start_but_not_under_another_window(folder: Path) -> None:
    with Conversations.open(folder) as store:
        store.snapshots.put("a", state())
        for name in (".x.state.abc.tmp", "orphan.state", "old.state.damaged"):
            (folder / "snapshots" / name).write_bytes(b"x")
        with Conversations.open(folder) as other:
            assert len(files(folder)) == 4
            assert other.snapshots.get("a") is not None
    with Conversations.open(folder) as store:
        assert len(files(folder)) == 1
        assert store.snapshots.get("a") is not None


@pytest.fixture
def failing_sync(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    return errno.ENOSPC


def test_a_full_disk_is_said_and_leaves_nothing(
    snapshots: Snapshots, folder: Path, failing_sync: int
) -> None:
    with pytest.raises(StoreFullError, match="words are safe"):
        snapshots.put("a", state())
    assert files(folder) == []
    assert snapshots.has(["a"]) == set()


def test_room_for_words_is_left(
    snapshots: Snapshots, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(StoreFullError, match="words are still saved"):
        snapshots.put("a", state())
    assert files(folder) == []


def test_a_vanished_folder_is_a_sentence(snapshots: Snapshots, folder: Path) -> None:
    (folder / "snapshots").rmdir()
    with pytest.raises(StoreError):
        snapshots.put("a", state())
