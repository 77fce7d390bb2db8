"""What the command line understands."""

import argparse
import math
from pathlib import Path

from rwkv_chat import __version__
from rwkv_chat.chat.own import choices
from rwkv_chat.devices import DEVICES, check_device
from rwkv_chat.errors import UsageError
from rwkv_chat.weights import WEIGHTS

__all__ = ["parser"]

_WEIGHTS_HELP = (
    "f32 is exact, bf16 half as large; q8 (8-bit integers with scales) a quarter, at next to no "
    "loss; q4 (4-bit ones in most places) less still, and the fastest"
)


def parser() -> argparse.ArgumentParser:
    """The parser; `command` of its result names a module of this package."""
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
        _state_argument(each, suppress=each is chat)

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
    _state_argument(ask, suppress=True)
    ask.add_argument("--json", action="store_true", help="one JSON object instead of the text")
    form = ask.add_mutually_exclusive_group()
    form.add_argument(
        "--template", choices=choices(), help="how turns are written; default: as fits the model"
    )
    form.add_argument(
        "--raw",
        dest="template",
        action="store_const",
        const="raw",
        help="continue the text as it is, no template",
    )

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
    convert = actions.add_parser("convert", help="prepare a model, so that it opens at once")
    convert.set_defaults(action="convert")
    for each in (info, convert):
        each.add_argument(
            "model", type=_model, metavar="MODEL", help="a name from the list, or a path"
        )
        _override_arguments(each, suppress=False)
    convert.add_argument("--weights", choices=WEIGHTS, default="bf16", help=_WEIGHTS_HELP)
    convert.add_argument(
        "--lora", metavar="FILE", help="merge an adapter into it: LoRA, PiSSA, Bone or DiSHA"
    )
    convert.add_argument("--lora-alpha", type=float, metavar="A", help="lora_alpha of its training")
    convert.add_argument("--lora-init", metavar="FILE", help="what a PiSSA began as")
    convert.add_argument(
        "--output", metavar="NAME", help="keep the result in the models folder under this name"
    )
    for each in (listing, info, convert):
        each.add_argument("--json", action="store_true", help="JSON instead of text")

    tune = commands.add_parser("tune", help="train a start state on a text, on this machine")
    tune.set_defaults(command="tune")
    tune.add_argument("text", metavar="FILE", type=_path, help="text, chats, or .jsonl")
    tune.add_argument(
        "--out", metavar="FILE.state", type=_path, required=True, help="the start state to write"
    )
    tune.add_argument(
        "--time-state", metavar="FILE.pth", type=_path, help="also as a file of other runtimes"
    )
    _model_arguments(tune, suppress=True)
    tune.add_argument("--steps", type=_positive, metavar="N", default=200, help="default: 200")
    tune.add_argument(
        "--rate", type=_rate, metavar="R", default=0.05, help="learning rate, default: 0.05"
    )
    tune.add_argument(
        "--batch", type=_positive, metavar="B", default=4, help="texts in a step, default: 4"
    )
    tune.add_argument(
        "--length", type=_positive, metavar="N", default=256, help="tokens of each, default: 256"
    )
    tune.add_argument(
        "--seed", type=int, metavar="S", default=1, help="deals out the texts, default: 1"
    )

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
    bench.add_argument(
        "--compare",
        action="store_true",
        help="all weights types, on one thread and on all cores, in turns (those given alone)",
    )
    bench.add_argument(
        "--rounds", type=_positive, metavar="N", default=3, help="of --compare; default: 3"
    )
    bench.add_argument(
        "--json", action="store_true", help="JSON instead of a table; with --compare a list"
    )
    return parser


def _model_arguments(parser: argparse.ArgumentParser, *, suppress: bool) -> None:
    default = argparse.SUPPRESS if suppress else None
    parser.add_argument(
        "--model",
        type=_model,
        metavar="M",
        default=default,
        help="a name from `models list`, or a path",
    )
    parser.add_argument("--weights", choices=WEIGHTS, default=default, help=_WEIGHTS_HELP)
    parser.add_argument(
        "--device", type=_device, metavar="D", default=default, help=f"{DEVICES}; default: cpu"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        default=default,
        help="the vocabulary of the model, where it is not found beside it",
    )
    _override_arguments(parser, suppress=suppress)


def _state_argument(parser: argparse.ArgumentParser, *, suppress: bool) -> None:
    parser.add_argument(
        "--state",
        metavar="FILE",
        default=argparse.SUPPRESS if suppress else None,
        help="begin new conversations with a state: from `tune`, saved, or a time_state .pth",
    )


def _override_arguments(parser: argparse.ArgumentParser, *, suppress: bool) -> None:
    default = argparse.SUPPRESS if suppress else None
    parser.add_argument(
        "--generation",
        metavar="G",
        default=default,
        help="open the file as this generation of RWKV, such as 3 where 4 was found "
        "(`models convert` remembers it)",
    )
    parser.add_argument(
        "--group-norm-eps",
        type=_epsilon,
        metavar="X",
        default=default,
        help="the epsilon of its group norm, such as 1e-5, where it is not the official one; "
        "no file says so (remembered likewise)",
    )
    parser.add_argument(
        "--key-eps",
        type=_epsilon,
        metavar="X",
        default=default,
        help="what RWKV-2 and 3 add to the sum of their keys, such as 1e-9 (remembered likewise)",
    )


def _device(text: str) -> str:
    try:
        check_device(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, not {value}")
    return value


def _epsilon(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, not {text:.40}")
    return value


def _path(text: str) -> Path:
    return Path(_model(text)).expanduser()


def _model(text: str) -> str:
    try:
        Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"the home folder in {text!r} cannot be found") from error
    return text
