"""A Session in memory, whose answers are scripted and come from a thread, as the real ones do."""

import itertools
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace

from rwkv_chat.chat import events
from rwkv_chat.chat.options import Options
from rwkv_chat.chat.ports import ModelChoice
from rwkv_chat.chat.tree import Conversation, Finish, Role, Summary, Turn
from rwkv_chat.errors import NotFoundError, UsageError
from tests.fakes import FakeModel

__all__ = ["FakeSession"]


class FakeSession:
    """Answers with `script(user text)`, a list of pieces; `step` is the time between them.

    With `held` an answer waits after its first piece until `release` is set or it is stopped.
    """

    def __init__(
        self,
        script: Callable[[str], list[str]] | None = None,
        step: float = 0.0,
        model: str | None = "fake-0.1b",
    ) -> None:
        self.script = script or (lambda text: ["You said: ", text])
        self.step = step
        self.held = False
        self.release = threading.Event()
        self.default = model or ""
        self.loaded = {model: FakeModel(name=model, template="g1")} if model else {}
        self.snapshots: set[str] = set()
        self.shown: set[str] = set()
        self.choices = [
            ModelChoice("fake-0.1b", "12 layers, bf16, 380 MB", "/models/fake.st"),
            ModelChoice("fake-1.5b", "24 layers, q8, 1.6 GB", "/models/big.st"),
        ]
        self.opened: list[str] = []
        self._ids = itertools.count(1)
        self._store: dict[str, Conversation] = {}
        self._deleted: set[str] = set()
        self._options: dict[str | None, Options] = {None: Options()}
        self._listeners: list[Callable[[events.Event], None]] = []
        self._cancel: dict[str, threading.Event] = {}
        self._lock = threading.RLock()
        self._threads: list[threading.Thread] = []

    # reading

    def subscribe(self, listener: Callable[[events.Event], None]) -> None:
        self._listeners.append(listener)

    def conversations(self) -> list[Summary]:
        with self._lock:
            kept = [c for c in self._store.values() if c.id not in self._deleted]
        kept.sort(key=lambda c: -c.updated)
        return [Summary(c.id, c.title, c.created, c.updated, len(c.turns)) for c in kept]

    def load(self, conversation_id: str) -> Conversation:
        with self._lock:
            if conversation_id not in self._store:
                raise NotFoundError("There is no such conversation.")
            return self._store[conversation_id]

    def options(self, conversation_id: str | None) -> Options:
        return self._options.get(conversation_id, self._options[None])

    def busy(self, conversation_id: str) -> bool:
        return bool(self.running(conversation_id))

    def running(self, conversation_id: str) -> set[str]:
        with self._lock:
            known = self._store[conversation_id].turns
            return set(self._cancel) & set(known)

    def kept(self, conversation: Conversation) -> set[str]:
        return self.snapshots & set(conversation.turns)

    def show(self, conversation_ids: Iterable[str]) -> None:
        self.shown = set(conversation_ids)

    def model_name(self, conversation: Conversation | None) -> str:
        chosen = self._options.get(conversation.id) if conversation is not None else None
        return (chosen.model if chosen is not None else "") or self.default

    def model(self, name: str) -> FakeModel | None:
        return self.loaded.get(name)

    # writing

    def emit(self, event: events.Event) -> None:
        for listener in self._listeners:
            listener(event)

    def add(self, conversation_id: str, role: Role, text: str, **more: object) -> Turn:
        """Append a turn under the head without any answer."""
        with self._lock:
            conversation = self._store[conversation_id]
            parent = more.pop("parent", conversation.head)
            number = next(self._ids)
            turn = Turn(
                f"t{number}",
                conversation_id,
                parent,
                number,
                role,
                text,
                **more,  # type: ignore[arg-type]
            )
            turns = {**conversation.turns, turn.id: turn}
            self._store[conversation_id] = replace(
                conversation, turns=turns, head=turn.id, updated=float(number)
            )
            return turn

    def fill(self, conversation_id: str, turns: list[tuple[Role, str]]) -> None:
        """Append many turns at once."""
        with self._lock:
            conversation = self._store[conversation_id]
            known, head = dict(conversation.turns), conversation.head
            for role, text in turns:
                number = next(self._ids)
                turn = Turn(
                    f"t{number}", conversation_id, head, number, role, text, model="fake-0.1b"
                )
                known[turn.id] = turn
                head = turn.id
            self._store[conversation_id] = replace(conversation, turns=known, head=head)

    def create(self, model: str = "", title: str = "") -> Conversation:
        number = next(self._ids)
        new = Conversation(f"c{number}", title, float(number), float(number), None)
        with self._lock:
            self._store[new.id] = new
        self._options[new.id] = replace(self._options[None], model=model or self.default)
        self.emit(events.ConversationChanged(new.id))
        return new

    def send(
        self, conversation_id: str | None, text: str, *, parent: str | None = None
    ) -> Conversation:
        if not text.strip():
            raise UsageError("There is nothing to send; type a message first.")
        if conversation_id is None:
            conversation_id = self.create().id
        if not self.load(conversation_id).title:
            self.rename(conversation_id, text.splitlines()[0][:60])
        at = parent or self.load(conversation_id).head
        self._refuse_if_running(conversation_id, at)
        user = self.add(conversation_id, Role.USER, text, parent=at)
        self._answer(conversation_id, user)
        return self.load(conversation_id)

    def stop(self, conversation_id: str, turn_id: str | None = None) -> None:
        for turn in self.running(conversation_id):
            if turn_id in (None, turn):
                self._cancel[turn].set()

    def continue_answer(self, conversation_id: str, turn_id: str | None = None) -> None:
        conversation = self.load(conversation_id)
        head = conversation.turn(turn_id or conversation.head or "")
        self._refuse_if_running(conversation_id, head.id)
        if not head.finish.can_continue:
            raise UsageError("The answer came to its own end; send a message to go on.")
        self._run(head, conversation.turn(head.parent or ""))

    def regenerate(self, conversation_id: str, turn_id: str) -> Turn:
        self._refuse_if_running(conversation_id, turn_id)
        turn = self.load(conversation_id).turn(turn_id)
        asked = turn.parent if turn.role is Role.ASSISTANT else turn.id
        return self._answer(conversation_id, self.load(conversation_id).turn(asked or ""))

    def edit(self, conversation_id: str, turn_id: str, text: str) -> Turn:
        self._refuse_if_running(conversation_id, turn_id)
        turn = self.load(conversation_id).turn(turn_id)
        sibling = self.add(conversation_id, turn.role, text, parent=turn.parent)
        if turn.role is Role.USER:
            return self._answer(conversation_id, sibling)
        self.emit(events.ConversationChanged(conversation_id))
        return sibling

    def fork(self, conversation_id: str, turn_id: str) -> Conversation:
        source = self.load(conversation_id)
        new = self.create(title=f"{source.title} (fork)")
        self.fill(new.id, [(turn.role, turn.text) for turn in source.path(turn_id)])
        self.emit(events.ConversationChanged(new.id))
        return self.load(new.id)

    def select(self, conversation_id: str, turn_id: str) -> None:
        with self._lock:
            conversation = self._store[conversation_id]
            leaf = conversation.newest_leaf(turn_id)
            self._store[conversation_id] = replace(conversation, head=leaf.id)
        self.emit(events.ConversationChanged(conversation_id))

    def rename(self, conversation_id: str, title: str) -> None:
        with self._lock:
            self._store[conversation_id] = replace(self._store[conversation_id], title=title)
        self.emit(events.ConversationChanged(conversation_id))

    def delete(self, conversation_id: str) -> None:
        self.stop(conversation_id)
        self._deleted.add(conversation_id)
        self.emit(events.ConversationChanged(conversation_id))

    def undelete(self, conversation_id: str) -> None:
        self._deleted.discard(conversation_id)
        self.emit(events.ConversationChanged(conversation_id))

    def label(self, conversation_id: str, turn_id: str, text: str) -> None:
        turn = self.load(conversation_id).turn(turn_id)
        self._put(replace(turn, label=text))
        self.emit(events.ConversationChanged(conversation_id))

    def configure(self, conversation_id: str | None, **choices: object) -> Options:
        options = replace(self.options(conversation_id), **choices)  # type: ignore[arg-type]
        self._options[conversation_id] = options
        return options

    def models(self) -> list[ModelChoice]:
        return self.choices

    def open_model(self, name: str, conversation_id: str | None = None) -> None:
        self.opened.append(name)
        self.default = name
        if conversation_id is not None:
            self.configure(conversation_id, model=name)
        self.emit(events.ModelLoading(name, "reading tensors", 0.5))
        self.finish_loading(name)

    def finish_loading(self, name: str, state_bytes: int = 2_400_000) -> None:
        self.loaded[name] = FakeModel(name=name, template="g1", state_bytes=state_bytes)
        self.emit(events.ModelReady(name, "fake", state_bytes))

    def close(self) -> None:
        for cancel in list(self._cancel.values()):
            cancel.set()
        self.release.set()
        for thread in self._threads:
            thread.join(5)

    # inside

    def _put(self, turn: Turn) -> None:
        with self._lock:
            conversation = self._store[turn.conversation]
            turns = {**conversation.turns, turn.id: turn}
            self._store[turn.conversation] = replace(conversation, turns=turns)

    def _refuse_if_running(self, conversation_id: str, turn_id: str | None) -> None:
        if turn_id in self.running(conversation_id):
            raise UsageError("An answer is still running here; stop it first.")

    def _answer(self, conversation_id: str, asked: Turn) -> Turn:
        turn = self.add(
            conversation_id,
            Role.ASSISTANT,
            "",
            parent=asked.id,
            finish=Finish.PARTIAL,
            model=self.model_name(self.load(conversation_id)),
        )
        self._run(turn, asked)
        return turn

    def _run(self, turn: Turn, asked: Turn) -> None:
        cancel = threading.Event()
        self._cancel[turn.id] = cancel
        self.emit(events.ConversationChanged(turn.conversation))
        thread = threading.Thread(target=self._stream, args=(turn, asked.text, cancel), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _stream(self, turn: Turn, asked: str, cancel: threading.Event) -> None:
        self.emit(events.Prefilling(turn.conversation, turn.id, 120, 400))
        finish = Finish.STOP
        pieces = self.script(asked)
        done = len(turn.ids)
        for number in range(done, len(pieces)):
            if cancel.is_set() or (self.step and cancel.wait(self.step)):
                finish = Finish.CANCELLED
                break
            turn = replace(
                turn, text=turn.text + pieces[number], ids=(*turn.ids, number), tokens_per_s=41.7
            )
            self._put(turn)
            self.emit(events.AnswerGrew(turn.conversation, turn.id, turn.text, len(turn.ids), 41.7))
            while self.held and number == done and not cancel.is_set():
                if self.release.wait(0.01):
                    break
        turn = replace(turn, finish=finish)
        self._put(turn)
        with self._lock:
            self._cancel.pop(turn.id, None)
        self.emit(events.AnswerFinished(turn.conversation, turn))
