"""Read the public text sets into one form:
`python -m rwkv_chat.training.gather --data DIR --out DIR`.

`--data` is the folder with the xz-compressed JSON lines named in `SETS`; the human chats come from
the PyPI package `chitchat-dataset`. Every file is checked by sha256. The result is one
`<name>.jsonl` per set, a line being `{"turns": [...]}` or `{"text": ...}`, and `licences.json`.
"""

import argparse
import hashlib
import importlib
import json
import logging
import lzma
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkv_chat.errors import UsageError

__all__ = ["SETS", "TextSet", "clean_turn", "main", "read_rows"]

log = logging.getLogger("rwkv_chat.training")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TextSet:
    """A public set: the sha256 of its file and its licence."""

    name: str
    sha256: str
    licence: str
    origin: str


SETS = (
    TextSet(
        "topical_chat",
        "3a9de3692c401cd5eaacaa3033b9c7d57ce645c1250d61c229cd73a8b9c898a7",
        "CDLA-Sharing-1.0",
        "Topical-Chat (Amazon), valid and test parts",
    ),
    TextSet(
        "kdconv_zh",
        "8500dcec7821a84eeba664b1cac0965a8f45c0b6c8619b3f994fed9a48c59d24",
        "Apache-2.0",
        "KdConv (Zhou et al. 2020), Chinese dialogues about films, music and travel",
    ),
    TextSet(
        "childrens_books",
        "db74d2bb9fbffc68297d3d7559b7b409b8cd22b8dbe2c7f9784c31274de6bdc0",
        "CC0",
        "nine public-domain books as edited by Standard Ebooks",
    ),
    TextSet(
        "clinc150",
        "0343d2423d38cfcf9f28c3e60ddf6f3983fc15db144260afd80089e62915168c",
        "CC BY 3.0",
        "CLINC150 (Larson et al. 2019); requests only, the answers are our own",
    ),
    TextSet(
        "nlu_evaluation",
        "47ec7187df7c98888778dffdcb0c3f35b5098e8b23323c54a7a68f361765d0a3",
        "CC BY 4.0",
        "NLU Evaluation Data (Liu et al. 2019); requests only, the answers are our own",
    ),
)
CHITCHAT = TextSet(
    "chitchat",
    "d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a",
    "MIT",
    "BYU PCC Lab chitchat dataset, PyPI chitchat-dataset 0.9.0",
)


def clean_turn(text: str) -> str:
    """One line of text: white space folded, so that a turn never holds a blank line."""
    return re.sub(r"\s+", " ", text).strip()


def read_rows(folder: Path, chosen: TextSet) -> Iterator[Row]:
    """The rows of `<name>.jsonl.xz`.

    Raises:
        UsageError: the file is absent, or is not the one that its sha256 names.
    """
    path = folder / f"{chosen.name}.jsonl.xz"
    if not path.exists():
        raise UsageError(f"{path} is missing. The gather stage needs the sets that SETS names.")
    _check(path, chosen)
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _check(path: Path, chosen: TextSet) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != chosen.sha256:
        raise UsageError(f"{path} has sha256 {found}, but {chosen.sha256} is expected.")


def _dialogues(rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        turns = [clean_turn(turn) for turn in row["turns"]]
        if len(turns) >= 2 and all(turns):
            yield {"turns": turns}


def _books(rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        part: list[str] = []
        for paragraph in row["text"].split("\n"):
            part.append(paragraph.strip())
            if sum(map(len, part)) > 900:
                yield {"text": "\n".join(part)}
                part = []
        if part:
            yield {"text": "\n".join(part)}


def _requests(rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        yield {"text": clean_turn(row["text"]), "intent": row["intent"]}


def _chats() -> Iterator[Row]:
    try:
        module: Any = importlib.import_module("chitchat_dataset")
    except ImportError as error:
        raise UsageError(
            "The human chats need the package chitchat-dataset; install it."
        ) from error
    _check(Path(module.__file__).with_name("dataset.json"), CHITCHAT)
    for chat in module.Dataset().values():
        turns = [
            clean_turn(" ".join(message["text"] for message in group)) for group in chat["messages"]
        ]
        turns = [turn for turn in turns if turn]
        if len(turns) >= 4 and all(len(turn) < 600 for turn in turns):
            yield {"turns": turns}


def _write(path: Path, rows: Iterable[Row]) -> None:
    count = 0
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    log.info("%s: %d rows", path.name, count)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="rwkv_chat.training.gather", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    forms = {
        "topical_chat": _dialogues,
        "kdconv_zh": _dialogues,
        "childrens_books": _books,
        "clinc150": _requests,
        "nlu_evaluation": _requests,
    }
    for chosen in SETS:
        rows = forms[chosen.name](read_rows(options.data, chosen))
        _write(options.out / f"{chosen.name}.jsonl", rows)
    _write(options.out / "chitchat.jsonl", _chats())
    licences = [[s.name, s.licence, s.origin, s.sha256] for s in (*SETS, CHITCHAT)]
    (options.out / "licences.json").write_text(json.dumps(licences, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
