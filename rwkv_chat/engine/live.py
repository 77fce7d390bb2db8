"""The states that were used last, in memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rwkv_chat.engine.model import State

__all__ = ["LiveStates"]

_BUDGET_BYTES = 256 << 20


class LiveStates:
    """The least recently used go first when together they pass `budget` bytes."""

    def __init__(self, budget: int = _BUDGET_BYTES) -> None:
        self._budget = budget
        self._used = 0
        self._states: OrderedDict[str, State] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._states

    def get(self, key: str) -> State | None:
        """The state under `key`, if it is still here."""
        state = self._states.get(key)
        if state is not None:
            self._states.move_to_end(key)
        return state

    def put(self, key: str, state: State) -> None:
        """Keep `state` under `key`."""
        old = self._states.pop(key, None)
        if old is not None:
            self._used -= old.nbytes
        self._states[key] = state
        self._used += state.nbytes
        while self._used > self._budget and len(self._states) > 1:
            _, dropped = self._states.popitem(last=False)
            self._used -= dropped.nbytes
