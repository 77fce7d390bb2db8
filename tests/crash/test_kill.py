"""No acknowledged turn is lost by kill -9, and no committed snapshot is bad."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a kill leaves the page cache alone, so that syncing to
    a disk would only slow the writers down and make kills in the middle of a write rarer.
    """
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


def kill(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """The figures of a campaign in a process of its own, since it forks."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.killing", str(folder), str(kills), str(seed)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=290,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures: dict[str, int] = json.loads(done.stdout)
    return figures


def assert_nothing_lost(figures: dict[str, int]) -> None:
    assert figures["failures"] == []
    assert figures["lost"] == 0
    assert figures["not_sound"] == 0
    assert figures["bad_snapshots"] == 0
    assert figures["orphans_after"] == 0


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks its writers")


def test_sixty_kills_lose_nothing(folder: Path) -> None:
    figures = kill(folder, 60, seed=time.time_ns())
    assert_nothing_lost(figures)
    assert figures["kills"] >= 60
    assert figures["turns"] > 60, "the writers were killed before they could write"


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("RWKV_CHAT_SLOW") != "1", reason="RWKV_CHAT_SLOW=1 runs it")
def test_a_thousand_kills_lose_nothing(folder: Path) -> None:
    figures = kill(folder, 1000, seed=1)
    assert_nothing_lost(figures)
    assert figures["kills"] >= 1000
