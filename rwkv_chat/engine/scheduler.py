"""Who computes next: readings in slices, one after the other, and all answers together.

Answers are batched: one pass over the weights makes a token of each. They join and leave between
passes, and what each says does not depend on who else is there.
"""

from collections import deque
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass

from rwkv_chat.engine.backend import Backend, Decoder

__all__ = ["FRAME_SECONDS", "Scheduler", "Tokens", "Turn", "Work"]

FRAME_SECONDS = 1 / 30


@dataclass(frozen=True, slots=True)
class Turn:
    """A wish for up to `limit` tokens of `decoder`, which belongs to `backend`."""

    backend: Backend
    decoder: Decoder
    limit: int


Tokens = tuple[list[int], str]
"""New ids, and why they end; see `Decoder.run`."""

Work = Generator[Turn | None, Tokens | None, None]
"""Yields None after a slice of its own, or a Turn, for which it is sent Tokens."""


class Scheduler:
    """Advances any number of Works; used by one thread."""

    def __init__(self) -> None:
        self._slices: deque[Work] = deque()
        self._turns: list[tuple[Work, Turn]] = []

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._slices or self._turns)

    def add(self, work: Work) -> None:
        """Begin `work` behind the slices that wait."""
        self._slices.append(work)

    def step(self) -> None:
        """One slice of the work that has waited longest, then a frame of all answers."""
        if self._slices:
            self._advance(self._slices.popleft(), None)
        turns, self._turns = self._turns, []
        for backend in {id(turn.backend): turn.backend for _, turn in turns}.values():
            self._run(backend, [pair for pair in turns if pair[1].backend is backend])

    def _run(self, backend: Backend, turns: list[tuple[Work, Turn]]) -> None:
        decoders, limits = [t.decoder for _, t in turns], [t.limit for _, t in turns]
        try:
            results = backend.run_together(decoders, limits, FRAME_SECONDS)
        except Exception as error:  # each of them must hear of it, and the others go on
            for work, _ in turns:
                with suppress(Exception):
                    work.throw(error)
            return
        for (work, _), tokens in zip(turns, results, strict=True):
            self._advance(work, tokens)

    def _advance(self, work: Work, tokens: Tokens | None) -> None:
        # Whatever happens to one work, the others must go on.
        with suppress(Exception):
            turn = work.send(tokens)
            if turn is None:
                self._slices.append(work)
            else:
                self._turns.append((work, turn))
