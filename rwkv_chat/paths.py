"""Where things live. `RWKV_CHAT_HOME` puts everything into one folder."""

import os
from pathlib import Path

from rwkv_chat.errors import SettingsError

__all__ = ["bundled", "cache_dir", "config_dir", "data_dir", "ensure_private", "models_dir"]

_APP = "rwkv-chat"


def _base(kind: str) -> Path:
    home = os.environ.get("RWKV_CHAT_HOME")
    if home:
        try:
            return Path(home).expanduser().absolute() / kind
        except RuntimeError as error:
            raise SettingsError(
                f"RWKV_CHAT_HOME is {home}, and the home folder that this names cannot be found. "
                "Set it to a full path."
            ) from error
    import platformdirs

    folder: str = getattr(platformdirs, f"user_{kind}_dir")(_APP, appauthor=False)
    return Path(folder)


def data_dir() -> Path:
    """The folder of the store and of snapshots (not created here)."""
    return _base("data")


def cache_dir() -> Path:
    """The folder of everything that can be rebuilt (not created here)."""
    return _base("cache")


def config_dir() -> Path:
    """The folder of the settings file (not created here)."""
    return _base("config")


def models_dir() -> Path:
    """The folder in which model files are looked up by name (not created here)."""
    return data_dir() / "models"


def bundled(name: str) -> Path:
    """The path of a file that ships inside the package, under `rwkv_chat/data`."""
    return Path(__file__).parent / "data" / name


def ensure_private(folder: Path) -> Path:
    """Create `folder` and its missing parents, readable by their owner only, and return it.

    Raises:
        SettingsError: the folder cannot be created, with the path and the reason.
    """
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"Cannot create the folder {folder}: {error.strerror}. "
            "Set RWKV_CHAT_HOME to a folder that can be written."
        ) from error
    return folder
