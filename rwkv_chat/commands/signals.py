"""Signals that ask the process to go, as exceptions, so that everything is kept and closed."""

import signal
from types import FrameType

__all__ = ["Interrupted", "exit_code", "raise_interrupted"]


class Interrupted(KeyboardInterrupt):
    """A signal has asked the process to go: to be handled like Ctrl-C. `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def raise_interrupted() -> None:
    """Let SIGTERM and SIGHUP raise Interrupted in the main thread, as SIGINT does by itself.

    A signal that is ignored (as by nohup) or already handled stays so.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)


def exit_code(error: KeyboardInterrupt) -> int:
    """What shells call a process that ended by this: 128 and the number of the signal."""
    return 128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)
