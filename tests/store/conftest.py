"""An open store in a fresh folder."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkv_chat.store.conversations import Conversations

_MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where there is one: every commit waits for the disk several times."""
    if not os.access(_MEMORY, os.W_OK):
        yield tmp_path_factory.mktemp("store")
        return
    with tempfile.TemporaryDirectory(prefix="rwkv-chat-test-", dir=_MEMORY) as name:
        yield Path(name)


@pytest.fixture
def notes() -> list[str]:
    """What the store told the person."""
    return []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def store(folder: Path, notes: list[str]) -> Iterator[Conversations]:
    with Conversations.open(folder, note=notes.append) as opened:
        yield opened
