"""Put the parts together: settings, store, engine and models become a Session."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_chat import paths
from rwkv_chat.chat.options import Options
from rwkv_chat.chat.session import Session
from rwkv_chat.checkpoints.catalog import EMBEDDED, find, lasting
from rwkv_chat.engine.library import LocalLibrary
from rwkv_chat.engine.worker import Worker
from rwkv_chat.errors import UsageError
from rwkv_chat.settings import Settings
from rwkv_chat.store.conversations import Conversations

if TYPE_CHECKING:
    from rwkv_chat.engine.model import Model

__all__ = [
    "choose",
    "defaults",
    "open_session",
    "open_store",
    "opener",
    "overrides_in",
    "start_in",
]


def choose(options: argparse.Namespace) -> Settings:
    """The settings of the person, overridden by the command line."""
    names = ("model", "tokenizer", "weights", "threads", "device")
    given = {name: getattr(options, name, None) for name in names}
    if given["model"] is not None:
        given["model"] = lasting(given["model"])
        if given["tokenizer"] is None:
            given["tokenizer"] = ""  # that of the settings belongs to the model of the settings
    chosen = replace(Settings.load(), **{k: v for k, v in given.items() if v is not None})
    overrides = overrides_in(options)
    if not overrides:
        return chosen
    return chosen.with_overrides(find(chosen.model or EMBEDDED), overrides)


def overrides_in(options: argparse.Namespace) -> dict[str, Any]:
    """Those of `Settings.overrides_of` that the command line names."""
    names = ("generation", "group_norm_eps", "key_eps")
    given = {name: getattr(options, name, None) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def start_in(options: argparse.Namespace) -> str:
    """The full path of the start state that the command line names; "" where it names none.

    Raises:
        UsageError: there is no such file.
    """
    if not options.state:
        return ""
    path = Path(options.state).absolute()
    if not path.is_file():
        raise UsageError(f"The start state {path} is not there. Give the path of a file.")
    return str(path)


def opener(settings: Settings) -> "Callable[[], Model]":
    """What opens the model of the settings, as they say."""
    from rwkv_chat.engine.select import load_model  # slow: numpy comes with it

    path = find(settings.model or EMBEDDED)
    return partial(
        load_model,
        path,
        settings.weights,
        settings.device,
        threads=settings.threads or None,
        tokenizer=settings.tokenizer or None,
        **settings.overrides_of(path),
    )


def defaults(settings: Settings) -> Options:
    """The choices of a new conversation."""
    return Options(
        sampling=settings.sampling,
        system=settings.system,
        think=settings.think,
        template=settings.template,
        max_tokens=settings.max_tokens,
        own=settings.own,
    )


def open_store(
    settings: Settings, note: Callable[[str], None] = lambda sentence: None
) -> Conversations:
    """The conversations of this person; `note` is told what they should know of the store."""
    folder = paths.ensure_private(paths.data_dir())
    return Conversations.open(folder, note=note, budget_bytes=settings.store_budget)


@contextmanager
def open_session(settings: Settings, options: Options) -> Iterator[Session]:
    """A Session on this person's store; no model is opened yet.

    At the end answers are stopped and kept, and what was deleted here is erased.
    """
    early: list[str] = []
    note = early.append
    with open_store(settings, lambda sentence: note(sentence)) as store, ExitStack() as closing:
        closing.callback(store.purge)
        model = settings.model or EMBEDDED
        tokenizers = {model: settings.tokenizer} if settings.tokenizer else {}
        threads = settings.threads or None
        library = LocalLibrary(
            settings.weights, threads, settings.overrides_of, tokenizers, settings.device
        )
        session = Session(store, Worker(library, store.snapshots), options)
        closing.callback(session.close)
        note = session.notice
        for sentence in early:
            session.notice(sentence)
        yield session
