"""The file that keeps which panes are open."""

import stat

import pytest

from rwkv_chat import paths
from rwkv_chat.commands import layout
from rwkv_chat.tui.layout import Layout, Place

TWO = Layout((Place("c1", "t1"), Place("c2", "t9")), 1)


def test_what_is_saved_is_found_again_and_private() -> None:
    assert layout.load() == Layout()
    layout.save(TWO)
    assert layout.load() == TWO
    file = paths.data_dir() / "panes.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[" * 10_000, b"x" * 20_000, b"[]", b"null", b'{"places": 3}'],
)
def test_a_damaged_file_is_no_layout(content: bytes) -> None:
    layout.save(TWO)
    (paths.data_dir() / "panes.json").write_bytes(content)
    assert layout.load() == Layout()


def test_what_cannot_be_written_costs_nothing_else() -> None:
    paths.data_dir().parent.mkdir(parents=True)
    paths.data_dir().write_text("a file, where the folder should be")
    layout.save(TWO)
    assert layout.load() == Layout()
