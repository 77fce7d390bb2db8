"""Data files of other Python packages."""

import importlib.util
from pathlib import Path

__all__ = ["packaged"]


def packaged(package: str, name: str) -> Path | None:
    """The file `name` inside `package`; None where it is not installed.

    Finding a package does not run it: its modules may import torch.
    """
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    paths = (Path(folder) / name for folder in folders or ())
    return next((path for path in paths if path.is_file()), None)
