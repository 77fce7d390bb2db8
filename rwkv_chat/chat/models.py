"""The models that are open, those that are being opened, and who waits for them."""

import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from rwkv_chat.chat import events
from rwkv_chat.chat.ports import Engine, Model
from rwkv_chat.errors import MemoryLimitError, RwkvChatError

__all__ = ["Models", "Waiting"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Called once, on any thread: `ready` with the model, or `failed` with a sentence."""

    ready: Callable[[Model], None]
    failed: Callable[[str], None]


class Models:
    """Models by the names under which they are opened, one after the other. Thread-safe.

    Args:
        engine: Loads them.
        emit: Told how it goes.
        used: The names of those that must stay; called before another one is loaded, when the
            others make room for it.
    """

    def __init__(
        self,
        engine: Engine,
        emit: Callable[[events.Event], None],
        used: Callable[[], Collection[str]],
    ) -> None:
        self._engine = engine
        self._emit = emit
        self._used = used
        self._lock = threading.Lock()
        self._open: dict[str, Model] = {}
        self._waiting: dict[str, list[Waiting]] = {}
        self._opener: threading.Thread | None = None

    def get(self, name: str) -> Model | None:
        """The model of this name, if it is open."""
        with self._lock:
            return self._open.get(name)

    @property
    def opening(self) -> str | None:
        """The name of the model that is being opened now."""
        with self._lock:
            return next(iter(self._waiting), None)

    def want(self, name: str, waiting: Waiting) -> None:
        """Tell `waiting` when the model is open: at once if it is, else it is opened first."""
        with self._lock:
            model = self._open.get(name)
            if model is None:
                self._waiting.setdefault(name, []).append(waiting)
                if self._opener is None:
                    self._opener = threading.Thread(
                        target=self._work, name="open-model", daemon=True
                    )
                    self._opener.start()
        if model is not None:
            waiting.ready(model)

    def _work(self) -> None:
        while True:
            with self._lock:
                name = next(iter(self._waiting), None)
                if name is None:
                    self._opener = None
                    return
            self._load(name)

    def _load(self, name: str) -> None:
        def progress(step: str, fraction: float) -> None:
            self._emit(events.ModelLoading(name, step, fraction))

        model, reason = None, ""
        try:
            progress("opening", 0.0)
            self._make_room()
            model = self._engine.open(name, progress)
        except MemoryLimitError as error:
            reason = f"{error}{self._others()}"
        except Exception as error:
            reason = str(error) if isinstance(error, RwkvChatError) else f"{error!r}"
        with self._lock:
            waiting = self._waiting.pop(name)
            if model is not None:
                self._open[name] = model
        if model is None:
            for each in waiting:
                with suppress(Exception):  # one that breaks must not keep the others waiting
                    each.failed(reason)
            self._emit(events.ModelFailed(name, reason))
            return
        for each in waiting:
            with suppress(Exception):
                each.ready(model)
        self.announce(name, model)

    def announce(self, name: str, model: Model) -> None:
        """Tell how far a model remembers, where that is limited, and that it can answer."""
        if model.memory_limit:
            self._emit(events.Notice(f"{model.name} {model.memory_limit}."))
        self._emit(events.ModelReady(name, model.description, model.state_bytes))

    def _make_room(self) -> None:
        used = self._used()
        with self._lock:
            self._open = {name: model for name, model in self._open.items() if name in used}

    def _others(self) -> str:
        with self._lock:
            names = ", ".join(model.name for model in self._open.values())
        return f" Closing the panes that use {names} makes room, too." if names else ""
