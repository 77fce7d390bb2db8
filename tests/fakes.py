"""Stand-ins for the slow parts: a store in memory, an engine that says what it is told."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rwkv_chat.chat.ports import Listener, ModelChoice, Progress, Request
from rwkv_chat.chat.tree import Conversation, Finish, Summary, Turn
from rwkv_chat.errors import CheckpointError, ConflictError, NotFoundError, StoreFullError


class ByteTokenizer:
    """Id = byte."""

    name = "bytes"
    fingerprint = "b" * 64

    def encode(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(ids)


@dataclass(frozen=True)
class FakeModel:
    """A model in name only."""

    name: str = "fake"
    description: str = "a fake model"
    template: str = "chat"
    state_bytes: int = 1000
    weights: str = "f32"
    memory_limit: str = ""
    tokenizer: ByteTokenizer = field(default_factory=ByteTokenizer)


class FakeJob:
    def __init__(self, request: Request, listener: Listener, model: FakeModel) -> None:
        self.request = request
        self.model = model
        self.listener = listener
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        self.listener.finished(Finish.CANCELLED, 1.0)

    def say(self, text: str) -> None:
        self.listener.grew(list(text.encode()), 10.0)

    def finish(self, text: str = "", finish: Finish = Finish.STOP) -> None:
        if text:
            self.say(text)
        self.listener.finished(finish, 10.0)


class FakeEngine:
    """Keeps the jobs for the test to play; opens what is in `shelf`, once `gate` is set."""

    def __init__(self, *shelf: FakeModel) -> None:
        self.shelf = {model.name: model for model in shelf or (FakeModel(),)}
        self.opened: list[str] = []
        self.jobs: list[FakeJob] = []
        self.closed = False
        self.gate = threading.Event()
        self.gate.set()

    def available(self) -> list[ModelChoice]:
        return [ModelChoice("fake", "a fake model", "/fake")]

    def open(self, name: str, progress: Progress) -> FakeModel:
        progress("reading", 0.5)
        self.gate.wait(5)
        self.opened.append(name)
        if name not in self.shelf:
            raise CheckpointError(f"There is no model {name}.")
        return self.shelf[name]

    def generate(self, model: FakeModel, request: Request, listener: Listener) -> FakeJob:
        self.jobs.append(FakeJob(request, listener, model))
        return self.jobs[-1]

    def kept(self, model: FakeModel, path: Sequence[Sequence[int]], start: str) -> list[bool]:
        return [True] * len(path)

    def close(self) -> None:
        self.closed = True


class MemoryStore:
    """chat.ports.Store without a disk."""

    def __init__(self) -> None:
        self._conversations: dict[str, Conversation] = {}
        self._deleted: set[str] = set()
        self._count = 0
        self.failing = False

    def _next(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}"

    def conversations(self) -> list[Summary]:
        found = [c for c in self._conversations.values() if c.id not in self._deleted]
        return [
            Summary(c.id, c.title, c.created, c.updated, len(c.turns))
            for c in sorted(found, key=lambda c: -c.updated)
        ]

    def create(self, title: str, settings: Mapping[str, object]) -> Conversation:
        now = time.time()
        new = Conversation(self._next("c"), title, now, now, None, {}, dict(settings))
        self._conversations[new.id] = new
        return new

    def load(self, conversation: str) -> Conversation:
        try:
            return self._conversations[conversation]
        except KeyError:
            raise NotFoundError(f"There is no conversation {conversation}.") from None

    def _change(self, conversation: str, **changes: object) -> None:
        old = self.load(conversation)
        self._conversations[conversation] = replace(old, updated=time.time(), **changes)

    def rename(self, conversation: str, title: str) -> None:
        self._change(conversation, title=title)

    def configure(self, conversation: str, settings: Mapping[str, object]) -> None:
        self._change(conversation, settings=dict(settings))

    def delete(self, conversation: str) -> None:
        self._deleted.add(conversation)

    def restore(self, conversation: str) -> None:
        self._deleted.discard(conversation)

    def append(self, turn: Turn, *, head: bool = True) -> Turn:
        conversation = self.load(turn.conversation)
        if self.failing:
            raise StoreFullError("The disk is full.")
        if turn.seq not in (0, len(conversation.turns) + 1):
            raise ConflictError("Another window was faster.")
        new = replace(
            turn,
            id=turn.id or self._next("t"),
            seq=len(conversation.turns) + 1,
            created=time.time(),
        )
        changes: dict[str, object] = {"turns": {**conversation.turns, new.id: new}}
        if head:
            changes["head"] = new.id
        self._change(turn.conversation, **changes)
        return new

    def fork(self, source: str, turn: str, title: str) -> str:
        path = self.load(source).path(turn)
        new = self.create(title, self.load(source).settings).id
        parent = None
        for step in path:
            copy = replace(step, id="", conversation=new, parent=parent, seq=0, label="")
            parent = self.append(copy).id
        return new

    def update(self, turn: Turn) -> None:
        if self.failing:
            raise StoreFullError("The disk is full.")
        conversation = self.load(turn.conversation)
        self._change(turn.conversation, turns={**conversation.turns, turn.id: turn})

    def set_head(self, conversation: str, turn: str | None) -> None:
        self._change(conversation, head=turn)

    def find(self, text: str) -> Turn:
        for conversation in self._conversations.values():
            for turn in conversation.turns.values():
                if text in (turn.id, turn.label):
                    return turn
        raise NotFoundError(f"No turn has the label or the id {text!r}.")

    def set_label(self, turn: str, label: str) -> None:
        for conversation in list(self._conversations.values()):
            if turn in conversation.turns:
                self.update(replace(conversation.turns[turn], label=label))
