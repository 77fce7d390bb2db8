"""Model files: `open(path)` tells all that can be known of one before it is loaded."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rwkv_chat.checkpoints.info import FileInfo, open  # noqa: A004

__all__ = ["FileInfo", "open"]


def __getattr__(name: str) -> object:
    """Import on first use: the parts of this package that need no numpy stay without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rwkv_chat.checkpoints import info

    return getattr(info, name)


def __dir__() -> list[str]:
    return sorted(__all__)
