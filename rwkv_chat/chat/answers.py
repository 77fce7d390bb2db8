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
    """Any number of answers, in branches of one conversation too. Thread-safe."""

    def __init__(self, store: Store, engine: Engine, emit: Callable[[events.Event], None]) -> None:
        self._store = store
        self._engine = engine
        self._emit = emit
        self._lock = threading.Lock()
        self._making: dict[str, Answer] = {}
        self._unsaved: dict[str, Turn] = {}

    def running(self, conversation: str) -> set[str]:
        """The turns there that are running or waiting."""
        with self._lock:
            return {t for t, answer in self._making.items() if _is_in(conversation, answer.turn)}

    def newer(self, conversation: str) -> dict[str, Turn]:
        """Turns, by id, of which more is known here than on disk."""
        with self._lock:
            turns = [*self._unsaved.values(), *(answer.turn for answer in self._making.values())]
        return {turn.id: turn for turn in turns if _is_in(conversation, turn)}

    def make(self, turn: Turn, options: Options) -> Answer:
        """Register the answer `turn`; `start` hands it to the engine."""
        partial = replace(turn, finish=Finish.PARTIAL)
        answer = Answer(partial, options, self._store, self._emit, self._ended)
        with self._lock:
            self._making[turn.id] = answer
        return answer

    def start(self, answer: Answer, model: Model) -> None:
        """Hand an answer to the engine, unless it has ended while it waited."""
        if not answer.waiting:
            return
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

    def cancel(self, conversation: str | None = None, turn: str | None = None) -> None:
        """Stop the answers of a conversation, or (None) of all, or only the one that is `turn`."""
        with self._lock:
            making = list(self._making.values())
        for answer in making:
            if _is_in(conversation, answer.turn) and turn in (None, answer.turn.id):
                answer.cancel()

    def save_again(self) -> None:
        """Write the answers that could not be written when they ended."""
        with self._lock:
            unsaved = list(self._unsaved.values())
        for turn in unsaved:
            with suppress(RwkvChatError):
                self._store.update(turn)
                self._unsaved.pop(turn.id, None)

    def _ended(self, answer: Answer, *, saved: bool) -> None:
        with self._lock:
            self._making.pop(answer.turn.id, None)
            if not saved:
                self._unsaved[answer.turn.id] = answer.turn


def _is_in(conversation: str | None, turn: Turn) -> bool:
    return conversation is None or turn.conversation == conversation
