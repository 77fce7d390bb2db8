"""The tokenizers that come with the application, and vocabularies in the text format."""

import stat
from pathlib import Path

from rwkv_chat import paths
from rwkv_chat.errors import TokenizerError
from rwkv_chat.tokenizer.parse import parse
from rwkv_chat.tokenizer.vocabulary import Vocabulary
from rwkv_chat.tokenizer.world import world_tokens

__all__ = ["load", "read_regular", "read_vocabulary"]

_SUBSET_FILE = "vocab.txt"
_MAX_FILE_BYTES = 64 << 20


def load(kind: str, vocab_size: int, folder: Path | None = None) -> Vocabulary:
    """The tokenizer of a model with `vocab_size` rows.

    Args:
        kind: "world"; "bytes": 256 ids, each the byte of its number; or "bundled": the text file
            vocab.txt in `folder` when it has one, else the one of the embedded model.
        vocab_size: rows of the embedding, V.
        folder: where the model lies.

    In "bytes" id 0 is the byte NUL. As everywhere, an answer ends when the model chooses id 0; no
    answer holds a NUL, so nothing is lost by it.

    Raises:
        TokenizerError: an unknown kind, a damaged vocabulary, or more tokens than rows.
    """
    if kind == "world":
        return Vocabulary("world", world_tokens(), vocab_size)
    if kind == "bytes":
        return Vocabulary("bytes", [bytes([byte]) for byte in range(256)], vocab_size)
    if kind == "bundled":
        beside = folder / _SUBSET_FILE if folder is not None else None
        path = beside if beside is not None and beside.exists() else paths.bundled(_SUBSET_FILE)
        return Vocabulary("bundled", read_vocabulary(path), vocab_size)
    raise TokenizerError(f"There is no tokenizer named {kind!r}. Known are: world, bytes, bundled.")


def read_vocabulary(path: Path) -> list[bytes]:
    """The bytes of every id, id 0 (none) first, from a vocabulary file in the text format.

    Raises:
        TokenizerError: it cannot be read, or breaks the format.
    """
    return parse(read_regular(path), str(path))


def read_regular(path: Path) -> bytes:
    """The content of a vocabulary file.

    Raises:
        TokenizerError: it is no regular file, cannot be read, or is too large for a vocabulary.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise TokenizerError(f"The vocabulary {path} is not a regular file.")
        if found.st_size > _MAX_FILE_BYTES:
            raise TokenizerError(
                f"{path} has {found.st_size} bytes, too many for a vocabulary. "
                "Give the vocabulary file of the model."
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise TokenizerError(
            f"Cannot read the vocabulary {path}: {reason}. It must lie beside its model."
        ) from error
