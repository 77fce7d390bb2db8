"""An open store in a fresh folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkv_chat.store.conversations import Conversations


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
