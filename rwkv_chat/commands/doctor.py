"""`rwkv-chat doctor`: does everything work here, and if not, what to do."""

import argparse
import json
import os
import platform
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from rwkv_chat import __version__, paths
from rwkv_chat.errors import RwkvChatError, SettingsError
from rwkv_chat.text.display import clean

__all__ = ["run"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked; `ok` False needs the person to act."""

    name: str
    ok: bool
    text: str


def run(options: argparse.Namespace) -> int:
    """Print every finding; 1 if any of them is bad."""
    findings = list(_examine())
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{'ok ' if finding.ok else 'BAD'}  {finding.name:12}  {clean(finding.text)}")
    return 0 if all(finding.ok for finding in findings) else 1


def _examine() -> Iterator[Finding]:
    python = f"rwkv-chat {__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield Finding("version", True, python)
    for name, check in (
        ("core", _core),
        ("memory", _memory),
        ("folders", _folders),
        ("settings", _settings),
        ("store", _store),
        ("models", _models),
        ("answer", _answer),
    ):
        yield _guard(name, check)
    yield Finding("cuda", True, _cuda())
    yield Finding("terminal", True, _terminal())


def _guard(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except RwkvChatError as error:
        return Finding(name, False, str(error))
    except (OSError, ImportError) as error:
        return Finding(name, False, f"{error}. Install rwkv-chat again.")


def _core() -> str:
    from rwkv_chat import _native

    isas = ", ".join(_native.isas())
    chosen = os.environ.get("RWKV_CHAT_ISA")
    if chosen and chosen not in _native.isas():
        raise SettingsError(
            f"RWKV_CHAT_ISA is {chosen}, which this machine does not have. "
            f"Unset it, or set it to one of {isas}."
        )
    return f"instruction sets: {isas}" + (f"; RWKV_CHAT_ISA={chosen}" if chosen else "")


def _memory() -> str:
    from rwkv_chat.engine.memory import available_bytes

    free = available_bytes()
    return "unknown" if free is None else f"{free / 2**30:.1f} GiB free for models"


def _folders() -> str:
    folders = [paths.data_dir(), paths.cache_dir(), paths.config_dir()]
    for folder in folders:
        paths.ensure_private(folder)
        if not os.access(folder, os.W_OK):
            raise RwkvChatError(f"{folder} cannot be written; change its owner or its mode.")
    return ", ".join(str(folder) for folder in folders)


def _settings() -> str:
    from rwkv_chat.settings import Settings

    settings = Settings.load()
    return f"{Settings.path()}: model {settings.model or 'embedded'}, {settings.weights} weights"


def _store() -> str:
    from rwkv_chat.commands.compose import open_store
    from rwkv_chat.settings import Settings

    with open_store(Settings.load()) as store:
        count = len(store.conversations())
        size = store.snapshots.size() / 2**20
    return f"{count} conversations, {size:.1f} MiB of states, SQLite {sqlite3.sqlite_version}"


def _models() -> str:
    from rwkv_chat.checkpoints import catalog

    names = [entry.name for entry in catalog.available()]
    if not names:
        raise RwkvChatError(f"There are no models. Put a model file into {paths.models_dir()}.")
    return ", ".join(names)


def _answer() -> str:
    from rwkv_chat.checkpoints import catalog
    from rwkv_chat.engine.select import load_model

    model = load_model(catalog.find(catalog.EMBEDDED), "bf16")
    model.forward(model.tokenizer.encode("User: Hello\n\nAssistant:"))
    return f"the embedded model computes ({model.description})"


def _cuda() -> str:
    from rwkv_chat.engine.devices import describe_gpus

    return describe_gpus()


def _terminal() -> str:
    term = os.environ.get("TERM", "unset")
    colours = "no colour" if os.environ.get("NO_COLOR") else os.environ.get("COLORTERM", "basic")
    where = "a terminal" if sys.stdout.isatty() else "no terminal on stdout"
    return f"{where}, TERM={term}, colours: {colours}, encoding {sys.stdout.encoding}"
