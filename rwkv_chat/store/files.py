"""Files that only their owner may read, and the reserve for a full disk."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from rwkv_chat.errors import StoreError
from rwkv_chat.paths import ensure_private

__all__ = ["Ballast", "create_private", "open_folder", "refuse_network", "tighten"]

_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "fuse.sshfs"}
_MOUNTS = Path("/proc/self/mountinfo")


def open_folder(folder: Path) -> Path:
    """Create `folder` for its owner only, or take others' rights away if it is ours.

    Raises:
        SettingsError: it cannot be created.
        StoreError: it lies on a network file system.
    """
    ensure_private(folder)
    tighten(folder)
    refuse_network(folder)
    return folder


def create_private(path: Path) -> None:
    """Make an empty file of mode 0600 unless there is one; tighten it if there is.

    Raises:
        StoreError: it cannot be created, or something that is no file has the name.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if not path.is_file():
            raise StoreError(f"{path} is not a regular file. Move it away.") from None
        tighten(path)
    except OSError as error:
        raise StoreError(
            f"Cannot create {path}: {error.strerror}. "
            "Set RWKV_CHAT_HOME to a folder that can be written."
        ) from error


def tighten(path: Path) -> None:
    """Take every right of others from a file or folder that belongs to this user."""
    owner = getattr(os, "geteuid", None)
    with suppress(OSError):
        found = path.stat()
        if owner is not None and found.st_uid == owner() and found.st_mode & 0o077:
            path.chmod(stat.S_IMODE(found.st_mode) & 0o700)


def refuse_network(folder: Path, mounts: Path = _MOUNTS) -> None:
    """Refuse a folder on a network file system, where the locks of SQLite cannot be trusted.

    Raises:
        StoreError: it lies on one. Where the type cannot be learnt, the folder is accepted.
    """
    try:
        device = folder.stat().st_dev
        lines = mounts.read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        place, _, kind = line.partition(" - ")
        fields = place.split()
        if len(fields) > 2 and fields[2] == number and kind.split(" ", 1)[0] in _NETWORK:
            raise StoreError(
                f"{folder} lies on a network file system ({kind.split(' ', 1)[0]}), where "
                "conversations could be damaged. Set RWKV_CHAT_HOME to a folder on a local disk."
            )


class Ballast:
    """A file to delete when the disk is full: even deleting rows needs room."""

    def __init__(self, path: Path, size: int = 4 << 20) -> None:
        self.path = path
        self.size = size

    def lay(self) -> None:
        """Write the file unless it is there; on a disk too full for it, leave nothing behind."""
        try:
            if self.path.exists() and self.path.stat().st_size == self.size:
                return
            self.path.unlink(missing_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(os.urandom(self.size))  # zeros take no room on some file systems
        except FileExistsError:  # another window is writing it
            return
        except OSError:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    def release(self) -> bool:
        """Delete the file; whether that made room."""
        try:
            self.path.unlink()
        except OSError:
            return False
        return True
