"""`rwkv-chat ask`: one question, the answer on stdout, narration on stderr."""

import argparse
import json
import queue
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from rwkv_chat.chat import events
from rwkv_chat.chat.options import Options
from rwkv_chat.chat.session import Session
from rwkv_chat.chat.tree import Finish, Turn
from rwkv_chat.checkpoints.catalog import EMBEDDED, lasting
from rwkv_chat.commands import compose
from rwkv_chat.commands.narrate import narrate
from rwkv_chat.commands.signals import exit_code
from rwkv_chat.errors import EngineError, UsageError
from rwkv_chat.settings import Settings
from rwkv_chat.text.display import clean

__all__ = ["answer", "run"]

_LAST_EVENT_SECONDS = 0.2


def run(options: argparse.Namespace) -> int:
    """Ask and print; after a signal the partial answer is kept."""
    text = sys.stdin.read() if options.text == "-" else options.text
    if not text.strip():
        raise UsageError('There is nothing to ask; give a text, such as rwkv-chat ask "Hello".')
    settings = compose.choose(options)
    change = partial(_change, options)
    return answer(text, settings, change, options.start, as_json=options.json)


def _change(options: argparse.Namespace, base: Options) -> Options:
    """The choices of `base`, but for what the command line says."""
    given = {name: getattr(options, name) for name in ("temperature", "top_p", "seed")}
    return replace(
        base,
        sampling=replace(base.sampling, **{k: v for k, v in given.items() if v is not None}),
        max_tokens=options.max_tokens or base.max_tokens,
        template=options.template or base.template,
        start=compose.start_in(options) or base.start,
        model=lasting(options.model) if options.model else base.model,
    )


def answer(
    text: str,
    settings: Settings,
    change: Callable[[Options], Options],
    start: str | None,
    *,
    as_json: bool,
) -> int:
    """Ask `text` and print the answer as it comes.

    Args:
        text: what to say.
        settings: of this person.
        change: makes the choices of this answer from those of the conversation. A new one keeps
            the result; one that goes on keeps its own.
        start: the turn to go on from; None begins a new conversation.
        as_json: print one JSON object at the end instead.

    Returns:
        The exit code.

    Raises:
        EngineError: the answer failed.
        NotFoundError: not exactly one turn is named `start`.
    """
    inbox: queue.SimpleQueue[events.Event] = queue.SimpleQueue()
    with compose.open_session(settings, change(compose.defaults(settings))) as session:
        session.subscribe(inbox.put)
        parent = session.find(start) if start is not None else None
        chosen = change(session.options(parent.conversation if parent is not None else None))
        model = chosen.model or settings.model or EMBEDDED
        session.open_model(model)
        _await_model(inbox)
        if parent is None:
            conversation = session.send(None, text).id
        else:
            conversation = parent.conversation
            chosen = replace(chosen, model=model)
            session.send(conversation, text, parent=parent.id, options=chosen)
        return _follow(session, conversation, inbox, as_json=as_json)


def _await_model(inbox: queue.SimpleQueue[events.Event]) -> None:
    shown = False
    while True:
        match inbox.get():
            case events.ModelLoading(name, step, fraction) if sys.stderr.isatty():
                narrate(f"{name}: {step} {fraction:4.0%}", end="")
                shown = True
            case events.ModelReady():
                if shown:
                    narrate("", end="")
                return
            case events.ModelFailed(_, reason):
                raise EngineError(reason)
            case events.Notice(text):
                narrate(text, end="\n")


def _follow(
    session: Session,
    conversation: str,
    inbox: queue.SimpleQueue[events.Event],
    *,
    as_json: bool,
) -> int:
    """Print the answer while it grows.

    The first interruption stops the answer and waits until what there is is on disk; the second
    one passes through.
    """
    shown = ""
    code = 0
    while True:
        try:
            event = inbox.get(timeout=_LAST_EVENT_SECONDS if code else None)
            match event:
                case events.Prefilling(_, _, done, total) if total > 256 and sys.stderr.isatty():
                    narrate(f"reading {done}/{total}" if done < total else "", end="")
                case events.AnswerGrew() if not as_json:
                    shown = _print_rest(event.text, shown)
                case events.AnswerFinished(_, turn):
                    if as_json:
                        print(json.dumps(_as_json(turn)))
                    else:
                        _print_rest(turn.text, shown)
                        print(flush=True)
                    return code
                case events.Notice(text):
                    narrate(text, end="\n")
                case events.AnswerFailed(_, turn_id, reason):
                    if shown:
                        print(flush=True)
                    raise EngineError(f"{reason} What there is is kept as turn {turn_id}.")
        except queue.Empty:
            # The interruption may have come while the last event was being printed.
            if not session.busy(conversation):
                return code
        except KeyboardInterrupt as interruption:
            if code:
                raise
            code = exit_code(interruption)
            session.stop(conversation)
            narrate("stopped; the answer so far is kept", end="\n")


def _print_rest(text: str, shown: str) -> str:
    """Print what `text` adds to `shown`. Safe for a terminal."""
    text = clean(text)
    print(text[len(shown) :], end="", flush=True)
    return text


def _as_json(turn: Turn) -> dict[str, object]:
    return {
        "conversation": turn.conversation,
        "turn": turn.id,
        "text": turn.text,
        "finish": turn.finish.value,
        "complete": turn.finish in (Finish.STOP, Finish.END),
        "tokens": len(turn.ids) - turn.prefix,
        "tokens_per_s": round(turn.tokens_per_s, 2),
        "model": turn.model,
        "seed": turn.seed,
    }
