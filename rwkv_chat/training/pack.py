"""Choose the vocabulary and turn text into ids:
`python -m rwkv_chat.training.pack --text DIR --out DIR`.

The vocabulary is a part of the World vocabulary: all 256 bytes and the tokens that the mix uses
most, renumbered in their old order, in the same text format. A chat is `User: ...\\n\\nAssistant:`
and ` ...\\n\\n` by turns, each piece encoded alone, as the application does it; id 0 ends a
document. Chats between people are `Bob: ...\\n\\nAlice: ...\\n\\n`, so that the Assistant does not
take their lives for its own. Beside the ids lie roles: 0 text, 1 what the model is given, 2 what it
answers. One document in fifty is held out, by its checksum: it stays so when others are added.
"""

import argparse
import json
import logging
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_chat._native import Vocabulary
from rwkv_chat.errors import UsageError
from rwkv_chat.tokenizer.load import read_vocabulary
from rwkv_chat.tokenizer.parse import render
from rwkv_chat.tokenizer.world import world_tokens

__all__ = [
    "MIX",
    "Share",
    "choose_tokens",
    "is_held_out",
    "main",
    "pieces_of",
    "world_tokens",
]

log = logging.getLogger("rwkv_chat.training")

TEXT, GIVEN, ANSWER = 0, 1, 2
_HELD_OUT = 50  # one document in so many


@dataclass(frozen=True, slots=True)
class Share:
    """The part of all tokens that comes from one source, in the two phases of a run."""

    general: float
    chat: float
    people: bool = False  # a chat between people
    optional: bool = False  # may be absent


MIX = {
    "templates": Share(0.26, 0.25),
    "own": Share(0.30, 0.47),
    "topical_chat": Share(0.16, 0.08, people=True),
    "chitchat": Share(0.19, 0.20, people=True),
    "kdconv_zh": Share(0.02, 0.0, people=True),
    "childrens_books": Share(0.05, 0.0),
    "teacher": Share(0.02, 0.0, optional=True),
}


def choose_tokens(counts: Counter[bytes], world: list[bytes], size: int) -> list[bytes]:
    """Id 0, all bytes, and the most used tokens, `size` in all, in the order of `world`."""
    if size < 257:
        raise UsageError("A vocabulary needs at least 257 rows: the end and all bytes.")
    ranked = sorted((t for t in world[257:] if counts[t]), key=lambda t: (-counts[t], t))
    chosen = set(ranked[: size - 257])
    return [b"", *world[1:257], *(token for token in world[257:] if token in chosen)]


def pieces_of(row: dict[str, Any], people: bool = False) -> Iterator[tuple[str, int]]:
    """The text of a document in the pieces in which it is encoded, with their roles."""
    if "text" in row:
        yield row["text"], TEXT
        return
    if people:
        for index, turn in enumerate(row["turns"]):
            yield f"{('Bob', 'Alice')[index % 2]}: {turn}\n\n", TEXT
        return
    for index, turn in enumerate(row["turns"]):
        if index % 2:
            yield f" {turn}\n\n", ANSWER
        else:
            last = index == len(row["turns"]) - 1
            yield f"User: {turn}\n\n" + ("" if last else "Assistant:"), GIVEN


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise UsageError(f"{path} is missing. Run the gather and write stages first.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _count(rows: dict[str, list[dict[str, Any]]], world: list[bytes]) -> Counter[bytes]:
    vocabulary = Vocabulary(world)
    weighted: Counter[int] = Counter()
    for name, documents in rows.items():
        found: Counter[int] = Counter()
        for row in documents:
            for text, _ in pieces_of(row, MIX[name].people):
                found.update(vocabulary.encode(text.encode()))
        total = found.total()
        share = MIX[name].general + MIX[name].chat
        for index, count in found.items():
            weighted[index] += round(1e9 * share * count / total)
    return Counter({world[index]: count for index, count in weighted.items()})


def is_held_out(row: dict[str, Any]) -> bool:
    """Whether a document is kept for measuring."""
    content = json.dumps(row, ensure_ascii=False, sort_keys=True)
    return zlib.crc32(content.encode()) % _HELD_OUT == 0


def _pack(
    folder: Path, name: str, documents: Iterable[Iterable[tuple[str, int]]], words: Vocabulary
) -> int:
    ids: list[int] = []
    roles: list[int] = []
    starts = [0]
    size = 0
    for pieces in documents:
        role = TEXT
        for text, role in pieces:
            data = text.encode()
            part = words.encode(data)
            size += len(data)
            ids += part
            roles += [role] * len(part)
        ids.append(0)
        roles.append(TEXT if role == TEXT else GIVEN)
        starts.append(len(ids))
    np.array(ids, np.uint16).tofile(folder / f"{name}.ids")
    np.array(roles, np.uint8).tofile(folder / f"{name}.roles")
    np.array(starts, np.int64).tofile(folder / f"{name}.starts")
    return size


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="rwkv_chat.training.pack", description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocab", type=Path, help="keep this one, to go on with a run")
    parser.add_argument("--rows", type=int, default=8192, help="rows of the vocabulary")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    files = {name: options.text / f"{name}.jsonl" for name in MIX}
    rows = {n: _rows(file) for n, file in files.items() if file.exists() or not MIX[n].optional}
    if options.vocab:
        tokens = read_vocabulary(options.vocab)
    else:
        world = world_tokens()
        tokens = choose_tokens(_count(rows, world), world, options.rows)
    (options.out / "vocab.txt").write_text(render(tokens), encoding="utf-8")
    words = Vocabulary(tokens)
    sources = {}
    for name, documents in rows.items():
        people = MIX[name].people
        held = [pieces_of(row, people) for row in documents if is_held_out(row)]
        kept = [pieces_of(row, people) for row in documents if not is_held_out(row)]
        size = _pack(options.out, name, kept, words)
        bytes_held_out = _pack(options.out, f"{name}.held", held, words)
        count = (options.out / f"{name}.ids").stat().st_size // 2
        log.info("%s: %.2f M tokens, %.2f bytes per token", name, count / 1e6, size / count)
        sources[name] = {
            "documents": len(kept),
            "tokens": count,
            "bytes": size,
            "bytes_held_out": bytes_held_out,
            "shares": [MIX[name].general, MIX[name].chat],
        }
    record = {"vocab_size": len(tokens), "sources": sources}
    (options.out / "packed.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
