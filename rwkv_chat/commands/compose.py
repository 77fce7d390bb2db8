"""Put the parts together: settings, store, engine and models become a Session."""

import argparse
from dataclasses import replace

from rwkv_chat import paths
from rwkv_chat.chat.options import Options
from rwkv_chat.chat.session import Session
from rwkv_chat.engine.library import LocalLibrary
from rwkv_chat.engine.worker import Worker
from rwkv_chat.settings import Settings
from rwkv_chat.store.conversations import Conversations
from rwkv_chat.store.snapshots import Snapshots

__all__ = ["choose", "open_session", "open_store"]


def choose(options: argparse.Namespace) -> Settings:
    """The settings of the person, overridden by the command line."""
    settings = Settings.load()
    given = {name: getattr(options, name, None) for name in ("model", "weights", "threads")}
    return replace(settings, **{k: v for k, v in given.items() if v is not None})


def open_store() -> Conversations:
    """The conversations of this person."""
    return Conversations.open(paths.ensure_private(paths.data_dir()))


def open_session(settings: Settings, defaults: Options) -> Session:
    """A Session on this person's store; no model is opened yet."""
    store = open_store()
    snapshots = Snapshots(store, settings.snapshot_budget)
    library = LocalLibrary(settings.weights, settings.threads)
    return Session(store, Worker(snapshots), library, defaults)
