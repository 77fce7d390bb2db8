"""The process: arguments in, exit code out. What is not needed at once is imported inside.

Exit codes: 0 done, 1 failed (a sentence on stderr), 2 wrong arguments, 128 + n ended by the signal
n (130 after Ctrl-C), 141 the reader of stdout has gone.
"""

import io
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from rwkv_chat.errors import RwkvChatError, UsageError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        _open_streams()
        return _run(arguments)
    except UsageError as error:
        return _complain(str(error), 2)
    except RwkvChatError as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt as error:
        from rwkv_chat.commands.signals import exit_code

        return exit_code(error)
    except BrokenPipeError:
        return 141
    except OSError as error:
        what = f"{error.filename} cannot be used" if error.filename else "Reading or writing failed"
        return _complain(f"{what}: {error.strerror or error}.", 1)
    finally:
        _settle(sys.stdout)
        _settle(sys.stderr)


def _run(arguments: Sequence[str] | None) -> int:
    import importlib

    from rwkv_chat.commands.arguments import parser
    from rwkv_chat.commands.signals import raise_interrupted

    raise_interrupted()
    os.umask(0o077)
    options = parser().parse_args(arguments)
    command = importlib.import_module(f"rwkv_chat.commands.{options.command}")
    code: int = command.run(options)
    sys.stdout.flush()
    return code


def _open_streams() -> None:
    """Put something behind every standard stream, and let no character stop the program."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _settle(stream: TextIO) -> None:
    """Write the rest; what cannot be written is dropped, or the interpreter would complain."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(sentence: str, code: int) -> int:
    from contextlib import suppress

    from rwkv_chat.text.display import clean

    with suppress(OSError):
        print(f"rwkv-chat: {clean(sentence)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
