"""One answer on its way: ids from the engine become text on disk and events on screen."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from rwkv_chat.chat import events
from rwkv_chat.chat.options import Options
from rwkv_chat.chat.ports import Engine, Job, Model, Request, Store
from rwkv_chat.chat.prompt import answer_bytes
from rwkv_chat.chat.templates import Template
from rwkv_chat.chat.tree import Finish, Turn
from rwkv_chat.errors import ConflictError, RwkvChatError

__all__ = ["Answer", "Ended"]

_CHECKPOINT_SECONDS = 1.0


class Ended(Protocol):
    """Told once when an answer has ended, and whether it is on disk."""

    def __call__(self, answer: "Answer", *, saved: bool) -> None: ...


class Answer:
    """A Listener that keeps the turn, its copy on disk and the screen in step.

    `turn` is the answer so far; it is replaced, never changed. `options` are the choices it is made
    with. `on_end` is called once, before the last event.
    """

    def __init__(
        self,
        turn: Turn,
        options: Options,
        store: Store,
        emit: Callable[[events.Event], None],
        on_end: Ended,
    ) -> None:
        self.turn = turn
        self.options = options
        self._store = store
        self._emit = emit
        self._on_end = on_end
        self._lock = threading.Lock()
        self._job: Job | None = None
        self._ended = False
        self._cancelled = False
        self._warned = False
        self._saved_at = time.monotonic()

    @property
    def waiting(self) -> bool:
        """Whether no engine works on it yet."""
        return self._job is None and not self._ended

    def start(
        self, turn: Turn, template: Template, model: Model, engine: Engine, request: Request
    ) -> None:
        """Hand it to the engine; `turn` carries the ids that were read before."""
        with self._lock:
            if self._cancelled or self._ended or self._job is not None:
                return
            self.turn = turn
            self._template = template
            self._tokenizer = model.tokenizer
            self._known = len(answer_bytes(turn, model.tokenizer)) if request.generated else 0
            self._store.update(turn)
            self._job = engine.generate(model, request, self)

    def cancel(self) -> None:
        """End it within one token, or at once when it has not begun. Safe to call again."""
        with self._lock:
            self._cancelled = True
            job = self._job
        if job is not None:
            job.cancel()
        else:
            self.finished(Finish.CANCELLED, 0.0)

    def prefilled(self, done: int, total: int) -> None:
        """Told by the engine."""
        self._emit(events.Prefilling(self.turn.conversation, self.turn.id, done, total))

    def grew(self, ids: Sequence[int], tokens_per_s: float) -> None:
        """Told by the engine."""
        turn = replace(self.turn, ids=(*self.turn.ids, *ids), tokens_per_s=tokens_per_s)
        self.turn = replace(turn, text=self._text(turn, complete=False))
        self._emit(
            events.AnswerGrew(
                self.turn.conversation,
                self.turn.id,
                self.turn.text,
                len(self.turn.ids) - self.turn.prefix,
                tokens_per_s,
            )
        )
        now = time.monotonic()
        if now - self._saved_at >= _CHECKPOINT_SECONDS:
            self._saved_at = now
            self._checkpoint()

    def finished(self, finish: Finish, tokens_per_s: float) -> None:
        """Told by the engine, or by `cancel` when there was none."""
        if not self._end(finish, tokens_per_s):
            return
        self._emit(events.AnswerFinished(self.turn.conversation, self.turn))

    def failed(self, reason: str) -> None:
        """Told by the engine, or by the session when it could not start."""
        if not self._end(Finish.ERROR, self.turn.tokens_per_s):
            return
        self._emit(events.AnswerFailed(self.turn.conversation, self.turn.id, reason))

    def _end(self, finish: Finish, tokens_per_s: float) -> bool:
        with self._lock:
            if self._ended:
                return False
            self._ended = True
        turn = replace(self.turn, finish=finish, tokens_per_s=tokens_per_s)
        if self._job is not None:
            complete = finish in (Finish.STOP, Finish.END)
            turn = replace(turn, text=self._text(turn, complete=complete))
        self.turn = turn
        try:
            self._store.update(turn)
        except RwkvChatError as error:
            self._on_end(self, saved=False)
            self._emit(
                events.AnswerFailed(
                    turn.conversation, turn.id, f"{error} The answer is kept here and saved later."
                )
            )
            return False
        self._on_end(self, saved=True)
        return True

    def _checkpoint(self) -> None:
        """Save what there is; a failure is told once, and the answer goes on."""
        try:
            self._store.update(self.turn)
        except ConflictError as error:
            self.cancel()
            self._emit(events.Notice(str(error)))
        except RwkvChatError as error:
            if not self._warned:
                self._warned = True
                self._emit(events.Notice(f"{error} The answer goes on and is saved later."))

    def _text(self, turn: Turn, *, complete: bool) -> str:
        raw = answer_bytes(turn, self._tokenizer)
        return self._template.display(raw, complete, self._known)
