"""One answer: read what is unread of the path, then generate in slices of a frame."""

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from rwkv_chat.chat.ports import Listener, Request
from rwkv_chat.chat.tree import Finish
from rwkv_chat.engine.backend import Decoder, DecoderConfig
from rwkv_chat.engine.model import Decoding, Model, State
from rwkv_chat.engine.pathkey import path_keys
from rwkv_chat.engine.scheduler import FRAME_SECONDS, Tokens, Turn
from rwkv_chat.errors import NonFiniteError, UsageError

__all__ = ["Generation", "Kept"]

_PREFILL_SECONDS = 0.1
_FIRST_CHUNK = 16
_NON_FINITE = (
    "The model produced numbers that are not finite, so the answer ends here. "
    "Regenerate it, or choose another model."
)
_ENDS = {"stop": Finish.STOP, "end": Finish.END, "cancelled": Finish.CANCELLED}


@dataclass(frozen=True, slots=True)
class Kept:
    """A state worth keeping: its key, and where sampling stood when it ends an answer."""

    key: str
    state: State
    decoding: Decoding | None = None


class Generation:
    """Runs one request in slices; `cancel` may come from any thread at any time.

    `kept` are the states worth keeping: at the end of the question and of the turn before
    it, and at the end of the answer.
    """

    def __init__(self, model: Model, request: Request, listener: Listener) -> None:
        self.model = model
        self.request = request
        self.listener = listener
        self.kept: list[Kept] = []
        self._lock = threading.Lock()
        self._cancelled = False
        self._decoder: Decoder | None = None
        self._tokens = 0
        self._seconds = 0.0
        self._read_seconds = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Speed of this answer since its first token, as the person sees it: with what it waited
        for others. 0 before the first token."""
        return self._tokens / self._seconds if self._seconds > 0 else 0.0

    def cancel(self) -> None:
        """Stop within one token, or one piece of prefill."""
        with self._lock:
            self._cancelled = True
            if self._decoder is not None:
                self._decoder.cancel()

    def run(
        self, keys: Sequence[str], start: int, state: State | None
    ) -> Generator[Turn | None, Tokens | None, Finish]:
        """Generate, `state` being the one after the first `start` parts of the path.

        `keys` are the path_keys of the path. Yields after every slice of reading, so that
        others get their turn, and a Turn for every frame of decoding; returns how it ended.

        Raises:
            UsageError: the path is empty, or holds an id outside the vocabulary.
            NonFiniteError: the model produced NaN or infinity; `kept` holds what was good.
        """
        parts = self.request.path
        total = sum(len(part) for part in parts[start:])
        done, slice_seconds = 0, 0.0
        for index in range(start, len(parts)):
            for chunk in self._chunks(parts[index]):
                begun = time.monotonic()
                state = self.model.read(chunk, state)
                self._read_seconds = time.monotonic() - begun
                if not state.is_finite:
                    raise NonFiniteError(_NON_FINITE)
                done += len(chunk)
                self.listener.prefilled(done, total)
                if self._cancelled:
                    return Finish.CANCELLED
                slice_seconds += self._read_seconds
                if slice_seconds >= FRAME_SECONDS:
                    slice_seconds = 0.0
                    yield None
            if len(parts) - 3 <= index < len(parts) - 1 and state is not None:
                self.kept.append(Kept(keys[index], state))
        if state is None:
            raise UsageError("There is nothing to continue: the text is empty.")
        return (yield from self._decode(state))

    def _chunks(self, ids: Sequence[int]) -> Iterator[Sequence[int]]:
        """Pieces of `ids` of about a tenth of a second each, so that a cancel is soon seen."""
        size, at = _FIRST_CHUNK, 0
        while at < len(ids):
            yield ids[at : at + size]
            at += size
            if self._read_seconds < _PREFILL_SECONDS / 2:
                size *= 2
            elif self._read_seconds > _PREFILL_SECONDS * 2:
                size = max(1, size // 2)

    def _decode(self, state: State) -> Generator[Turn | None, Tokens | None, Finish]:
        request, model = self.request, self.model
        last = request.path[-1]
        config = DecoderConfig(
            sampling=request.sampling,
            seed=request.seed,
            stops=request.stops,
            token_bytes=model.tokenizer.token_bytes,
            exempt=model.tokenizer.exempt,
            generated=tuple(last[len(last) - request.generated :]),
            end=model.tokenizer.end,
        )
        decoder = model.backend.decoder(state.data, state.logits, config)
        with self._lock:
            self._decoder = decoder
            if self._cancelled:
                decoder.cancel()
        ids: list[int] = []
        reason = "running"
        begun = time.monotonic()
        while reason == "running" and len(ids) < request.max_tokens:
            tokens = yield Turn(model.backend, decoder, request.max_tokens - len(ids))
            if tokens is None:
                raise UsageError("A turn of an answer came back without tokens.")
            new, reason = tokens
            self._seconds = time.monotonic() - begun
            self._tokens += len(new)
            ids += new
            if new:
                self.listener.grew(new, self.tokens_per_s)
        if reason == "non_finite":
            raise NonFiniteError(_NON_FINITE)
        after = model.state(decoder.state, decoder.logits, state.tokens + len(ids))
        generated = [*config.generated, *ids]
        key = path_keys(model.fingerprint, [*request.path, ids])[-1]
        self.kept.append(Kept(key, after, Decoding.of(generated, config)))
        return _ENDS.get(reason, Finish.LENGTH)
