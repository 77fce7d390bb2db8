"""What happens, told to whoever shows it. Events are posted from any thread."""

from dataclasses import dataclass

from rwkv_chat.chat.tree import Turn

__all__ = [
    "AnswerFailed",
    "AnswerFinished",
    "AnswerGrew",
    "ConversationChanged",
    "Event",
    "ModelFailed",
    "ModelLoading",
    "ModelReady",
    "Notice",
    "Prefilling",
]


@dataclass(frozen=True, slots=True)
class ConversationChanged:
    """Turns, title, head or settings changed on disk; reload the conversation to show it."""

    conversation: str


@dataclass(frozen=True, slots=True)
class Prefilling:
    """The model is reading: `done` of `total` tokens."""

    conversation: str
    turn: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class AnswerGrew:
    """The answer's whole text so far; sent at most 30 times a second."""

    conversation: str
    turn: str
    text: str
    tokens: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class AnswerFinished:
    """The answer ended and is on disk."""

    conversation: str
    turn: Turn


@dataclass(frozen=True, slots=True)
class AnswerFailed:
    """The answer ended with a failure; what was generated is kept and can be continued."""

    conversation: str
    turn: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModelLoading:
    """A model is being opened: what is done now, and how much of it (0 to 1)."""

    name: str
    step: str
    fraction: float


@dataclass(frozen=True, slots=True)
class ModelReady:
    """The model opened under this name can answer. `state_bytes` is the size of one state."""

    name: str
    description: str
    state_bytes: int


@dataclass(frozen=True, slots=True)
class ModelFailed:
    """The model could not be opened; those that are open stay."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the person should know, as a sentence."""

    text: str


Event = (
    ConversationChanged
    | Prefilling
    | AnswerGrew
    | AnswerFinished
    | AnswerFailed
    | ModelLoading
    | ModelReady
    | ModelFailed
    | Notice
)
