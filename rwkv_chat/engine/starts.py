"""The start states that people trained: a model that begins with one is a model of its own."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_chat.errors import SnapshotError

if TYPE_CHECKING:
    from rwkv_chat.engine.model import Model

__all__ = ["Starts"]


class Starts:
    """Remembers the last one; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[object, Model] | None = None

    def of(self, model: Model, start: str) -> Model:
        """`model` as it begins with the state in the file `start`; "" is the model itself.

        Raises:
            SnapshotError: the file is gone, or holds no start state of this model.
        """
        if not start:
            return model
        path = Path(start)
        try:
            found = path.stat()
        except (OSError, ValueError) as error:
            raise SnapshotError(
                f"The start state {path} of this conversation is not there. Put it back, or choose "
                "another one."
            ) from error
        key = (model.fingerprint, start, found.st_size, found.st_mtime_ns)
        with self._lock:
            if self._last is None or self._last[0] != key:
                self._last = (key, model.with_start(path))
            return self._last[1]
