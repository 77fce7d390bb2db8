"""The answers that are being made, wait for a model, or wait to be saved."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from rwkv_chat.chat import events, prompt
from rwkv_chat.chat.answer import Answer
from rwkv_chat.chat.options import Options
from rwkv_chat.chat.ports import Engine, Model, Request, Store
from rwkv_chat.chat.tree import Finish, Turn
from rwkv_chat.errors import RwkvChatError

__all__ = ["Answers"]


class Answers:
    """At most one answer for each conversation. Thread-safe."""

    def __init__(self, store: Store, engine: Engine, emit: Callable[[events.Event], None]) -> None:
        self._store = store
        self._engine = engine
        self._emit = emit
        self._lock = threading.Lock()
        self._making: dict[str, Answer] = {}
        self._unsaved: dict[str, Turn] = {}

    def busy(self, conversation: str) -> bool:
        """Whether an answer is running or waiting there."""
        with self._lock:
            return conversation in self._making

    def newer(self, conversation: str) -> dict[str, Turn]:
        """Turns, by id, of which more is known here than on disk."""
        with self._lock:
            turns = [turn for turn in self._unsaved.values() if turn.conversation == conversation]
            if conversation in self._making:
                turns.append(self._making[conversation].turn)
        return {turn.id: turn for turn in turns}

    def make(self, turn: Turn, options: Options) -> Answer:
        """Register the answer `turn`; `start` or a later `start_waiting` hands it to the engine."""
        partial = replace(turn, finish=Finish.PARTIAL)
        answer = Answer(partial, options, self._store, self._emit, self._ended)
        with self._lock:
            self._making[turn.conversation] = answer
        return answer

    def start(self, answer: Answer, model: Model) -> None:
        """Hand an answer to the engine; one that was already handed over stays as it is."""
        options = answer.options
        try:
            stored = self._store.load(answer.turn.conversation).path(answer.turn.id)
            template = options.written_as(model.template)
            path = prompt.encode_path(stored, template, model.tokenizer, options.think)
            for before, after in zip(stored[:-1], path, strict=False):
                if not before.tokenizer:
                    self._store.update(after)
            request = Request(
                path=tuple(turn.ids for turn in path),
                generated=len(path[-1].ids) - path[-1].prefix,
                sampling=options.sampling,
                seed=path[-1].seed,
                stops=template.stops,
                max_tokens=options.max_tokens,
                start=options.start,
            )
            turn = replace(path[-1], model=model.name, finish=Finish.PARTIAL)
            answer.start(turn, template, model, self._engine, request)
        except RwkvChatError as error:
            answer.failed(str(error))

    def start_waiting(self, model: Model) -> None:
        """Hand over those that waited for a model."""
        for answer in self._waiting():
            self.start(answer, model)

    def fail_waiting(self, reason: str) -> None:
        """End those that wait for a model which does not come."""
        for answer in self._waiting():
            answer.failed(reason)

    def cancel(self, conversation: str | None = None) -> None:
        """Stop the answer of a conversation, or (None) all of them."""
        with self._lock:
            found = [a for c, a in self._making.items() if conversation in (None, c)]
        for answer in found:
            answer.cancel()

    def save_again(self) -> None:
        """Write the answers that could not be written when they ended."""
        with self._lock:
            unsaved = list(self._unsaved.values())
        for turn in unsaved:
            with suppress(RwkvChatError):
                self._store.update(turn)
                self._unsaved.pop(turn.id, None)

    def _waiting(self) -> list[Answer]:
        with self._lock:
            return [answer for answer in self._making.values() if answer.waiting]

    def _ended(self, answer: Answer, *, saved: bool) -> None:
        with self._lock:
            self._making.pop(answer.turn.conversation, None)
            if not saved:
                self._unsaved[answer.turn.id] = answer.turn
