"""What a command says of its work, on stderr."""

import sys
from contextlib import suppress

from rwkv_chat.text.display import clean

__all__ = ["narrate", "show_progress"]


def narrate(text: str, *, end: str) -> None:
    """Say something; in a terminal it takes the place of what was said before."""
    back = "\r\x1b[K" if sys.stderr.isatty() else ""
    with suppress(OSError):  # no work fails for want of its narration
        print(back + clean(text), end=end, file=sys.stderr, flush=True)


def show_progress(text: str) -> None:
    """Say how far it is, in a terminal only; "" takes it away."""
    if sys.stderr.isatty():
        narrate(text, end="")
