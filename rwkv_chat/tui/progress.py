"""What is going on: running answers, the model, and the status line made from both."""

from rwkv_chat.chat import events
from rwkv_chat.chat.tree import Conversation, Role, Turn
from rwkv_chat.text.display import one_line
from rwkv_chat.tui.entry import Live
from rwkv_chat.tui.widgets.status import Status

__all__ = ["Progress"]


class Progress:
    """Takes over events; knows nothing of widgets."""

    def __init__(self) -> None:
        self.live: dict[str, Live] = {}
        self.failures: dict[str, str] = {}
        self.model = ""
        self._loading = ""
        self._failed = ""
        self._state_bytes = 0
        self._tokens: dict[str, int] = {}
        self._speeds: dict[str, float] = {}
        self._conversations: dict[str, str] = {}
        self._counted: tuple[Conversation | None, Turn | None, int] = (None, None, 0)

    @property
    def running(self) -> set[str]:
        """The conversations in which an answer runs."""
        return {self._conversations[turn] for turn in self.live if turn in self._conversations}

    def take(self, event: events.Event) -> None:
        """Take over one event."""
        match event:
            case events.Prefilling(conversation, turn, done, total):
                before = self.live.get(turn, Live())
                self._conversations[turn] = conversation
                self.live[turn] = Live(before.text, f"reading {done:,}/{total:,}")
            case events.AnswerGrew(conversation, turn, text, tokens, speed):
                self._conversations[turn] = conversation
                self.live[turn] = Live(text, "answering")
                self._tokens[turn] = tokens
                self._speeds[turn] = speed
                self.failures.pop(turn, None)
            case events.AnswerFinished(_, turn):
                self._ended(turn.id)
                self.failures.pop(turn.id, None)
            case events.AnswerFailed(_, turn_id, reason):
                self._ended(turn_id)
                self.failures[turn_id] = reason
            case events.ModelLoading(name, step, fraction):
                percent = f" {fraction:.0%}" if fraction > 0 else ""
                self._loading = f"{one_line(name, 40)}: {one_line(step, 60)}{percent}"
                self._failed = ""
            case events.ModelReady(name, _, state_bytes):
                self.model = one_line(name, 40)
                self._state_bytes = state_bytes
                self._loading = self._failed = ""
            case events.ModelFailed(name, _):
                self._loading = ""
                self._failed = "" if self.model else f"{one_line(name, 40)} could not be opened"
            case _:
                pass

    def _ended(self, turn: str) -> None:
        self.live.pop(turn, None)
        self._tokens.pop(turn, None)
        self._conversations.pop(turn, None)

    def look_at(self, conversation: Conversation, busy: bool) -> None:
        """Make the running answer of this conversation fit what the session says of it."""
        head = conversation.turns.get(conversation.head or "")
        mine = [turn for turn, where in self._conversations.items() if where == conversation.id]
        for turn in mine:
            if not busy or head is None or turn != head.id:
                self._ended(turn)
        if busy and head is not None and head.role is Role.ASSISTANT:
            before = self.live.get(head.id, Live(doing="waiting"))
            self._conversations[head.id] = conversation.id
            text = max(before.text, head.text, key=len)
            self.live[head.id] = Live(text, before.doing)
            self.failures.pop(head.id, None)

    def _head(self, conversation: Conversation | None) -> tuple[Turn | None, int]:
        """The turn at the end of the path, and the tokens on the path."""
        if conversation is not self._counted[0]:
            path = conversation.path() if conversation is not None else []
            tokens = sum(len(turn.ids) for turn in path)
            self._counted = (conversation, path[-1] if path else None, tokens)
        return self._counted[1:]

    def status(
        self, conversation: Conversation | None, busy: bool, continue_key: str, hint: str
    ) -> Status:
        """The status line for a conversation."""
        head, tokens = self._head(conversation)
        doing, mood, speed = "", "", head.tokens_per_s if head is not None else 0.0
        if busy and head is not None:
            live = self.live.get(head.id, Live(doing="waiting"))
            speed = self._speeds.get(head.id, 0.0)
            if head.id in self._tokens:
                tokens += head.prefix + self._tokens[head.id] - len(head.ids)
            doing, mood = live.doing, "busy"
            if live.doing == "waiting" and not self.model:
                doing = "waiting for the model"
        elif head is not None and head.role is Role.ASSISTANT and head.finish.can_continue:
            doing, mood = f"stopped — {continue_key} continues", "warn"
        if self._loading:
            doing, mood = f"opening {self._loading}", "busy"
        elif self._failed and not busy:
            doing, mood = self._failed, "bad"
        elif not doing:
            doing = "ready" if self.model else "no model yet"
        return Status(doing, mood, self.model, speed, tokens, self._state_bytes, hint)
