"""The models that can be named without a path: the one that ships, and those in the folder."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rwkv_chat.checkpoints.folder import find_files, is_model_folder
from rwkv_chat.errors import CheckpointError
from rwkv_chat.paths import bundled, models_dir

__all__ = ["EMBEDDED", "CatalogEntry", "available", "find", "lasting"]

EMBEDDED = "embedded"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".st", ".gguf", ".bin")


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model by name; `source` is "bundled" or "folder"."""

    name: str
    path: Path
    description: str
    source: str


def available() -> list[CatalogEntry]:
    """The embedded model, where it ships, then what is in the models folder by name."""
    entries = []
    embedded = bundled("model.safetensors")
    if embedded.is_file():
        entries.append(CatalogEntry(EMBEDDED, embedded, "ships with rwkv-chat", "bundled"))
    folder = models_dir()
    try:
        files = sorted(p for p in folder.iterdir() if _is_model(p))
    except OSError:  # the folder is only made by those who put something into it
        files = []
    for path in files:
        with suppress(OSError):  # removed since the folder was read
            name = path.name if path.is_dir() else path.stem
            entries.append(CatalogEntry(name, path, _size(path), "folder"))
    return entries


def _is_model(path: Path) -> bool:
    return (path.suffix in _SUFFIXES and path.is_file()) or is_model_folder(path)


def _size(path: Path) -> str:
    try:
        size = sum(part.stat().st_size for part in find_files(path).parts)
    except CheckpointError:  # whoever opens it is told what is wrong
        return "damaged"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def find(name_or_path: str | Path) -> Path:
    """The file of a model, by its name in `available` (with or without suffix) or by its path.

    Raises:
        CheckpointError: there is none, with the names that there are.
    """
    text = str(name_or_path)
    entries = available()
    for entry in entries:
        if text in (entry.name, entry.path.name):
            return entry.path
    try:
        path = Path(name_or_path).expanduser()
        if path.is_file() or is_model_folder(path):
            return path
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, or nobody's home
        pass
    names = ", ".join(entry.name for entry in entries) or "none"
    raise CheckpointError(
        f'There is no model "{text[:200]}". Give the path of a model file, or one of the known '
        f"models: {names}. Files in {models_dir()} are known by their name."
    )


def lasting(name_or_path: str) -> str:
    """The name of a model, or its full path, which means the same from every folder.

    What names no model stays as it is, for `find` to refuse it.
    """
    if any(name_or_path in (entry.name, entry.path.name) for entry in available()):
        return name_or_path
    try:
        path = Path(name_or_path).expanduser().absolute()
        return str(path) if path.exists() else name_or_path
    except (OSError, ValueError, RuntimeError):
        return name_or_path
