"""Bits per byte of text, for any model that the application opens, in any weights type:
`python -m rwkv_chat.training.measure --model FILE [--weights bf16] --text FILE...`.

A file of JSON lines holds documents as `gather` and `write` leave them; with `--held-out` only
those that `pack` keeps for measuring are read. Any other file is one document.
"""

import argparse
import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rwkv_chat.engine.model import Model, State
from rwkv_chat.engine.select import load_model
from rwkv_chat.errors import UsageError
from rwkv_chat.training.pack import MIX, is_held_out, pieces_of

__all__ = ["bits_per_byte", "documents_of", "main"]

log = logging.getLogger("rwkv_chat.training")

Pieces = Sequence[str]

_AT_ONCE = 16
_MAX_TOKENS = 1024


def documents_of(path: Path, held_out: bool = False) -> Iterator[Pieces]:
    """The documents of a file, each in the pieces in which it is encoded.

    Raises:
        UsageError: it cannot be read, or is not in one of the two forms.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".jsonl":
            yield [text]
            return
        people = path.stem in MIX and MIX[path.stem].people
        for line in text.splitlines():
            row = json.loads(line)
            if not held_out or is_held_out(row):
                yield [piece for piece, _ in pieces_of(row, people)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not text to measure with: {error}") from error


def bits_per_byte(model: Model, documents: Iterable[Pieces]) -> float:
    """Bits that `model` needs for a byte of the documents, and for their ends.

    Each document is read after id 0, as far as 1,024 tokens. Raises UsageError without any text.
    """
    nats, size = 0.0, 0
    waiting = iter(documents)
    while group := list(islice(waiting, _AT_ONCE)):
        rows = []
        for pieces in group:
            ids = [i for piece in pieces for i in model.tokenizer.encode(piece)][:_MAX_TOKENS]
            size += len(model.tokenizer.decode_bytes(ids))
            rows.append([0, *ids] if len(ids) == _MAX_TOKENS else [0, *ids, 0])
        nats += _read(model, rows)
    if not size:
        raise UsageError("There is no text to measure with.")
    return nats / size / math.log(2)


def _read(model: Model, rows: list[list[int]]) -> float:
    """Nats of all ids but the first, of several rows side by side."""
    nats = 0.0
    states: list[State | None] = [None] * len(rows)
    for step in range(max(map(len, rows)) - 1):
        pairs = zip(rows, states, strict=True)
        left = [(row, state) for row, state in pairs if step + 1 < len(row)]
        rows = [row for row, _ in left]
        logits, new = model.forward_batch([row[step] for row in rows], [s for _, s in left])
        states = list(new)
        nats += float(_nats(logits, [row[step + 1] for row in rows]).sum())
    return nats


def _nats(logits: npt.NDArray[np.float32], targets: list[int]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    top = wide.max(axis=1)
    norm = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    missed: npt.NDArray[np.float64] = norm - wide[np.arange(len(targets)), targets]
    return missed


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="rwkv_chat.training.measure", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--weights", default="bf16")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--limit", type=int, default=200, help="documents of each file")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = load_model(options.model, options.weights)
    for path in options.text:
        documents = islice(documents_of(path, options.held_out), options.limit)
        log.info("%s: %.3f bits per byte", path.name, bits_per_byte(model, documents))


if __name__ == "__main__":
    main()
