"""What is going on: running answers, models that are opened, and the status line made from both."""

from pathlib import PurePath

from rwkv_chat.chat import events
from rwkv_chat.chat.ports import Model
from rwkv_chat.chat.tree import Conversation, Role, Turn
from rwkv_chat.text.display import one_line
from rwkv_chat.tui.entry import Live
from rwkv_chat.tui.widgets.status import Status

__all__ = ["Progress", "model_label"]


class Progress:
    """Takes over events; knows nothing of widgets."""

    def __init__(self) -> None:
        self.live: dict[str, Live] = {}
        self.failures: dict[str, str] = {}
        self._loading: dict[str, str] = {}
        self._failed: set[str] = set()
        self._tokens: dict[str, int] = {}
        self._speeds: dict[str, float] = {}
        self._conversations: dict[str, str] = {}
        self._counted: tuple[Conversation | None, Turn | None, int] = (None, None, 0)

    @property
    def running(self) -> set[str]:
        """The conversations in which an answer runs."""
        return set(self._conversations.values())

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
                self._loading[name] = f"{model_label(name)}: {one_line(step, 60)}{percent}"
                self._failed.discard(name)
            case events.ModelReady(name):
                self._loading.pop(name, None)
            case events.ModelFailed(name, _):
                self._loading.pop(name, None)
                self._failed.add(name)
            case _:
                pass

    def _ended(self, turn: str) -> None:
        self.live.pop(turn, None)
        self._tokens.pop(turn, None)
        self._conversations.pop(turn, None)

    def look_at(self, conversation: Conversation, running: set[str]) -> None:
        """Make the running answers of this conversation fit what the session says of them."""
        mine = [turn for turn, where in self._conversations.items() if where == conversation.id]
        for turn_id in mine:
            if turn_id not in running:
                self._ended(turn_id)
        for turn_id in running & set(conversation.turns):
            before = self.live.get(turn_id, Live(doing="waiting"))
            self._conversations[turn_id] = conversation.id
            text = max(before.text, conversation.turns[turn_id].text, key=len)
            self.live[turn_id] = Live(text, before.doing)
            self.failures.pop(turn_id, None)

    def _head(self, conversation: Conversation | None) -> tuple[Turn | None, int]:
        """The turn at the end of the path, and the tokens on the path."""
        if conversation is not self._counted[0]:
            path = conversation.path() if conversation is not None else []
            tokens = sum(len(turn.ids) for turn in path)
            self._counted = (conversation, path[-1] if path else None, tokens)
        return self._counted[1:]

    def status(
        self,
        conversation: Conversation | None,
        name: str,
        model: Model | None,
        *,
        busy: bool,
        kept: bool,
        continue_key: str,
        hint: str,
    ) -> Status:
        """The status line for a conversation.

        Args:
            conversation: as its pane shows it.
            name: that under which its model is opened; "" for none.
            model: that model, while it is open.
            busy: whether an answer is running at the head.
            kept: whether there is a snapshot of the state at the head.
            continue_key: the key that continues an answer.
            hint: stands at the end, where there is room.
        """
        head, tokens = self._head(conversation)
        doing, mood, speed = "", "", head.tokens_per_s if head is not None else 0.0
        if busy and head is not None:
            live = self.live.get(head.id, Live(doing="waiting"))
            speed = self._speeds.get(head.id, 0.0)
            if head.id in self._tokens:
                tokens += head.prefix + self._tokens[head.id] - len(head.ids)
            doing, mood = live.doing, "busy"
            if live.doing == "waiting" and model is None:
                doing = "waiting for the model"
        elif head is not None and head.role is Role.ASSISTANT and head.finish.can_continue:
            doing, mood = f"stopped — {continue_key} continues", "warn"
        loading = self._loading.get(name, "")
        if not busy and not loading:
            loading = next(iter(self._loading.values()), "")
        if loading:
            doing, mood = f"opening {loading}", "busy"
        elif name in self._failed and model is None and not busy:
            doing, mood = f"{model_label(name)} could not be opened", "bad"
        elif not doing:
            doing = "ready" if name else "no model yet"
        if model is None:
            return Status(doing, mood, model_label(name), "", speed, tokens, 0, kept, hint)
        label, size = one_line(model.name, 40), model.state_bytes
        return Status(doing, mood, label, model.weights, speed, tokens, size, kept, hint)


def model_label(name: str) -> str:
    """What people call the model that is opened under a name or a path."""
    return one_line(PurePath(name).stem if "/" in name else name, 40)
