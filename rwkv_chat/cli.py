"""The command line: arguments in, exit code out. Heavy imports happen inside the commands.

Exit codes: 0 done, 1 failed (a sentence on stderr), 2 wrong arguments, 130 interrupted.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from rwkv_chat import __version__
from rwkv_chat.errors import RwkvChatError, UsageError

__all__ = ["main"]

WEIGHTS = ("f32", "bf16")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rwkv-chat",
        description="Talk with RWKV language models in the terminal. "
        "Without a command, the interface opens.",
    )
    parser.add_argument("--version", action="version", version=f"rwkv-chat {__version__}")
    parser.set_defaults(command="chat")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    chat = commands.add_parser("chat", help="open the interface (the default)")
    chat.set_defaults(command="chat")
    for each in (parser, chat):
        _model_arguments(each, suppress=each is chat)

    ask = commands.add_parser("ask", help="ask once; the answer goes to stdout")
    ask.set_defaults(command="ask")
    ask.add_argument("text", metavar="TEXT", nargs="?", default="-", help="- reads stdin")
    _model_arguments(ask, suppress=True)
    ask.add_argument(
        "--max-tokens", type=_positive, metavar="N", help="end the answer after N tokens"
    )
    ask.add_argument("--temperature", type=float, metavar="T", help="0 takes the likeliest token")
    ask.add_argument("--top-p", type=float, metavar="P", help="keep the likeliest tokens up to P")
    ask.add_argument("--seed", type=int, metavar="S", help="the same seed gives the same answer")
    ask.add_argument(
        "--from", dest="start", metavar="LABEL|ID", help="go on from a turn, as `log` names it"
    )
    ask.add_argument("--json", action="store_true", help="one JSON object instead of the text")
    ask.add_argument("--raw", action="store_true", help="continue the text as it is, no template")

    log = commands.add_parser("log", help="list conversations and their trees")
    log.set_defaults(command="log")
    log.add_argument("--json", action="store_true", help="JSON instead of a drawing")

    models = commands.add_parser("models", help="list, inspect and convert model files")
    models.set_defaults(command="models", action="list")
    actions = models.add_subparsers(metavar="ACTION")
    listing = actions.add_parser("list", help="the models that can be opened by name")
    listing.set_defaults(action="list")
    info = actions.add_parser("info", help="what a file is and what it needs, without loading it")
    info.set_defaults(action="info")
    info.add_argument("model", metavar="MODEL", help="a name from the list, or a path")
    convert = actions.add_parser("convert", help="prepare a model, so that it opens at once")
    convert.set_defaults(action="convert")
    convert.add_argument("model", metavar="MODEL", help="a name from the list, or a path")
    convert.add_argument("--weights", choices=WEIGHTS, default="bf16")
    for each in (listing, info, convert):
        each.add_argument("--json", action="store_true", help="JSON instead of text")

    doctor = commands.add_parser("doctor", help="check this installation")
    doctor.set_defaults(command="doctor")
    doctor.add_argument("--json", action="store_true", help="JSON instead of text")

    bench = commands.add_parser("bench", help="measure the speed of a model on this machine")
    bench.set_defaults(command="bench")
    _model_arguments(bench, suppress=True)
    bench.add_argument("--threads", type=_positive, metavar="N", help="default: physical cores")
    bench.add_argument("--batch", type=_positive, metavar="B", default=1, help="sequences at once")
    bench.add_argument("--prompt-tokens", type=_positive, metavar="N", default=512)
    bench.add_argument("--decode-tokens", type=_positive, metavar="N", default=64)
    bench.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser


def _model_arguments(parser: argparse.ArgumentParser, *, suppress: bool) -> None:
    default = argparse.SUPPRESS if suppress else None
    parser.add_argument(
        "--model", metavar="M", default=default, help="a name from `models list`, or a path"
    )
    parser.add_argument("--weights", choices=WEIGHTS, default=default, help="type of the weights")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    os.umask(0o077)
    try:
        command = importlib.import_module(f"rwkv_chat.commands.{options.command}")
        code: int = command.run(options)
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _complain(error, 2)
    except RwkvChatError as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of stdout is gone; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _complain(error: RwkvChatError, code: int) -> int:
    from rwkv_chat.text.display import clean

    print(f"rwkv-chat: {clean(str(error))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
