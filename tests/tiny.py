"""A small real model with random weights, and everything around it, for tests of the whole way."""

import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from rwkv_chat.chat import events
from rwkv_chat.chat.options import Options
from rwkv_chat.chat.ports import ModelChoice, Progress
from rwkv_chat.chat.session import Session
from rwkv_chat.chat.tree import Conversation, Finish
from rwkv_chat.engine.model import Model
from rwkv_chat.engine.worker import Worker
from rwkv_chat.store.conversations import Conversations


@cache
def model_file(generation: str = "7") -> Path:
    """An official .pth of a byte-level model that writes noise for ever."""
    import torch

    from tests.checkpoints.writers import as_rwkvpip
    from tests.seeded import official, random_weights, small_spec, spec_of

    usual = generation == "7"
    spec = small_spec(vocab_size=256) if usual else spec_of(generation, vocab_size=256)
    weights = random_weights(spec, seed=7)
    head = 3 * weights["head.weight"]
    # The last layer norm leans into a direction that only the head of id 0 sees, to avoid it.
    head -= head.mean(dim=1, keepdim=True)
    head[0] = -1.0
    weights["ln_f.bias" if generation.startswith("1") else "ln_out.bias"] += 2.0
    weights["head.weight"] = head
    if "head_q.weight" in weights:  # which alone would decide what is written
        weights["head_q.weight"] *= 0.02
    path = Path(mkdtemp(prefix="rwkv-chat-test-")) / f"tiny{'' if usual else generation}.pth"
    torch.save(as_rwkvpip(weights) if "normed" in generation else official(weights), path)
    return path


def load(weights: str = "f32", generation: str = "7") -> Model:
    """The model of `model_file`; converts it into the current home the first time."""
    from rwkv_chat.engine.select import load_model

    return load_model(model_file(generation), weights, threads=1)


class OneModel:
    """A library that has one model and has loaded it already."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def available(self) -> list[ModelChoice]:
        return [ModelChoice("tiny", "", "")]

    def open(self, name: str, progress: Progress) -> Model:
        return self.model


class Desk:
    """Session, store and engine as the application has them, on a folder that outlives them."""

    def __init__(self, folder: Path, model: Model, options: Options) -> None:
        self.store = Conversations.open(folder)
        self.engine = Worker(OneModel(model), self.store.snapshots)
        self.session = Session(self.store, self.engine, options)
        self._ended = threading.Event()
        self._ready = threading.Event()
        self.failures: list[str] = []
        self.session.subscribe(self._hear)
        self.session.open_model("tiny")
        assert self._ready.wait(30)

    def _hear(self, event: events.Event) -> None:
        if isinstance(event, events.ModelReady):
            self._ready.set()
        if isinstance(event, events.AnswerFailed):
            self.failures.append(event.reason)
        if isinstance(event, events.AnswerFinished | events.AnswerFailed):
            self._ended.set()

    def wait(self) -> None:
        """Until the answer has ended."""
        assert self._ended.wait(30)
        self._ended.clear()

    def ask(self, text: str, conversation: str | None = None) -> Conversation:
        found = self.session.send(conversation, text)
        self.wait()
        return self.session.load(found.id)

    def go_on(self, conversation: str, max_tokens: int) -> Conversation:
        self.session.configure(conversation, max_tokens=max_tokens)
        self.session.continue_answer(conversation)
        self.wait()
        return self.session.load(conversation)

    def close(self) -> None:
        self.session.close()
        self.store.close()


class Recorder:
    """A Listener that remembers."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.prefill: list[tuple[int, int]] = []
        self.finish: Finish | None = None
        self.reason = ""
        self.ended = threading.Event()
        self.began = threading.Event()

    def prefilled(self, done: int, total: int) -> None:
        self.prefill.append((done, total))

    def grew(self, ids: Sequence[int], tokens_per_s: float) -> None:
        self.ids += ids
        self.began.set()

    def finished(self, finish: Finish, tokens_per_s: float) -> None:
        self.finish = finish
        self.ended.set()

    def failed(self, reason: str) -> None:
        self.reason = reason
        self.ended.set()
