"""Who has the store open: shared by every window, exclusive while one of them repairs it."""

import os
import time
from pathlib import Path

from rwkv_chat.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows, where an open database cannot be renamed or replaced anyway
    fcntl = None  # type: ignore[assignment]

__all__ = ["StoreLock"]

_PATIENCE = 10.0


class StoreLock:
    """A lock on a file of its own; the system lets go of it when the process dies.

    The database itself must not serve: closing any descriptor of it would drop SQLite's locks.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        try:
            self._descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise StoreError(f"Cannot open {path}: {error.strerror}.") from error

    def try_alone(self) -> bool:
        """Lock out every other process if none has the store open.

        Without file locks the answer is True: such a system refuses to move files that are open.
        """
        if fcntl is None:
            return True
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def share(self) -> None:
        """Let others in, or wait for one that is alone; and keep them from being alone.

        Raises:
            StoreError: another window has been alone for 10 seconds.
        """
        if fcntl is None:
            return
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise StoreError(
                        "Another window of rwkv-chat is repairing or checking the store of "
                        "conversations. Wait until it has finished, or close it."
                    ) from error
                time.sleep(0.01)
            else:
                return

    def close(self) -> None:
        """Let go."""
        os.close(self._descriptor)
