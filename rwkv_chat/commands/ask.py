"""`rwkv-chat ask`: one question, the answer on stdout, narration on stderr."""

import argparse
import json
import queue
import sys
from dataclasses import replace

from rwkv_chat.chat import events
from rwkv_chat.chat.options import Options
from rwkv_chat.chat.session import Session
from rwkv_chat.chat.tree import Finish, Turn
from rwkv_chat.checkpoints.catalog import EMBEDDED
from rwkv_chat.commands import compose
from rwkv_chat.errors import EngineError, UsageError
from rwkv_chat.settings import Settings
from rwkv_chat.text.display import clean

__all__ = ["answer", "run"]


def run(options: argparse.Namespace) -> int:
    """Ask and print; 130 after Ctrl-C, the partial answer kept."""
    text = options.text
    if text == "-":
        text = sys.stdin.read()
    if not text.strip():
        raise UsageError('There is nothing to ask; give a text, such as rwkv-chat ask "Hello".')
    settings = compose.choose(options)
    return answer(text, settings, _choices(options, settings), options.start, as_json=options.json)


def _choices(options: argparse.Namespace, settings: Settings) -> Options:
    given = {name: getattr(options, name) for name in ("temperature", "top_p", "seed")}
    base = compose.defaults(settings)
    return replace(
        base,
        sampling=replace(base.sampling, **{k: v for k, v in given.items() if v is not None}),
        max_tokens=options.max_tokens or base.max_tokens,
        template="raw" if options.raw else base.template,
    )


def answer(
    text: str, settings: Settings, choices: Options, start: str | None, *, as_json: bool
) -> int:
    """Ask `text`, below the turn `start` when it is given, and print the answer as it comes.

    Returns:
        The exit code.

    Raises:
        EngineError: the answer failed.
        NotFoundError: not exactly one turn is named `start`.
    """
    inbox: queue.SimpleQueue[events.Event] = queue.SimpleQueue()
    with compose.open_session(settings, choices) as session:
        session.subscribe(inbox.put)
        parent = session.find(start) if start else None
        session.open_model(settings.model or EMBEDDED)
        _await_model(inbox)
        conversation = parent.conversation if parent else session.create().id
        if parent:
            session.configure(
                conversation, sampling=choices.sampling, max_tokens=choices.max_tokens
            )
        session.send(conversation, text, parent=parent.id if parent else None)
        return _follow(session, conversation, inbox, as_json=as_json)


def _await_model(inbox: queue.SimpleQueue[events.Event]) -> None:
    shown = False
    while True:
        match inbox.get():
            case events.ModelLoading(name, step, fraction) if sys.stderr.isatty():
                _narrate(f"{name}: {step} {fraction:4.0%}", end="")
                shown = True
            case events.ModelReady():
                if shown:
                    _narrate("", end="")
                return
            case events.ModelFailed(_, reason):
                raise EngineError(reason)
            case events.Notice(text):
                _narrate(text, end="\n")


def _narrate(text: str, *, end: str) -> None:
    """Say something on stderr; in a terminal it takes the place of what was said before."""
    back = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(back + clean(text), end=end, file=sys.stderr, flush=True)


def _follow(
    session: Session,
    conversation: str,
    inbox: queue.SimpleQueue[events.Event],
    *,
    as_json: bool,
) -> int:
    """Print the answer while it grows; after Ctrl-C wait until what there is is on disk."""
    shown = ""
    interrupted = False
    while True:
        try:
            event = inbox.get()
            match event:
                case events.Prefilling(_, _, done, total) if total > 256 and sys.stderr.isatty():
                    _narrate(f"reading {done}/{total}" if done < total else "", end="")
                case events.AnswerGrew() if not as_json:
                    shown = _print_rest(event.text, shown)
                case events.AnswerFinished(_, turn):
                    if as_json:
                        print(json.dumps(_as_json(turn), ensure_ascii=False))
                    else:
                        _print_rest(turn.text, shown)
                        print(flush=True)
                    return 130 if interrupted else 0
                case events.Notice(text):
                    _narrate(text, end="\n")
                case events.AnswerFailed(_, turn_id, reason):
                    if shown:
                        print(flush=True)
                    raise EngineError(f"{reason} What there is is kept as turn {turn_id}.")
        except KeyboardInterrupt:
            interrupted = True
            session.stop(conversation)
            _narrate("stopped; the answer so far is kept", end="\n")


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
