"""The panes that were open last, in a file of their own: losing it costs a few keys."""

import json
from contextlib import suppress

from rwkv_chat import paths
from rwkv_chat.errors import RwkvChatError
from rwkv_chat.files import replacing
from rwkv_chat.tui.layout import Layout

__all__ = ["load", "save"]

_FILE = "panes.json"
_MAX_BYTES = 1 << 14


def load() -> Layout:
    """What `save` has written; a layout without panes where that cannot be read."""
    path = paths.data_dir() / _FILE
    with suppress(OSError, ValueError, RecursionError):
        if path.is_file() and path.stat().st_size <= _MAX_BYTES:
            return Layout.from_json(json.loads(path.read_bytes()))
    return Layout()


def save(layout: Layout) -> None:
    """Replace the file, readable by its owner only. What cannot be written is left."""
    with suppress(OSError, RwkvChatError):
        folder = paths.ensure_private(paths.data_dir())
        with replacing(folder / _FILE) as file:
            file.write(json.dumps(layout.to_json()).encode())
