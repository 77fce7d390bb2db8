"""What the chat needs of the outside world. Others implement these; tests fake them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rwkv_chat.chat.sampling import Sampling
from rwkv_chat.chat.tree import Conversation, Finish, Summary, Turn

__all__ = [
    "Engine",
    "Job",
    "Listener",
    "Model",
    "ModelChoice",
    "Progress",
    "Request",
    "Store",
    "Tokenizer",
]

Progress = Callable[[str, float], None]
"""Told what is being done now, and how much of it is done (0 to 1)."""


class Tokenizer(Protocol):
    """Text to ids and back. `fingerprint` is the sha256 of the vocabulary, hexadecimal."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    def encode(self, text: str | bytes) -> list[int]:
        """The ids of `text`."""

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes that `ids` stand for; id 0 and unused ids stand for none."""


class Store(Protocol):
    """Conversations on disk. Every call that changes something has committed when it returns.

    All raise a StoreError. Thread-safe.
    """

    def conversations(self) -> list[Summary]:
        """All that are not deleted, the last changed first."""

    def create(self, title: str, settings: Mapping[str, object]) -> Conversation:
        """A new empty conversation."""

    def load(self, conversation: str) -> Conversation:
        """The whole tree."""

    def rename(self, conversation: str, title: str) -> None: ...
    def configure(self, conversation: str, settings: Mapping[str, object]) -> None: ...
    def delete(self, conversation: str) -> None:
        """Hide it; `restore` brings it back until it is erased."""

    def restore(self, conversation: str) -> None: ...

    def fork(self, source: str, turn: str, title: str) -> str:
        """A new conversation (its id) with copies of the path to `turn`, labels left out."""

    def append(self, turn: Turn, *, head: bool = True) -> Turn:
        """Add `turn` as a new node; the store sets `seq` and `created` and returns the result.

        With `head` the conversation's head moves to it, in the same transaction.

        Raises:
            ConflictError: `turn.seq` is not 0 and not the next number (another writer was faster).
        """

    def update(self, turn: Turn) -> None:
        """Replace text, ids, prefix, tokenizer, finish, seed, model and tokens_per_s of a turn.

        Raises:
            ConflictError: the turn is an answer of which another writer has written more.
        """

    def set_head(self, conversation: str, turn: str | None) -> None: ...
    def set_label(self, turn: str, label: str) -> None: ...
    def find(self, text: str) -> Turn:
        """The one turn with this label, or with an id that begins or ends like this."""


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to be generated.

    `path` holds the ids of each turn from the root, the answer's own (template prefix, and what was
    already generated when an answer is continued) last; `generated` counts those of the last that
    the model made. Snapshots are kept at the end of the question, of the part before it when it
    had to be read, and of the answer.
    `stops` end the answer when its decoded bytes contain one of them. `start` is the file of the
    state that the conversation begins with, "" for none.
    """

    path: tuple[tuple[int, ...], ...]
    generated: int
    sampling: Sampling
    seed: int
    stops: tuple[bytes, ...]
    max_tokens: int
    start: str = ""


class Listener(Protocol):
    """Told by the engine's thread how a job goes; `finished` or `failed` comes last, once."""

    def prefilled(self, done: int, total: int) -> None: ...
    def grew(self, ids: Sequence[int], tokens_per_s: float) -> None:
        """More ids, at most 30 times a second."""

    def finished(self, finish: Finish, tokens_per_s: float) -> None: ...
    def failed(self, reason: str) -> None: ...


class Job(Protocol):
    """A running or waiting request."""

    def cancel(self) -> None:
        """Stop within one token, from any thread; `finished` still comes."""


class Model(Protocol):
    """What the chat must know of the loaded model."""

    @property
    def name(self) -> str: ...
    @property
    def memory_limit(self) -> str:
        """How far it remembers, to follow its name in a sentence; "" where nothing limits it."""

    @property
    def description(self) -> str:
        """For people, such as "RWKV-7 0.1B, bf16, native avx512, 2 threads"."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def template(self) -> str:
        """The name of the template that fits it."""

    @property
    def weights(self) -> str:
        """Their type, such as "bf16"."""

    @property
    def state_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model that can be opened by its name."""

    name: str
    description: str
    path: str


class Engine(Protocol):
    """Opens models, and generates answers on its own thread, those that run at once in turns."""

    def available(self) -> list[ModelChoice]:
        """The models that can be opened by name."""

    def open(self, name: str, progress: Progress) -> Model:
        """Load a model by name or path; one that is in use already is not loaded again.

        Takes long. Raises a RwkvChatError.
        """

    def generate(self, model: Model, request: Request, listener: Listener) -> Job:
        """Begin a request whose ids are those of `model`."""

    def kept(self, model: Model, path: Sequence[Sequence[int]], start: str) -> list[bool]:
        """For each part of `path`, whether a snapshot of the state at its end is kept.

        `start` is that of the requests.
        """

    def close(self) -> None:
        """Stop what runs, finish what must be written, end the thread."""
