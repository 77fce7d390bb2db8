"""One answer being generated on a GPU; the host sees one id per token, and the end."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rwkv_chat.engine.backend import DecoderConfig
from rwkv_chat.engine.cudalib import Sampler
from rwkv_chat.errors import UsageError
from rwkv_chat.models.state import F32

if TYPE_CHECKING:
    from rwkv_chat.engine.cuda import CudaBackend

__all__ = ["CudaDecoder", "Words"]

_NOT_FINITE = 0xFFFFFFFF


def _mask(ids: Sequence[int], size: int) -> npt.NDArray[np.uint32]:
    bits = np.zeros(-(-size // 32) * 32, np.uint8)
    bits[list(ids)] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


class Words:
    """The bytes of every id, and which ids stand for none."""

    def __init__(self, token_bytes: Sequence[bytes], size: int) -> None:
        """`size` is that of the model's vocabulary.

        Raises:
            UsageError: there are more tokens than the model has.
        """
        if len(token_bytes) > size:
            raise UsageError(
                f"The vocabulary has {len(token_bytes)} tokens and the model only {size}."
            )
        self.of = token_bytes
        self.size = size
        silent = [i for i in range(size) if i >= len(token_bytes) or not token_bytes[i]]
        self._banned = _mask(silent, size)
        self._has_text = len(silent) < size

    def banned(self, end: int | None) -> npt.NDArray[np.uint32]:
        """A bit for every id that must not be chosen: those without text, but for the end.

        Raises:
            UsageError: nothing is left, or the end is no id.
        """
        mask = self._banned.copy()
        if end is None:
            if not self._has_text:
                raise UsageError("The vocabulary has no token that can be chosen.")
            return mask
        if not 0 <= end < self.size:
            raise UsageError(f"Token id {end} is outside the vocabulary of {self.size}.")
        mask[end // 32] &= np.uint32(~(1 << end % 32) & 0xFFFFFFFF)
        return mask


class CudaDecoder:
    """See `engine.backend.Decoder`.

    The device chooses a token right after it has computed the logits; the choice that was not yet
    fed waits for the next `run`.
    """

    def __init__(
        self, backend: CudaBackend, state: F32, logits: F32, config: DecoderConfig, words: Words
    ) -> None:
        sampler = _sampler(config, words)  # refuses before anything is taken
        if any(not stop for stop in config.stops):
            raise UsageError("A stop string must not be empty.")
        self._backend = backend
        self._words = words
        self._end = config.end
        self._stops = config.stops
        self._kept = max((len(stop) for stop in config.stops), default=1) - 1
        self._tail = b""
        for id_ in config.generated:
            self._completes_stop(id_)
        self._lock = threading.Lock()
        self._cancelled = False
        self._logits = np.array(logits, np.float32)
        self._next: int | None = None
        with backend.lock:
            self._slot = backend.place(state)
            weakref.finalize(self, backend.slots.give_back, self._slot)
            backend.model.set_sampler(self._slot, sampler)

    def run(self, max_tokens: int, seconds: float) -> tuple[list[int], str]:
        """Generate until something ends it; see `engine.backend.Decoder.run`."""
        if max_tokens < 0:
            raise UsageError("max_tokens must not be negative.")
        limit = time.monotonic() + seconds
        ids: list[int] = []
        with self._lock, self._backend.lock:
            reason = self._generate(ids, max_tokens, limit)
            if ids:  # others may step before they are asked for
                self._logits = self._backend.model.logits(0)
        return ids, reason

    def _generate(self, ids: list[int], max_tokens: int, limit: float) -> str:
        model = self._backend.model
        if self._next is None:
            self._next = model.choose(self._slot, self._logits)
        if self._next == _NOT_FINITE:
            return "non_finite"
        while len(ids) < max_tokens:
            if self._cancelled:
                return "cancelled"
            if self._next == self._end:
                return "end"
            id_ = self._next
            (self._next,) = model.step([self._slot], [id_])
            ids.append(id_)
            stopped = self._completes_stop(id_)
            if self._next == _NOT_FINITE:
                return "non_finite"
            if stopped:
                return "stop"
            if time.monotonic() >= limit:
                break
        return "cancelled" if self._cancelled else "running"

    def cancel(self) -> None:
        """Make the current and every later `run` return within one token. From any thread."""
        self._cancelled = True

    @property
    def state(self) -> F32:
        """A copy of the state after the last id."""
        backend = self._backend
        with self._lock, backend.lock:
            state = backend.fetch(self._slot)
            spare = backend.slots.take_spare()
            if spare is not None:  # who goes on from this state finds it on the device
                backend.model.copy_state(self._slot, spare)
                backend.slots.remember(spare, state)
            return state

    @property
    def logits(self) -> F32:
        """A copy of the logits after the last id."""
        with self._lock:
            return self._logits.copy()

    def _completes_stop(self, id_: int) -> bool:
        """Add the bytes of an id to the tail, and tell whether a stop ends within them."""
        old = len(self._tail)
        self._tail += self._words.of[id_] if id_ < len(self._words.of) else b""
        found = any(self._tail.find(stop, max(0, old - len(stop) + 1)) >= 0 for stop in self._stops)
        self._tail = self._tail[max(0, len(self._tail) - self._kept) :]
        return found


def _sampler(config: DecoderConfig, words: Words) -> Sampler:
    """How the device chooses, with the penalties of what is generated already."""
    sampling = config.sampling
    exempt = set(config.exempt)
    values = np.zeros(len(config.generated), np.float64)
    places: dict[int, int] = {}
    for id_ in config.generated:
        values[: len(places)] *= sampling.decay
        if id_ not in exempt:
            values[places.setdefault(id_, len(places))] += 1
    return Sampler(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        presence=sampling.presence,
        frequency=sampling.frequency,
        decay=sampling.decay,
        top_k=sampling.top_k,
        seed=config.seed,
        draw=len(config.generated),
        banned=words.banned(config.end),
        exempt=_mask(config.exempt, words.size),
        counted=np.array(list(places), np.uint32),
        values=values[: len(places)].copy(),
    )
