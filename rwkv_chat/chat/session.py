"""The use cases of the application: everything a person can do with conversations and a model.

A Session ties a store and an engine together. Its methods return at once, after what they change
is on disk; answers grow on the engine's thread and are told as events. Every conversation is
answered by the model that it remembers: the one that was chosen when it began, or since.
"""

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import takewhile

from rwkv_chat.chat import events, prompt
from rwkv_chat.chat.answers import Answers
from rwkv_chat.chat.models import Models, Waiting
from rwkv_chat.chat.options import Options
from rwkv_chat.chat.ports import Engine, Model, ModelChoice, Store
from rwkv_chat.chat.tree import Conversation, Finish, Role, Summary, Turn
from rwkv_chat.errors import ConflictError, RwkvChatError, StoreError, UsageError
from rwkv_chat.text.display import one_line, scrub

__all__ = ["Session"]

_TITLE_LENGTH = 60


class Session:
    """Conversations, the models that answer in them, and the answers that are being made."""

    def __init__(self, store: Store, engine: Engine, defaults: Options | None = None) -> None:
        self._store = store
        self._engine = engine
        self._defaults = defaults or Options()
        self._listeners: list[Callable[[events.Event], None]] = []
        self._unheard: list[str] = []
        self._answers = Answers(store, engine, self._emit)
        self._seen: dict[str, int] = {}
        self._models = Models(engine, self._emit, self._used)
        self._default = ""
        self._shown: frozenset[str] = frozenset()

    # -- reading -------------------------------------------------------------------------------

    def subscribe(self, listener: Callable[[events.Event], None]) -> None:
        """Call `listener` with every event, from whatever thread it happens on.

        The first listener is also told what was noticed before it came.
        """
        self._listeners.append(listener)
        while self._unheard:
            listener(events.Notice(self._unheard.pop(0)))

    def conversations(self) -> list[Summary]:
        """All conversations, the last changed first."""
        return self._store.conversations()

    def load(self, conversation_id: str) -> Conversation:
        """The whole tree of a conversation, a running answer with its text so far.

        What is loaded counts as seen: later changes of another window are not built upon unseen.
        """
        conversation = self._store.load(conversation_id)
        turns = conversation.turns
        self._seen[conversation_id] = max((turn.seq for turn in turns.values()), default=0)
        newer = self._answers.newer(conversation_id)
        known = {key: turn for key, turn in newer.items() if key in turns}
        return replace(conversation, turns={**turns, **known})

    def find(self, text: str) -> Turn:
        """The turn that a label, or the beginning or end of an id, names.

        Raises:
            NotFoundError: there is none, or more than one.
        """
        return self._store.find(text)

    def options(self, conversation_id: str | None) -> Options:
        """The choices of a conversation, or (None) those of new ones."""
        if conversation_id is None:
            return self._defaults
        return Options.from_json(self._store.load(conversation_id).settings, self._defaults)

    def busy(self, conversation_id: str) -> bool:
        """Whether an answer is running or waiting there."""
        return bool(self._answers.running(conversation_id))

    def running(self, conversation_id: str) -> set[str]:
        """The answers there, by turn id, that are running or waiting."""
        return self._answers.running(conversation_id)

    def kept(self, conversation: Conversation) -> set[str]:
        """The turns on the path to the head that have a snapshot of the conversation's model."""
        model = self._models.get(self.model_name(conversation))
        if model is None:
            return set()
        tokenizer = model.tokenizer.fingerprint
        start = Options.from_json(conversation.settings, self._defaults).start
        known = list(takewhile(lambda turn: turn.tokenizer == tokenizer, conversation.path()))
        flags = self._engine.kept(model, [turn.ids for turn in known], start)
        return {turn.id for turn, flag in zip(known, flags, strict=True) if flag}

    # -- models --------------------------------------------------------------------------------

    def model_name(self, conversation: Conversation | None) -> str:
        """The name under which the model of a conversation, or (None) of new ones, is opened."""
        options = self._defaults
        if conversation is not None:
            options = Options.from_json(conversation.settings, self._defaults)
        return options.model or self._default

    def model(self, name: str) -> Model | None:
        """The model that was opened under this name, while it is open."""
        return self._models.get(name)

    def models(self) -> list[ModelChoice]:
        """The models that can be opened."""
        return self._engine.available()

    def prefer(self, name: str) -> None:
        """Let new conversations be answered by this model. It is opened when it is needed."""
        self._default = name

    def warm(self, name: str) -> None:
        """Open a model in the background, so that it is ready for the next answer."""
        self._models.want(name, Waiting(lambda model: None, lambda reason: None))

    def open_model(self, name: str, conversation_id: str | None = None) -> None:
        """Load a model in the background; events tell how it goes.

        From now on it is that of new conversations, and once it is open also that of
        `conversation_id`. If it cannot be opened, all remains as it was.
        """
        before, self._default = self._default, name

        def ready(model: Model) -> None:
            if conversation_id is not None:
                try:
                    self.configure(conversation_id, model=name)
                except RwkvChatError as error:
                    self.notice(str(error))

        def failed(reason: str) -> None:
            if before and self._default == name:
                self._default = before

        model = self._models.get(name)
        self._models.want(name, Waiting(ready, failed))
        if model is not None:
            self._models.announce(name, model)

    def show(self, conversation_ids: Collection[str]) -> None:
        """These are on screen: their models stay open when another one is."""
        self._shown = frozenset(conversation_ids)

    def _used(self) -> set[str]:
        used = {self._default}
        for conversation_id in self._shown:
            with suppress(StoreError):
                used.add(self.model_name(self._store.load(conversation_id)))
        return used

    # -- conversations -------------------------------------------------------------------------

    def create(self, model: str = "") -> Conversation:
        """A new empty conversation with the choices of new ones, and their model or another."""
        options = replace(self._defaults, model=model or self._default)
        conversation = self._store.create("", options.to_json())
        self._seen[conversation.id] = 0
        self._changed(conversation.id)
        return conversation

    def configure(self, conversation_id: str | None, **choices: object) -> Options:
        """Change choices of a conversation, or (None) of new ones; the result is returned.

        Raises:
            UsageError: a value that cannot be used, with its name.
        """
        options = replace(self.options(conversation_id), **choices)  # type: ignore[arg-type]
        if conversation_id is None:
            self._defaults = options
        else:
            self._store.configure(conversation_id, options.to_json())
            self._changed(conversation_id)
        return options

    def rename(self, conversation_id: str, title: str) -> None:
        """Give a conversation another title."""
        self._store.rename(conversation_id, one_line(scrub(title), _TITLE_LENGTH))
        self._changed(conversation_id)

    def delete(self, conversation_id: str) -> None:
        """Hide a conversation; `undelete` brings it back until this window closes."""
        self.stop(conversation_id)
        self._store.delete(conversation_id)
        self._changed(conversation_id)

    def undelete(self, conversation_id: str) -> None:
        """Bring a deleted conversation back."""
        self._store.restore(conversation_id)
        self._changed(conversation_id)

    def label(self, conversation_id: str, turn_id: str, text: str) -> None:
        """Name a turn, so that it is found again; "" takes the name away."""
        self._store.set_label(turn_id, one_line(scrub(text), _TITLE_LENGTH))
        self._changed(conversation_id)

    def select(self, conversation_id: str, turn_id: str) -> None:
        """Show the newest leaf below a turn."""
        leaf = self._store.load(conversation_id).newest_leaf(turn_id)
        self._store.set_head(conversation_id, leaf.id)
        self._changed(conversation_id)

    def fork(self, conversation_id: str, turn_id: str) -> Conversation:
        """A new conversation that begins with the path to a turn; its snapshots are shared."""
        source = self._store.load(conversation_id)
        title = one_line(f"{source.title} (fork)", _TITLE_LENGTH)
        new = self._store.fork(conversation_id, turn_id, title)
        self._changed(new)
        return self.load(new)

    # -- talking -------------------------------------------------------------------------------

    def send(
        self,
        conversation_id: str | None,
        text: str,
        *,
        parent: str | None = None,
        options: Options | None = None,
    ) -> Conversation:
        """Commit a user turn under `parent` (default: the head), and start the answer.

        Without a conversation a new one is made, titled with the text. `options` replace the
        choices of the conversation for this answer. While its model is being opened it waits.

        Raises:
            UsageError: the text is empty, or the answer at the parent is still running.
            ConflictError: another window has changed the conversation since it was loaded.
        """
        text = _said(text)
        if conversation_id is None:
            conversation_id = self.create().id
        conversation = self._store.load(conversation_id)
        chosen = options or Options.from_json(conversation.settings, self._defaults)
        at = parent or conversation.head
        self._refuse_if_running(conversation_id, at)
        model = self._models.get(chosen.model or self._default)
        labels = chosen.written_as(model.template if model else "chat").labels
        if at is None and chosen.system and labels:
            at = self._append(conversation_id, None, Role.SYSTEM, chosen.system).id
        user = self._append(conversation_id, at, Role.USER if labels else Role.TEXT, text)
        if not conversation.title:
            self._store.rename(conversation_id, one_line(text, _TITLE_LENGTH))
        self._answer(user, 0, chosen)
        return self.load(conversation_id)

    def stop(self, conversation_id: str, turn_id: str | None = None) -> None:
        """End the running answers, or one; their text and state are kept and can be continued."""
        self._answers.cancel(conversation_id, turn_id)

    def continue_answer(self, conversation_id: str, turn_id: str | None = None) -> None:
        """Go on with an answer (default: the one at the head), as if it had never stopped.

        Raises:
            UsageError: the turn is not an answer, it runs, or it came to its own end.
        """
        self._answers.save_again()
        conversation = self._store.load(conversation_id)
        path = conversation.path(turn_id)
        self._refuse_if_running(conversation_id, path[-1].id if path else None)
        if not path or path[-1].role is not Role.ASSISTANT:
            raise UsageError("There is no answer to continue here.")
        if not path[-1].finish.can_continue:
            raise UsageError("The answer came to its own end; send a message to go on.")
        self._run(path[-1], Options.from_json(conversation.settings, self._defaults))

    def regenerate(self, conversation_id: str, turn_id: str) -> Turn:
        """Make another answer beside the given one (or below the given user turn); returns it."""
        self._refuse_if_running(conversation_id, turn_id)
        conversation = self._store.load(conversation_id)
        turn = conversation.turn(turn_id)
        asked = turn.parent if turn.role is Role.ASSISTANT else turn.id
        if asked is None:
            raise UsageError("There is no message before this answer.")
        options = Options.from_json(conversation.settings, self._defaults)
        return self._answer(conversation.turn(asked), len(conversation.children(asked)), options)

    def edit(self, conversation_id: str, turn_id: str, text: str) -> Turn:
        """Make a sibling of a turn with another text; the original stays in the tree.

        After a user turn an answer starts. Any other turn is replaced as written.

        Returns:
            The end of the new branch: the answer, or the sibling.

        Raises:
            UsageError: the text is empty, or the turn is an answer that is still running.
        """
        text = _said(text)
        self._refuse_if_running(conversation_id, turn_id)
        conversation = self._store.load(conversation_id)
        turn = conversation.turn(turn_id)
        sibling = self._append(conversation_id, turn.parent, turn.role, text)
        if turn.role in (Role.USER, Role.TEXT):
            options = Options.from_json(conversation.settings, self._defaults)
            return self._answer(sibling, 0, options)
        self._changed(conversation_id)
        return sibling

    def notice(self, text: str) -> None:
        """Tell the person something, as soon as somebody listens."""
        if self._listeners:
            self._emit(events.Notice(text))
        else:
            self._unheard.append(text)

    def close(self) -> None:
        """Stop every answer and wait until all of it is on disk."""
        self._answers.cancel()
        self._engine.close()
        self._answers.save_again()

    # -- inside --------------------------------------------------------------------------------

    def _append(self, conversation: str, parent: str | None, role: Role, text: str) -> Turn:
        turn = Turn(id="", conversation=conversation, parent=parent, seq=0, role=role, text=text)
        return self._add(turn)

    def _add(self, turn: Turn) -> Turn:
        """Append a turn, unless another window was faster."""
        self._answers.save_again()
        seen = self._seen.get(turn.conversation)
        try:
            added = self._store.append(replace(turn, seq=0 if seen is None else seen + 1))
        except ConflictError:
            self._changed(turn.conversation)
            raise
        self._seen[turn.conversation] = added.seq
        return added

    def _answer(self, asked: Turn, ordinal: int, options: Options) -> Turn:
        """Add an empty answer below `asked`, which has `ordinal` of them already, and start it."""
        turn = Turn(
            id="",
            conversation=asked.conversation,
            parent=asked.id,
            seq=0,
            role=Role.ASSISTANT,
            text="",
            finish=Finish.PARTIAL,
            seed=prompt.derive_seed(options.sampling.seed, ordinal),
        )
        added = self._add(turn)
        self._run(added, options)
        return added

    def _run(self, turn: Turn, options: Options) -> None:
        name = options.model or self._default
        if name and not options.model:
            self.configure(turn.conversation, model=name)
        answer = self._answers.make(turn, options)
        self._changed(turn.conversation)
        if name:
            start = partial(self._answers.start, answer)
            self._models.want(name, Waiting(start, answer.failed))
        else:
            answer.failed("No model is open; choose one.")

    def _refuse_if_running(self, conversation_id: str, turn_id: str | None) -> None:
        if turn_id in self._answers.running(conversation_id):
            raise UsageError("An answer is still running here; stop it first.")

    def _changed(self, conversation_id: str) -> None:
        self._emit(events.ConversationChanged(conversation_id))

    def _emit(self, event: events.Event) -> None:
        for listener in self._listeners:
            listener(event)


def _said(text: str) -> str:
    text = scrub(text)
    if not text.strip():
        raise UsageError("There is nothing to send; type a message first.")
    return text
