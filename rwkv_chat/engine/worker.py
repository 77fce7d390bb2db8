"""The one thread that owns live states. Requests that run at once share it; see `scheduler`.

A request names the ids of a path; the worker finds the longest part of it whose state it still has
(in memory or kept on disk), reads the rest, and generates.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from rwkv_chat.chat.ports import Listener, ModelChoice, Progress, Request
from rwkv_chat.engine.live import LiveStates
from rwkv_chat.engine.pathkey import path_keys
from rwkv_chat.engine.starts import Starts
from rwkv_chat.errors import EngineError, RwkvChatError, SnapshotError, StoreError

if TYPE_CHECKING:  # the window must not wait for numpy
    from rwkv_chat.checkpoints.statefile import SavedState, StateOwner
    from rwkv_chat.engine.generation import Generation, Kept
    from rwkv_chat.engine.model import Model, State
    from rwkv_chat.engine.scheduler import Scheduler, Work

__all__ = ["Keeper", "Library", "Worker"]


class Library(Protocol):
    """Finds and loads models."""

    def available(self) -> list[ModelChoice]: ...
    def open(self, name: str, progress: Progress) -> Model: ...


class Keeper(Protocol):
    """Where states outlive the process. A lost one costs time, never words."""

    def get(self, key: str, owner: StateOwner) -> SavedState | None: ...
    def put(self, key: str, saved: SavedState) -> None: ...
    def has(self, keys: Sequence[str]) -> set[str]: ...


class Worker:
    """Implements chat.ports.Engine.

    `library` finds and loads models. `keeper` None keeps states in memory only.
    """

    def __init__(self, library: Library, keeper: Keeper | None = None) -> None:
        self._library = library
        self._keeper = keeper
        self._live = LiveStates()
        self._starts = Starts()
        self._jobs: queue.SimpleQueue[Generation | None] = queue.SimpleQueue()
        self._running: set[Generation] = set()
        self._closed = False
        self._ended = False
        self._imported = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def available(self) -> list[ModelChoice]:
        """The models that can be opened by name."""
        return self._library.available()

    def open(self, name: str, progress: Progress) -> Model:
        """Load a model by name or path.

        Raises:
            RwkvChatError: it cannot be opened.
        """
        # Two threads that import numpy at the same time may each get a half of it.
        self._imported.wait()
        return self._library.open(name, progress)

    def generate(self, model: Any, request: Request, listener: Listener) -> Generation:
        """Begin a request whose ids are those of `model`, one that `open` returned.

        `listener` is told on the engine's thread.

        Raises:
            EngineError: the worker is closed.
        """
        from rwkv_chat.engine.generation import Generation

        job = Generation(model, request, listener)
        with self._lock:
            if self._closed:
                raise EngineError("The application is closing; the message is kept.")
            self._running.add(job)
            self._jobs.put(job)
        return job

    def kept(self, model: Any, path: Sequence[Sequence[int]], start: str = "") -> list[bool]:
        """For each part of `path`, whether the state of `model` at its end is kept."""
        try:
            keys = path_keys(self._starts.of(model, start).fingerprint, path)
        except SnapshotError:  # the next answer tells what is wrong with the start state
            return [False] * len(path)
        on_disk = self._keeper.has(keys) if self._keeper else set()
        return [key in on_disk or key in self._live for key in keys]

    def close(self) -> None:
        """Cancel what runs, finish what must be written, end the thread."""
        with self._lock:
            self._closed = True
            jobs = list(self._running)
            self._jobs.put(None)
        for job in jobs:
            job.cancel()
        self._thread.join()

    def _loop(self) -> None:
        try:
            from rwkv_chat.engine.scheduler import Scheduler
        finally:
            self._imported.set()

        scheduler = Scheduler()
        while not self._ended or scheduler:
            self._take(scheduler)
            scheduler.step()

    def _take(self, scheduler: Scheduler) -> None:
        """Add what was asked for in the meantime; with nothing to do, wait for it."""
        with suppress(queue.Empty):
            while not self._ended:
                job = self._jobs.get(block=not scheduler)
                if job is None:
                    self._ended = True
                else:
                    scheduler.add(self._answer(job))

    def _answer(self, job: Generation) -> Work:
        # Whatever happens to one answer, the thread must be there for the others.
        with suppress(Exception):
            yield from self._run(job)
        with suppress(Exception):
            self._keep(job.kept)
        with self._lock:
            self._running.discard(job)

    def _run(self, job: Generation) -> Work:
        try:
            job.model = self._starts.of(job.model, job.request.start)
            keys = path_keys(job.model.fingerprint, job.request.path)
            try:
                finish = yield from job.run(keys, *self._find(job.model, keys))
            finally:
                for each in job.kept:
                    self._live.put(each.key, each.state)
        except RwkvChatError as error:
            job.listener.failed(str(error))
        except MemoryError:
            job.listener.failed("There is not enough memory to go on; close other programs.")
        except Exception as error:
            job.listener.failed(f"The engine failed unexpectedly: {error!r}. Send again to retry.")
        else:
            job.listener.finished(finish, job.tokens_per_s)

    def _find(self, model: Model, keys: Sequence[str]) -> tuple[int, State | None]:
        """How many parts of the path are already read, and the state after them."""
        for index in range(len(keys) - 1, -1, -1):
            state = self._live.get(keys[index])
            if state is None and self._keeper is not None:
                with suppress(StoreError):  # what cannot be looked up is read again
                    saved = self._keeper.get(keys[index], model.owner)
                    state = model.restore(saved) if saved is not None else None
            if state is not None:
                return index + 1, state
        return 0, None

    def _keep(self, kept: Sequence[Kept]) -> None:
        if self._keeper is not None:
            for each in kept:
                self._keeper.put(each.key, each.state.saved(each.decoding))
