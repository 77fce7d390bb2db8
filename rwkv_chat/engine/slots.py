"""Which place on a device holds which state."""

import weakref
from collections import OrderedDict, deque

from rwkv_chat.errors import EngineError
from rwkv_chat.models.state import F32

__all__ = ["Slots"]


class Slots:
    """Numbers of places. One is free, in use, or remembers a state that a caller still holds.

    States are values, so an array that is alive still means what is in its place. What is
    remembered gives way to what is needed, the least recently used first. Not for several threads
    at once, but for `give_back`.
    """

    def __init__(self, count: int) -> None:
        self._free = list(reversed(range(count)))
        self._known: OrderedDict[int, tuple[weakref.ref[F32], int]] = OrderedDict()
        self._given_back: deque[int] = deque()

    def take(self) -> int:
        """A place to use.

        Raises:
            EngineError: all are in use.
        """
        slot = self.take_spare()
        if slot is not None:
            return slot
        if not self._known:
            raise EngineError(
                "The GPU has no room for another answer at once; wait for one to end."
            )
        return self._known.popitem(last=False)[1][1]

    def take_spare(self) -> int | None:
        """A place to use if one is free."""
        while self._given_back:
            self._free.append(self._given_back.popleft())
        for key, (state, slot) in list(self._known.items()):
            if state() is None:
                del self._known[key]
                self._free.append(slot)
        return self._free.pop() if self._free else None

    def give_back(self, slot: int) -> None:
        """A place is no longer used. From any thread, also while garbage is collected."""
        self._given_back.append(slot)

    def remember(self, slot: int, state: F32) -> None:
        """A place in use holds from now on what `state` is, and may be taken when needed."""
        self._known[id(state)] = (weakref.ref(state), slot)

    def find(self, state: F32) -> int | None:
        """The place that remembers `state`."""
        found = self._known.get(id(state))
        if found is None or found[0]() is not state:
            return None
        self._known.move_to_end(id(state))
        return found[1]
