"""The way of events from the session's threads to the interface's."""

import threading
from collections import deque
from collections.abc import Callable

from rwkv_chat.chat.events import AnswerGrew, Event, Prefilling

__all__ = ["Inbox"]


class Inbox:
    """Events that wait. News of a growing answer replaces older news, so a slow screen never lags.

    Args:
        wake: Called from any thread when the first event comes into the empty inbox.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._waiting: deque[Event] = deque()

    def put(self, event: Event) -> None:
        """Add an event, from any thread."""
        with self._lock:
            idle = not self._waiting
            if not idle and _replaces(event, self._waiting[-1]):
                self._waiting[-1] = event
            else:
                self._waiting.append(event)
        if idle:
            self._wake()

    def drain(self) -> list[Event]:
        """Take all events, oldest first."""
        with self._lock:
            events = list(self._waiting)
            self._waiting.clear()
        return events


def _replaces(new: Event, old: Event) -> bool:
    for kind in (AnswerGrew, Prefilling):
        if isinstance(new, kind) and isinstance(old, kind):
            return new.turn == old.turn
    return False
